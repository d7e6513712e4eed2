"""Does growing pay? Growth with every control beside it, on small perceptrons.

One schedule of growth (two hidden layers from 8 to 64 units in seven steps over the first half of
training) with the optimizer left stale, rebuilt, or carried along; with naive, function-preserving
and gradient-maximising new units; growth that policies decide; widths that the gradient learns; the
same final sizes from scratch; and the best of a grid of twelve widths, its total cost included.

All networks see the same number of batches; the learning rate falls to zero over the second half,
from that which is best for each variant on validation parts (`RATES`; the grid and the sizes found
take that of the final size). Decisions (of policies, of the grid) use a validation part, the scores
are of the test part.

Source: the claims of growth examined in "On the stability of growth" (arXiv 2605.15435): pruning
and training from scratch beat it. The task and the settings are ours.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from morphogen.data.load import load_data
from morphogen.data.split import split
from morphogen.edit.apply import apply_, count_parameters
from morphogen.edit.edit import Grow
from morphogen.edit.inits.constant import INITS, normal
from morphogen.edit.inits.gradmax import gradmax
from morphogen.edit.plan import plan
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.penalty import linear, penalty
from morphogen.layers.protocol import size_parameters
from morphogen.layers.width import LearnedWidth
from morphogen.policies.controller import Controller
from morphogen.policies.firefly import Firefly
from morphogen.policies.gradmax import GradMax
from morphogen.policies.natural import Natural
from morphogen.policies.policy import Policy
from morphogen.policies.trial import Trial
from morphogen.record import Claim, Curve, Reproduction
from morphogen.threads import threads
from morphogen.training.train import Batches, State, generator, predict, train
from morphogen.transforms.freeze import freeze

PAPER = Paper(
    "growing-controls",
    "Growth beside its controls",
    "On the stability of growth (arXiv 2605.15435)",
)


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("digits", "mnist", "fashion-mnist")
    seeds: int = 10
    start: int = 8
    final: int = 64
    growths: int = 7
    rounds: int = 40
    steps: int = 60  # a round
    batch: int = 128
    rate: float = float("nan")  # of the variant, see `RATES`
    decay: float = 0.01
    std: float = 0.01  # of naive new units, on both sides, as in Growing_neural_network
    penalty: float = 3e-4  # of a unit, in nats, where the gradient learns the widths
    grid: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)


SMOKE = Config(data=("digits",), rounds=8, steps=5, growths=2, final=24, grid=(4, 8))


@dataclass(frozen=True)
class Data:
    train: Batches
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int


@dataclass(frozen=True)
class Fit:
    """One trained network. cost: parameters times steps, summed over training; path: validation
    accuracy after each round.
    """

    test: float
    validation: float
    parameters: int
    seconds: float
    cost: int
    path: tuple[float, ...]
    widths: tuple[int, int]


def prepared(name: str, config: Config, seed: int) -> Data:
    """Images as rows; a tenth of the training part is for validation."""
    dataset = load_data(name)
    x = torch.as_tensor(dataset.x_train).flatten(1)
    y = torch.as_tensor(dataset.y_train)
    inside, held = (
        torch.as_tensor(rows) for rows in split(dataset.y_train, 0.1, seed, stratify=True)
    )
    batches = Batches(x[inside], y[inside], min(config.batch, len(inside)), seed)
    test = torch.as_tensor(dataset.x_test).flatten(1), torch.as_tensor(dataset.y_test)
    return Data(batches, (x[held], y[held]), test, len(dataset.classes))


def network(features: int, widths: tuple[int, int], classes: int) -> nn.Sequential:
    first, second = widths
    return nn.Sequential(
        OrderedDict(
            first=nn.Linear(features, first),
            relu1=nn.ReLU(),
            second=nn.Linear(first, second),
            relu2=nn.ReLU(),
            output=nn.Linear(second, classes),
        )
    )


def learning(features: int, widths: tuple[int, int], classes: int, penalty: float) -> nn.Sequential:
    """The same with widths that are learned, each unit at that price."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in network(features, widths, classes).named_children():
        parts[name] = layer
        if name.startswith("relu"):
            number = int(name[-1])
            parts[f"width{number}"] = LearnedWidth(
                widths[number - 1], penalty=partial(linear, factor=penalty)
            )
    return nn.Sequential(parts)


