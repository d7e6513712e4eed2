"""A wide residual network that grows: does it matter what the new units compute?

The first convolution of every residual block starts at a quarter of its width. Twelve times, at a
fixed interval, all blocks gain a quarter of their first width, up to the whole: with the units that
the loss has the most use for ("gradmax"), with He's behind outgoing weights of zero ("he"), or with
small random weights on both sides ("random"). Beside them the first size and the final size from
scratch. All see the same batches under the same learning rate. Nothing is decided on data: the
looks in between are at a validation part, the test part is scored once, at the end.

faithful: WRN-28 on images of 32 x 32, 78,000 steps of 128, growth from step 10,000 every 2,500.
That is days on one core, and needs a GPU, which is used where there is one. Otherwise: WRN-10 on
images of 16 x 16, the same schedule at a twentieth.

Source: Evci et al. 2022 (arXiv 2201.05125), the CIFAR-10 protocol, and the settings that its
authors published with it: no norm between the two convolutions of a block, SGD with Nesterov
momentum 0.9 carried over the growths, a rate of 0.1 that warms up for an epoch and falls to zero by
a cosine, a penalty of 2e-4 |w|^2, all blocks grown at once. Differs: new units get the norm of He's
start where the paper gives them half the norm of the old ones; random units are small on both
sides; the images are normalised by a batch norm; a tenth of the training part is for validation. No
published score is quoted, since none could be checked.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from morphogen.edit.apply import apply_, count_parameters
from morphogen.edit.edit import Grow
from morphogen.edit.inits.constant import INITS, Inits, normal
from morphogen.edit.inits.gradmax import gradmax
from morphogen.edit.plan import Plan, plan
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.images import Images, Part, images, objective, scores
from morphogen.experiments.shared.page import Paper, page
from morphogen.record import Claim, Curve, Reproduction
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import Width, widths
from morphogen.training.train import Batches, State, generator, train


@dataclass(frozen=True)
class Config:
    """A round is `steps` steps; the first growth is after round `first`, the next ones every
    `every` rounds, where the looks are, too. share: of the inner widths at the start. search:
    rounds of `gradmax`.
    """

    data: str = "cifar10"
    seeds: int = 1
    depth: int = 10
    size: int = 16
    width: int = 16
    share: float = 0.25
    growths: int = 12
    steps: int = 25
    rounds: int = 156
    first: int = 20
    every: int = 5
    batch: int = 128
    rate: float = 0.1
    warm_up: int = 18
    decay: float = 4e-4
    shift: int = 2
    search: int = 3
    std: float = 0.05  # of random units: about half of He's, at 144 incoming weights


FAITHFUL = Config(depth=28, size=32, steps=500, warm_up=351, shift=4, search=10)
SMOKE = {
    "data": "digits",
    "depth": 10,
    "size": 8,
    "width": 8,
    "growths": 2,
    "steps": 2,
    "rounds": 8,
    "first": 2,
    "every": 2,
}
SMOKE |= {"search": 1, "warm_up": 2}

GROWN = ("gradmax", "he", "random")
BIG = "big from scratch"
PAPER = Paper(
    "gradmax-wide",
    "a residual network that grows",
    "Evci et al. 2022, GradMax (arXiv 2201.05125)",
    {"accuracy": ("step", "validation accuracy")},
)


class Block(nn.Module):
    """x + two convolutions of relu(norm(x)), (batch, width, h, w) in and out; the inner width is
    the one that grows.

    stride: 2 halves the map and has a convolution of 1 x 1 on the way past, which changes the
    width.
    """

    def __init__(self, before: int, width: int, inner: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, inner, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.past = nn.Conv2d(before, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(F.relu(self.conv1(F.relu(self.norm(x)))))
        return change + self.past(x)  # type: ignore[no-any-return]


def network(config: Config, share: float, classes: int) -> nn.Sequential:
    """Images (batch, 3, size, size) -> logits (batch, classes), with three groups of (depth - 4) /
    6 blocks.
    """
    blocks = []
    before = config.width
    for group in range(3):
        width = config.width * 2**group
        for number in range((config.depth - 4) // 6):
            blocks.append(
                Block(before, width, round(share * width), 2 if group and not number else 1)
            )
            before = width
    stem = nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, config.width, 3, padding=1, bias=False)
    head = (
        nn.BatchNorm2d(before),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(before, classes),
    )
    model = nn.Sequential(*stem, *blocks, *head)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


@dataclass(frozen=True)
class Fit:
    """One network. path: validation accuracy after every `every` rounds. cost: parameters times
    steps, summed over training. train: mean loss of the last `every` rounds.
    """

    test: float
    train: float
    path: tuple[float, ...]
    parameters: int
    cost: int
    seconds: float


@dataclass(frozen=True)
class Growth:
    """How the blocks of one network grow. inner: their first widths when whole, by name. batches:
    the next one is what new units are for.
    """

    config: Config
    seed: int
    init: str
    inner: dict[str, int]
    ties: dict[str, Width]
    batches: Batches

    def due(self, rounds: int) -> bool:
        since = rounds - self.config.first
        number, rest = divmod(since, self.config.every)
        return since >= 0 and not rest and number < self.config.growths


def growth(model: nn.Sequential, config: Config, seed: int, init: str, batches: Batches) -> Growth:
    """Of the network as it starts."""
    inner = {
        f"{name}.conv1": block.conv1.out_channels
        for name, block in model.named_children()
        if isinstance(block, Block)
    }
    ties = widths(trace(model, batches.x[:2])) if init else {}
    return Growth(config, seed, init, inner, ties, batches)


def grow(how: Growth, state: State) -> None:
    """All blocks gain the same share of their first widths."""
    (batch,) = how.batches.range(state.step, state.step + 1)  # the next one
    draw = generator(how.seed, 7, state.round)
    for name, units in how.inner.items():
        more = max(1, round(how.config.share * units))
        planned = plan(state.model, how.ties, [Grow(name, more)])
        inits = started(how, state.model, planned, batch, draw)
        apply_(state.model, planned, optimizers=[state.optimizer], inits=inits, generator=draw)


def started(
    how: Growth, model: nn.Module, planned: Plan, batch: Part, draw: torch.Generator
) -> Inits:
    """How the new units start."""
    if how.init == "he":
        return INITS
    if how.init == "random":
        return INITS | dict.fromkeys(("out", "in"), normal(how.config.std))
    loss = lambda grown: objective(grown, *batch)  # noqa: E731
    return gradmax(model, planned, loss, draw, how.config.search)


def rate_at(config: Config, step: int) -> float:
    """Rises for the first steps, then falls to zero by a cosine."""
    share = step / (config.steps * config.rounds)
    return config.rate * min((step + 1) / config.warm_up, (1 + math.cos(math.pi * share)) / 2)


def fit(config: Config, data: Images, seed: int, share: float, init: str = "") -> Fit:
    """Train from a share of the inner widths; grown with the units that `init` names, one of
    `GROWN`, or not at all.
    """
    torch.manual_seed(seed)
    model = network(config, share, data.classes).to(data.train[0].device)
    optimizer = SGD(model.parameters(), config.rate, 0.9, weight_decay=config.decay, nesterov=True)
    state = State(model, optimizer, seed)
    flip = config.data == "cifar10"
    batches = Batches(*data.train, min(config.batch, len(data.train[0])), seed, config.shift, flip)
    how = growth(model, config, seed, init, batches)
    costs = [0]
    path = []
    losses = [0.0]

    def after_round(state: State) -> None:
        costs.append(count_parameters(model) * config.steps)
        if init and how.due(state.round):
            grow(how, state)
        losses.append(state.train_loss)
        if not state.round % config.every or state.round == config.rounds:
            path.append(scores(model, data.validation)[1])

    began = time.perf_counter()
    train(
        state,
        batches,
        objective,
        partial(rate_at, config),
        steps=config.steps,
        rounds=config.rounds,
        hooks=[after_round],
    )
    seconds = time.perf_counter() - began
    recent = losses[-config.every :]
    parameters = count_parameters(model)
    test = scores(model, data.test)[1]
    return Fit(test, sum(recent) / len(recent), tuple(path), parameters, sum(costs), seconds)


def compared(config: Config, seed: int) -> tuple[dict[str, Fit], Images]:
    """Three ways to grow, and both sizes from scratch."""
    data = images(
        config.data, seed, config.size, device="cuda" if torch.cuda.is_available() else "cpu"
    )
    fits = {init: fit(config, data, seed, config.share, init) for init in GROWN}
    fits["small from scratch"] = fit(config, data, seed, config.share)
    fits[BIG] = fit(config, data, seed, 1.0)
    return fits, data


def less(one: str, other: str, low: float) -> Row:
    """Over paired seeds."""
    return Row(
        f"{one} less {other}, test accuracy",
        lambda run: run[one].test - run[other].test,
        low=low,
    )


def costs(key: str) -> tuple[Row, Row]:
    """What growing costs beside the final size from the start."""
    return (
        Row(
            f"parameter steps of {key} / of {BIG}",
            lambda run: run[key].cost / run[BIG].cost,
            high=1.0,
        ),
        Row(
            f"seconds of {key} / of {BIG}",
            lambda run: run[key].seconds / run[BIG].seconds,
            high=1.0,
        ),
    )


# of one network
EACH = (
    Row("test accuracy", lambda fit: fit.test),
    Row("training loss at the end", lambda fit: fit.train),
    Row("parameters", lambda fit: fit.parameters),
)
# over paired seeds
CLAIMS = (
    less("gradmax", "random", 0.0),
    less("gradmax", "he", 0.0),
    less("gradmax", "small from scratch", 0.0),
    less("gradmax", BIG, -0.003),
    *chain.from_iterable(map(costs, GROWN)),
)


def claims(runs: Sequence[dict[str, Fit]]) -> list[Claim]:
    """Scores; then differences over paired seeds, and what growing costs."""
    judged: list[Claim] = []
    for key in runs[0]:
        judged += claimed(EACH, [run[key] for run in runs], f"{key}: ")
    return judged + claimed(CLAIMS, runs)


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """The paper's schedule, or a twentieth of it on a smaller network. smoke: digits in place of
    CIFAR-10.
    """
    config = replace(FAITHFUL if faithful else Config(), seeds=seeds)
    config = replace(config, **SMOKE) if smoke else config  # type: ignore[arg-type]
    began = time.perf_counter()
    runs = []
    for seed in range(seeds):
        fits, data = compared(config, seed)
        runs.append(fits)
    looks = [r for r in range(1, config.rounds + 1) if not r % config.every or r == config.rounds]
    steps = tuple(config.steps * r for r in looks)
    curves = [Curve("accuracy", key, steps, fitted.path) for key, fitted in runs[0].items()]
    notes = [
        f"{key}: {fitted.parameters} parameters at the end, {fitted.cost / 1e6:.0f}e6 parameter "
        f"steps, {fitted.seconds:.0f} s"
        for key, fitted in runs[0].items()
    ]
    last = config.first + config.every * (config.growths - 1)
    notes.append(
        f"growth after steps {config.first * config.steps} to {last * config.steps} of "
        f"{config.rounds * config.steps}, on {data.train[0].device.type}"
    )
    paper = replace(PAPER, title=f"{data.title}: {PAPER.title}")
    return page(paper, config, began, claims(runs), curves, (*data.notes, *notes), faithful)
