"""CIFAR-10 with a network that gains and loses features while it trains: the original's two
strategies, and ours beside them.

The original's network has four convolutions of stride 2, from 4 features each, and three dense
layers, from 10. Every tenth batch it tries one random feature more or less ("stochastic"), or adds
one unasked ("expand"). Ours is of the same family and starts as small, from 8 features everywhere,
but it is normalised, sees moved and mirrored images under a learning rate that falls to zero, and
grows by a policy of the library within a budget of parameters, below the original's about 68,000.
Beside it: the sizes that it ends with, from scratch, on the same batches.

The figure that counts as ours is the test loss at the look with the lowest validation loss. The
lowest test loss of all looks is shown too, since that is what the original published.

faithful: 50 epochs of all training rows, weights that start at N(0, 0.01^2), and the original's
decisions taken on the test part. "expand" adds 2,500 features, so that a step ends at more than a
hundred times the price it began at: hours on one core.

Source: Growing_neural_network, train_dynamic_stochastic.py and train_dynamic.py of March 2023; the
published figures are of its version of August 2020 (fixed convolutions of 32, 64 and 64 features,
dense layers that grew). Differs: pixels of padding lie on both sides; see `one_feature` for what
else.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from morphogen.edit.apply import count_parameters
from morphogen.experiments.growing.one_feature import Chain, expand, sizes, stochastic
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.images import Images, images, objective, scores
from morphogen.experiments.shared.page import Paper, page
from morphogen.policies.controller import Controller
from morphogen.policies.trial import Trial
from morphogen.record import Claim, Curve, Reproduction
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import widths
from morphogen.training.train import Batches, Hook, State, generator, predict, train

PAPER = Paper(
    "growing-cifar",
    "features come and go in training",
    "Growing_neural_network, the CIFAR-10 example",
)
STRATEGIES = {"stochastic": stochastic, "expand": expand}
# the widths that change; dense3 gives the classes
GROWN = ("conv1", "conv2", "conv3", "conv4", "dense1", "dense2")

# The original's log of August 2020: cross-entropy in training and on the test part after some
# epochs; the best one had 11,861 dense weights.
EPOCHS = (1, 2, 3, 5, 8, 10, 12, 14, 18, 20, 25, 30)
TRAIN = (1.898, 1.604, 1.463, 1.259, 1.096, 1.026, 0.947, 0.894, 0.808, 0.779, 0.685, 0.623)
TEST = (1.677, 1.557, 1.405, 1.248, 1.145, 1.137, 1.116, 1.0995, 1.103, 1.127, 1.162, 1.239)
BEST = 1.0995
DENSE = 11_861


@dataclass(frozen=True)
class Config:
    """The first part is of the original's strategies, the second, `our_`, of ours. price,
    granularity, budget: of the policy.
    """

    data: str = "cifar10"
    seeds: int = 1
    faithful: bool = False
    epochs: tuple[int, int] = (25, 12)  # "stochastic", "expand"
    batch: int = 100
    rate: float = 1e-3
    every: int = 10  # batches between two changes
    std: float = 0.01  # of new weights
    threshold: float = 0.01  # of outgoing L1 norms, under which a feature leaves
    channels: int = 4
    units: int = 10
    our_epochs: int = 20
    our_first: int = 8
    our_batch: int = 128
    our_rate: float = 4e-3
    our_decay: float = 0.01
    our_shift: int = 2
    our_look: int = 117  # steps between two looks
    our_price: float = 0.05
    our_multiple: int = 8  # and the first sizes: kernels are slower in between
    our_budget: int = 60_000


SMOKE = {"data": "digits", "epochs": (3, 3), "our_epochs": 1, "our_look": 2}


@dataclass(frozen=True)
class Moment:
    """A look at a network in training: mean loss of training since the last one, loss on the two
    other parts, and sizes.
    """

    epoch: float
    train: float
    validation: float
    test: float
    accuracy: float
    sizes: tuple[int, ...]
    parameters: int
    dense: int


@dataclass(frozen=True)
class Fit:
    moments: tuple[Moment, ...]
    seconds: float
    note: str = ""

    @property
    def chosen(self) -> Moment:
        """By the validation part."""
        return min(self.moments, key=lambda moment: moment.validation)

    @property
    def best(self) -> Moment:
        """By the test part, as the original published it: too good, since it was chosen for being
        good.
        """
        return min(self.moments, key=lambda moment: moment.test)


def network(
    widths: Sequence[int], classes: int, norm: bool, std: float | None = None
) -> nn.Sequential:
    """Images (batch, 3, 32, 32) -> logits (batch, classes). norm: a batch norm for the images and
    after every layer. std: of the first weights and biases; None is He's and zero.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if norm:
        layers["norm"] = nn.BatchNorm2d(3, affine=False)
    before = 3
    for number, size in enumerate(widths[:4], start=1):
        layers[f"conv{number}"] = nn.Conv2d(before, size, 3, stride=2, padding=1, bias=False)
        if norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(size)
        layers[f"relu{number}"] = nn.ReLU()
        before = size
    layers["flatten"], before = nn.Flatten(), 4 * before
    for number, size in enumerate(widths[4:], start=1):
        layers[f"dense{number}"] = nn.Linear(before, size)
        if norm:
            layers[f"norm{4 + number}"] = nn.BatchNorm1d(size)
        layers[f"relu{4 + number}"] = nn.ReLU()
        before = size
    layers["dense3"] = nn.Linear(before, classes)
    for layer in layers.values():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            start(layer, std)
    return nn.Sequential(layers)