def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    return float(predict(model, part[0]).argmax(1).eq(part[1]).double().mean())


Change = Callable[[State, "Run"], None]
"""Changes the network of a state after a round; the run has its data, settings and controller."""


class Run:
    """One training of one network, perhaps with a change of its structure after each round."""

    def __init__(
        self,
        data: Data,
        config: Config,
        seed: int,
        widths: tuple[int, int],
        build: Callable[..., nn.Module] = network,
    ) -> None:
        torch.manual_seed(seed)
        self.data = data
        self.config = config
        self.seed = seed
        model = build(data.train.x.shape[1], widths, data.classes)
        self.state = State(model, self.optimizer(model), seed)
        self.controller: Controller | None = None
        self.path: list[float] = []
        self.cost = 0

    def optimizer(self, model: nn.Module) -> AdamW:
        sizes = size_parameters(model)
        weights = [p for p in model.parameters() if all(p is not size for size in sizes)]
        groups: list[dict[str, Any]] = [
            {"params": weights},
            *([{"params": sizes, "weight_decay": 0.0}] if sizes else []),
        ]
        return AdamW(groups, lr=self.config.rate, weight_decay=self.config.decay, fused=True)

    def rate(self, step: int) -> float:
        left = 1 - step / (self.config.rounds * self.config.steps)
        return self.config.rate * min(1.0, (step + 1) / 50, 2 * left)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) + penalty(model)

    def loss(self, model: nn.Module) -> Tensor:
        """Of the next four batches."""
        parts = zip(*self.data.train.range(self.state.step, self.state.step + 4), strict=True)
        return self.objective(model, *(torch.cat(part) for part in parts))

    def losses(self, model: nn.Module) -> Tensor:
        x, y = (part[:2000] for part in self.data.validation)
        return F.cross_entropy(predict(model, x), y, reduction="none")

    def fit(self, change: Change | None = None) -> Fit:
        def after(state: State) -> None:
            self.cost += count_parameters(state.model) * self.config.steps
            if change and state.round <= self.config.rounds // 2:
                change(state, self)
            self.path.append(accuracy(state.model, self.data.validation))

        began = time.perf_counter()
        options = {"steps": self.config.steps, "rounds": self.config.rounds}
        train(self.state, self.data.train, self.objective, self.rate, hooks=[after], **options)
        model = self.state.model
        if size_parameters(model):
            model, _ = freeze(model, self.data.train.x[:2])
        seconds = time.perf_counter() - began
        return Fit(
            accuracy(model, self.data.test),
            self.path[-1],
            count_parameters(model),
            seconds,
            self.cost,
            tuple(self.path),
            (model.first.out_features, model.second.out_features),  # type: ignore[union-attr, arg-type]
        )


def due(state: State, config: Config) -> int:
    """Units that both layers gain after this round, by the fixed schedule."""
    every = max(1, config.rounds // 2 // config.growths)
    return (
        (config.final - config.start) // config.growths
        if not state.round % every and state.round <= every * config.growths
        else 0
    )


def grow(
    state: State,
    run: Run,
    optimizer: str = "carried",
    start: str = "usual",
    new_state_fraction: float = 1.0,
) -> None:
    """Widen both layers as the schedule says. optimizer: "carried", or "rebuilt" from nothing.
    start: of new units, "usual", "naive" or "gradmax". new_state_fraction: of `apply_`.
    """
    if not (units := due(state, run.config)):
        return
    controller = _controller(run, Trial())
    for name in ("first", "second"):
        planned = plan(state.model, controller.widths, [Grow(name, units)])
        draw = generator(run.seed, 7, state.round)
        naive = INITS | dict.fromkeys(("out", "in", "bias"), normal(run.config.std))
        inits = {"usual": INITS, "naive": naive}.get(start) or gradmax(
            state.model, planned, run.loss, draw
        )
        apply_(
            state.model,
            planned,
            optimizers=[state.optimizer],
            inits=inits,
            generator=draw,
            new_state_fraction=new_state_fraction,
        )
    if optimizer == "rebuilt":
        state.optimizer = run.optimizer(state.model)


def grow_by_hand(state: State, run: Run) -> None:
    """As it is often written: larger layers with the old weights copied in, and an optimizer that
    is not told.
    """
    if not (units := due(state, run.config)):
        return
    old = state.model
    first, second = old.first.out_features + units, old.second.out_features + units  # type: ignore[union-attr, operator]
    new = network(run.data.train.x.shape[1], (first, second), run.data.classes)  # type: ignore[arg-type]
    with torch.no_grad():
        for before, after in zip(old.parameters(), new.parameters(), strict=True):
            after.mul_(run.config.std)[tuple(slice(size) for size in before.shape)] = before
    for name, layer in new.named_children():
        setattr(old, name, layer)


def decide(state: State, run: Run, policy: Policy | None) -> None:
    """Ask a policy, until it is finished, or let learned widths have what they ask for."""
    if run.controller is None:
        run.controller = _controller(run, policy)
    if not run.controller.done:
        run.controller.step(state.round, 0.0, generator(run.seed, 7, state.round))


def _controller(run: Run, policy: Policy | None) -> Controller:
    run.controller = run.controller or Controller(
        run.state.model,
        policy,
        run.losses,
        run.data.train.x[:2],
        optimizers=[run.state.optimizer],
        loss=run.loss,
    )
    return run.controller


# What is compared: growth to one size by a fixed schedule, then growth that a policy decides.
SCHEDULED: dict[str, Change] = {
    "carried optimizer": grow,
    "carried, a tenth of the second moment": partial(grow, new_state_fraction=0.1),
    "rebuilt optimizer": partial(grow, optimizer="rebuilt"),
    "stale optimizer": grow_by_hand,
    "carried, naive units": partial(grow, start="naive"),
    "carried, gradmax units": partial(grow, start="gradmax"),
}
DECIDED: dict[str, Policy] = {
    "trial": Trial(granularity=8),
    "natural": Natural(granularity=8),
    "gradmax": GradMax(granularity=8),
    "firefly": Firefly(granularity=8),
}


LEARNED = "gradient"
SCRATCH = "final size from scratch"
OURS = (*DECIDED, LEARNED)
VARIANTS = (*SCHEDULED, *(f"policy {key}" for key in OURS), SCRATCH)

# Of each variant: the best of 3e-3, 1e-2 and 3e-2 by `tuned`; 1e-1 is worse for all that have 3e-2,
# and 1e-3 on MNIST for those that have 3e-3.
RATES: dict[str, float] = {
    **dict.fromkeys(VARIANTS, 3e-2),
    **dict.fromkeys(("carried, a tenth of the second moment", "rebuilt optimizer"), 3e-3),
    **dict.fromkeys(("carried optimizer", "policy natural", "policy gradmax", SCRATCH), 1e-2),
}


def trained(variant: str, data: Data, config: Config, seed: int) -> Fit:
    """One of `VARIANTS`; from scratch at the final size."""
    small = (config.start,) * 2
    large = (config.final,) * 2
    policy = variant.removeprefix("policy ")
    if variant in SCHEDULED:
        return Run(data, config, seed, small).fit(SCHEDULED[variant])
    if policy in DECIDED:
        return Run(data, config, seed, small).fit(partial(decide, policy=DECIDED[policy]))
    if policy == LEARNED:
        return Run(data, config, seed, small, partial(learning, penalty=config.penalty)).fit(
            partial(decide, policy=None)
        )
    return Run(data, config, seed, large).fit()


def tuned(
    config: Config, rates: Sequence[float] = (3e-3, 1e-2, 3e-2), seed: int = 11
) -> dict[str, dict[float, float]]:
    """For each variant and rate the mean validation accuracy over the data sets, of a seed that the
    results do not use.
    """
    parts = [prepared(name, config, seed) for name in config.data]
    return {
        variant: {
            rate: mean(
                trained(variant, data, replace(config, rate=rate), seed).validation
                for data in parts
            )
            for rate in rates
        }
        for variant in VARIANTS
    }


def compared(name: str, config: Config, seed: int) -> dict[str, Fit]:
    """Every variant and control on one data set and seed."""
    data = prepared(name, config, seed)
    fits = {
        variant: trained(variant, data, replace(config, rate=RATES[variant]), seed)
        for variant in VARIANTS
    }
    scratch = replace(config, rate=RATES[SCRATCH])
    for key in OURS:
        widths = fits[f"policy {key}"].widths
        fits[f"size of {key} from scratch"] = Run(data, scratch, seed, widths).fit()
    grid = [Run(data, scratch, seed, (width, width)).fit() for width in config.grid]
    best = max(grid, key=lambda fit: fit.validation)
    fits[f"best of {len(grid)} widths"] = replace(
        best, seconds=sum(fit.seconds for fit in grid), cost=sum(fit.cost for fit in grid)
    )
    return fits


def less(one: str, other: str, low: float = 0.0) -> Row:
    """Over paired seeds."""
    return Row(f"{one} less {other}", lambda run: run[one].test - run[other].test, low=low)


def ratio(one: str, other: str, high: float) -> Row:
    return Row(
        f"seconds of {one} / of {other}",
        lambda run: run[one].seconds / run[other].seconds,
        high=high,
    )


def score(key: str) -> Row:
    return Row(f"{key}, test accuracy", lambda run: run[key].test)


def parameters(key: str) -> Row:
    return Row(f"parameters by {key}", lambda run: run[key].parameters)


# what a change of the structure should not lose
CLAIMS = (
    less("carried optimizer", "stale optimizer"),
    less("carried optimizer", "rebuilt optimizer"),
    less("carried, a tenth of the second moment", "rebuilt optimizer"),
    less("carried optimizer", "carried, naive units"),
    less("carried, gradmax units", "carried optimizer"),
    less("carried optimizer", SCRATCH, -0.003),
    *(less(f"policy {key}", f"size of {key} from scratch", -0.003) for key in OURS),
)


def policy_rows(key: str, grid: str) -> list[Row]:
    """Size and time of a policy beside its size from scratch and the grid."""
    policy = f"policy {key}"
    scratch = ratio(policy, f"size of {key} from scratch", 2.0)
    return [parameters(policy), scratch, ratio(policy, grid, 1.0)]


def claims(name: str, runs: Sequence[dict[str, Fit]], config: Config) -> list[Claim]:
    """Accuracies, then differences over paired seeds, then what they cost."""
    grid = f"best of {len(config.grid)} widths"
    rows = [score(key) for key in runs[0]]
    rows += [*CLAIMS, *(less(f"policy {key}", grid, -0.003) for key in OURS)]
    for key in OURS:
        rows += policy_rows(key, grid)
    size = Row(f"parameters by the {grid}", lambda run: run[grid].parameters)
    return claimed([*rows, size], runs, f"{name}: ")


def notes_on(name: str, first: dict[str, Fit], judged: Sequence[Claim]) -> list[str]:
    """What growth does not win, and how each network of a seed ends."""
    lost = [claim for claim in judged if claim.verdict == "missed"]
    return [
        *(f"growth does not win: {claim.name} is {claim.measured:+.4f}" for claim in lost),
        *(
            f"{name}, seed 0: {key} ends at widths {fit.widths}, {fit.seconds:.1f} s, "
            f"{fit.cost / 1e6:.0f}e6 parameter steps"
            for key, fit in first.items()
        ),
    ]


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """All data sets; the comparison has no original of its own, so both modes are the same."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    began = time.perf_counter()
    rounds = tuple((i + 1) * config.steps for i in range(config.rounds))
    judged: list[Claim] = []
    curves: list[Curve] = []
    notes: list[str] = []
    for name in config.data:
        with threads(1):
            runs = [compared(name, config, seed) for seed in range(seeds)]
        of_this = claims(name, runs, config)
        judged += of_this
        notes += notes_on(name, runs[0], of_this)
        curves += [Curve(name, key, rounds, fit.path) for key, fit in runs[0].items()]
    settings = {key: value for key, value in vars(config).items() if key != "rate"}
    settings |= {f"rate, {key}": f"{rate:g}" for key, rate in RATES.items()}
    paper = replace(PAPER, axes=dict.fromkeys(config.data, ("step", "validation accuracy")))
    return page(paper, settings, began, judged, curves, notes)