def start(layer: nn.Module, std: float | None) -> None:
    for tensor in layer.parameters():
        if std is not None:
            nn.init.normal_(tensor, std=std)
        elif tensor.dim() > 1:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu")
        else:
            nn.init.zeros_(tensor)


def fit(
    state: State,
    data: Images,
    batches: Batches,
    rate: Callable[[int], float],
    steps: int,
    rounds: int,
    period: int,
    change: Hook = lambda state: None,
) -> tuple[tuple[Moment, ...], float]:
    """Train, change the network after each round and look at it after every `period` rounds.
    Returns the looks and seconds.
    """
    losses: list[float] = []
    moments: list[Moment] = []

    def observation(state: State) -> None:
        losses.append(state.train_loss)
        if state.round % period and state.round < rounds:
            return
        model, (test, accuracy) = state.model, scores(state.model, data.test)
        validation = test if data.validation is data.test else scores(model, data.validation)[0]
        dense = sum(p.numel() for name, p in model.named_parameters() if name.startswith("dense"))
        counted = sizes(model, GROWN), count_parameters(model), dense
        moments.append(
            Moment(
                state.step / batches.per_epoch, mean(losses), validation, test, accuracy, *counted
            )
        )
        losses.clear()

    began = time.perf_counter()
    train(state, batches, objective, rate, steps=steps, rounds=rounds, hooks=[change, observation])
    return tuple(moments), time.perf_counter() - began


def original(strategy: str, config: Config, data: Images, seed: int) -> Fit:
    torch.manual_seed(seed)
    first = (config.channels,) * 4 + (config.units,) * 2
    model = network(first, data.classes, False, config.std if config.faithful else None)
    state = State(model, Adam(model.parameters(), lr=config.rate, fused=True), seed)
    batches = Batches(*data.train, config.batch, seed)
    chain = Chain(
        (*GROWN, "dense3"),
        widths(trace(model, data.train[0][:2])),
        dict(zip(GROWN, first, strict=True)),
        Batches(*data.validation, config.batch, seed),
        generator(seed, 7),
        config.std,
        config.threshold,
        0.0 if config.faithful else 1.0,
    )
    change = partial(STRATEGIES[strategy], chain)
    period = max(1, batches.per_epoch // config.every)
    rounds = period * dict(zip(STRATEGIES, config.epochs, strict=True))[strategy]
    looks = fit(
        state, data, batches, lambda step: config.rate, config.every, rounds, period, change
    )
    return Fit(*looks, ", ".join(f"{count} {what}" for what, count in sorted(chain.counts.items())))


def decayed(model: nn.Module, config: Config) -> AdamW:
    """Weights are drawn to zero, biases and norms are not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.our_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.our_rate, fused=True)


def controlled(state: State, config: Config, data: Images) -> Controller:
    """By the policy, on a part of the validation part, within the budget."""
    x, y = (part[:2000] for part in data.validation)

    def losses(model: nn.Module) -> Tensor:
        return F.cross_entropy(predict(model, x), y, reduction="none")

    return Controller(
        state.model,
        Trial(penalty=config.our_price, granularity=config.our_multiple),
        losses,
        data.train[0][:2],
        budget=config.our_budget,
        optimizers=[state.optimizer],
    )


def rate_at(config: Config, steps: int, step: int) -> float:
    """Rises for fifty steps, falls to zero over the second half."""
    return config.our_rate * min(1.0, (step + 1) / 50, 2 * (1 - step / steps))


def ours(config: Config, data: Images, seed: int, fixed: tuple[int, ...] = ()) -> Fit:
    """From eight features everywhere by a policy; with `fixed`, these from scratch, on the same
    batches.
    """
    torch.manual_seed(seed)
    model = network(fixed or (config.our_first,) * 6, data.classes, True)
    state = State(model, decayed(model, config), seed)
    size = min(config.our_batch, len(data.train[0]))
    flip = config.data == "cifar10"
    batches = Batches(*data.train, size, seed, config.our_shift, flip)
    rounds = config.our_epochs * batches.per_epoch // config.our_look
    controller = controlled(state, config, data)
    changes: list[str] = []

    def change(state: State) -> None:
        if not fixed and state.round <= rounds // 2 and not controller.done:
            draw = generator(seed, 7, state.round)
            made = controller.step(state.round, state.step / batches.per_epoch, draw)
            changes.extend(map(str, made))

    rate = partial(rate_at, config, rounds * config.our_look)
    period = max(1, batches.per_epoch // config.our_look)
    looks = fit(state, data, batches, rate, config.our_look, rounds, period, change)
    return Fit(*looks, "the policy did not act" if fixed else f"{len(changes)} changes")


def compared(config: Config, seed: int) -> tuple[dict[str, Fit], str, tuple[str, ...]]:
    """Every strategy; the name of the data, and what a reader must know of it."""
    data = images(config.data, seed, held=0.0 if config.faithful else 0.1)
    fits = {name: original(name, config, data, seed) for name in STRATEGIES}
    notes = (
        tuple(f"the original's strategies: {note}" for note in data.notes)
        if config.faithful
        else data.notes
    )
    if config.faithful:
        data = images(config.data, seed)
    fits["ours"] = ours(config, data, seed)
    fits[SCRATCH] = ours(config, data, seed, fits["ours"].moments[-1].sizes)
    return fits, data.title, notes


SCRATCH = "its size from scratch"
LOG = "published log, August 2020"


def rows(bound: float | None = None, dense: float | None = None) -> tuple[Row, ...]:
    """Losses at the chosen look and the best one, then sizes. bound, dense: what is accepted of the
    loss, and of the dense weights.
    """
    return (
        Row(
            "test loss at the look chosen on validation",
            lambda fit: fit.chosen.test,
            high=bound,
        ),
        Row("best test loss of all looks", lambda fit: fit.best.test, BEST, high=bound, source=LOG),
        Row("test accuracy at the chosen look", lambda fit: fit.chosen.accuracy),
        Row("dense weights there", lambda fit: fit.chosen.dense, DENSE, high=dense, source=LOG),
        Row("parameters there", lambda fit: fit.chosen.parameters),
        Row("seconds", lambda fit: fit.seconds),
    )


CLAIMS = {"ours": rows(1.05, float(DENSE))}
PAIRED = (
    Row(
        "test loss of ours less its size from scratch",
        lambda run: run["ours"].chosen.test - run[SCRATCH].chosen.test,
        high=0.0,
    ),
)


def claims(runs: Sequence[dict[str, Fit]]) -> list[Claim]:
    """Of every network, then over paired seeds."""
    judged: list[Claim] = []
    for key in runs[0]:
        judged += claimed(CLAIMS.get(key, rows()), [run[key] for run in runs], f"{key}: ")
    return judged + claimed(PAIRED, runs)


def drawn(fits: dict[str, Fit]) -> list[Curve]:
    """Losses beside the published ones, and the sizes of what grows."""
    curves = [
        Curve("train loss", "published", EPOCHS, TRAIN),
        Curve("test loss", "published", EPOCHS, TEST),
    ]
    for key, fitted in fits.items():
        x = tuple(moment.epoch for moment in fitted.moments)
        curves.append(Curve("train loss", key, x, tuple(m.train for m in fitted.moments)))
        curves.append(Curve("test loss", key, x, tuple(m.test for m in fitted.moments)))
        if key != SCRATCH:
            columns = zip(*(m.sizes for m in fitted.moments), strict=True)
            for layer, sizes_ in zip(GROWN, columns, strict=True):
                curves.append(Curve(f"sizes, {key}", layer, x, sizes_))
    return curves


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """25 and 12 epochs of the original's strategies, or, faithful, 50; and 20 of ours. smoke:
    digits in place of CIFAR-10.
    """
    config = Config(seeds=seeds, faithful=faithful, epochs=(50, 50) if faithful else Config.epochs)
    config = replace(config, **SMOKE) if smoke else config  # type: ignore[arg-type]
    began = time.perf_counter()
    runs = []
    for seed in range(seeds):
        fits, title, notes = compared(config, seed)
        runs.append(fits)
    chosen = [
        f"{key}: chosen after {fitted.chosen.epoch:.1f} epochs at sizes {fitted.chosen.sizes}; "
        f"{fitted.moments[-1].sizes} at the end; {fitted.note}"
        for key, fitted in runs[0].items()
    ]
    curves = drawn(runs[0])
    axes = {
        panel: ("epoch", panel if "loss" in panel else "features")
        for panel in dict.fromkeys(curve.panel for curve in curves)
    }
    paper = replace(PAPER, title=f"{title}: {PAPER.title}", axes=axes)
    return page(paper, config, began, claims(runs), curves, (*notes, *chosen), faithful)
