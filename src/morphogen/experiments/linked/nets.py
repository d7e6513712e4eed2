"""What the experiments with linked activations share: the activations under test and their starts,
a table of the article as a value, and its run.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import median

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.apply import count_parameters
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.images import Images, images, objective, scores
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.linked import (
    LKSELU,
    LKPReLU,
    LKReLU,
    LKSwish,
    looks_linear_,
    odd_part,
    variance_,
)
from morphogen.measures.dead import dead_units
from morphogen.record import Claim, Curve, Reproduction, Trace
from morphogen.training.train import Batches, State, train

Build = Callable[[int], nn.Module]
"""Units -> an activation."""


@dataclass(frozen=True)
class Kind:
    """An activation under test. plain: the activation itself; linked: its linked form, where that
    is under test. factor: of all widths, cut to a whole number as the original does. norm: a batch
    norm before each. init: "glorot" (uniform, the original's), "he", "looks-linear" or "variance",
    of the layers that read it. batch: examples a step, 0 for those of all.
    """

    plain: Build
    linked: Build | None = None
    factor: float = 1.0
    norm: bool = False
    init: str = "glorot"
    batch: int = 0

    def build(self, units: int) -> nn.Module:
        return (self.linked or self.plain)(units)

    @property
    def widen(self) -> int:
        """How many features it makes of one."""
        return 2 if self.linked else 1

    def units(self, width: int) -> int:
        return int(self.factor * width)


def _relu(units: int) -> nn.Module:
    return nn.ReLU()


def _prelu(units: int) -> nn.Module:
    return nn.PReLU(units, init=0.0)


def _selu(units: int) -> nn.Module:
    return nn.SELU()


def _swish(units: int) -> nn.Module:
    return nn.SiLU()


# The original's, by its names; its LK-PReLU never trained its slopes.
SINGLE = {"ReLU": Kind(_relu), "PReLU": Kind(_prelu), "SELU": Kind(_selu), "Swish": Kind(_swish)}
LINKED = {
    "LK-ReLU": Kind(_relu, lambda units: LKReLU()),
    "LK-PReLU": Kind(_prelu, lambda units: LKPReLU(units, 0.0, frozen=True)),
    "LK-SELU": Kind(_selu, lambda units: LKSELU()),
    "LK-Swish": Kind(_swish, lambda units: LKSwish()),
}
WIDER = {f"{name} √2": replace(kind, factor=math.sqrt(2)) for name, kind in SINGLE.items()}
NORMED = {"BN+ReLU": Kind(_relu, norm=True)}
# With the start that belongs to each: without these, the effect of linking cannot be told from that
# of scale.
STARTED = {
    "ReLU, He": Kind(_relu, init="he"),
    "LK-ReLU, looks linear": replace(LINKED["LK-ReLU"], init="looks-linear"),
    "LK-PReLU, trained, looks linear": Kind(
        _prelu, lambda units: LKPReLU(units), init="looks-linear"
    ),
    "LK-SELU, variance": replace(LINKED["LK-SELU"], init="variance"),
    "LK-Swish, looks linear": replace(LINKED["LK-Swish"], init="looks-linear"),
}


def started(layer: nn.Module, kind: Kind, reads: bool) -> nn.Module:
    """A layer with the weights of its start, biases 0. reads: whether it reads the activation, not
    the input.
    """
    weight = layer.weight
    bias = layer.bias
    if kind.init == "glorot":
        nn.init.xavier_uniform_(weight)  # type: ignore[arg-type]
    elif not reads or kind.init == "he":
        nn.init.kaiming_normal_(weight, nonlinearity="relu")  # type: ignore[arg-type]
    elif kind.init == "looks-linear":
        looks_linear_(layer, odd_part(kind.build(1)) or 1.0)
    else:
        variance_(layer, kind.build(1))
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
    return layer


def halving(before: int, units: int, kernel: int) -> list[nn.Module]:
    """A convolution of stride 2, padded as Keras's "same" has it: less on the left and top."""
    left = (kernel - 2) // 2
    return [nn.ZeroPad2d((left, kernel - 2 - left) * 2), nn.Conv2d(before, units, kernel, stride=2)]


@dataclass(frozen=True)
class Settings:
    """rows: of the training part that are used, 0 for all. The rate falls as rate / (1 + decay *
    step). published: the article's protocol, in which the test part decides, rows come in one
    order, and the best epoch counts.
    """

    data: str = "cifar10"
    seeds: int = 1
    published: bool = False
    width: int = 4
    layers: int = 0
    rows: int = 10_000
    epochs: int = 6
    batch: int = 32
    rate: float = 1e-3
    decay: float = 0.0
    shift: int = 0
    flip: bool = False
    shuffled: bool = True


AXES = {
    "accuracy": ("epoch", "test accuracy"),
    "gradients": ("layer", "gradient norm at the start"),
    "dead": ("layer", "share of dead units at the end"),
}


@dataclass(frozen=True)
class Table:
    """One of the article's tables. network: (kind, settings, classes) -> a network for images
    (batch, 3, 32, 32). published: the article's figure by net. nets: the article's; others: what we
    add. low, high: bounds that we set on the test accuracy. smoke: settings that a smoke run
    changes.
    """

    name: str
    title: str
    source: str
    network: Callable[[Kind, Settings, int], nn.Module]
    optimizer: Callable[[Iterable[Tensor], float], Optimizer]
    published: Mapping[str, float]
    nets: Mapping[str, Kind]
    others: Mapping[str, Kind]
    default: Settings
    faithful: Settings
    smoke: Mapping[str, int | str]
    low: Mapping[str, float] = field(default_factory=dict)
    high: Mapping[str, float] = field(default_factory=dict)
    clock: str = ""  # the net whose time is 1

    def reproduce(
        self, faithful: bool = False, smoke: bool = False, seeds: int = 1
    ) -> Reproduction:
        """All nets on the same rows."""
        settings = replace(self.faithful if faithful else self.default, seeds=seeds)
        settings = replace(settings, **self.smoke) if smoke else settings  # type: ignore[arg-type]
        kinds = self.nets if faithful else {**self.nets, **self.others}
        began = time.perf_counter()
        runs = []
        for seed in range(seeds):
            data = images(settings.data, seed, held=0.0 if settings.published else 0.1)
            runs.append(
                {name: self.run(kind, settings, data, seed) for name, kind in kinds.items()}
            )
        curves = chain.from_iterable(map(drawn, runs[0], runs[0].values()))
        notes = map(told, runs[0], runs[0].values())
        traces: list[Trace] = []
        files: dict[str, bytes] = {}
        for seed, fits in enumerate(runs):
            for name, result in fits.items():
                named = f"{name}-{seed}-{settings.rate:g}"
                traces += traced(named, result)
                files |= checkpoints(named, result)
        return page(
            Paper(self.name, f"{data.title}: {self.title}", self.source, AXES),
            settings,
            began,
            self.claims(runs, settings),
            curves,
            (*data.notes, *notes),
            faithful,
            traces=tuple(traces),
            files=files,
        )

    def run(self, kind: Kind, settings: Settings, data: Images, seed: int) -> "Fit":
        torch.manual_seed(seed)
        model = self.network(kind, settings, data.classes)
        x, y = (part[: settings.rows or None] for part in data.train)
        batch = kind.batch if kind.batch and settings.published else settings.batch
        batches = Batches(x, y, batch, seed, settings.shift, settings.flip, settings.shuffled)
        optimizer = self.optimizer(model.parameters(), settings.rate)
        return fit(
            model,
            optimizer,
            batches,
            data,
            lambda step: settings.rate / (1 + settings.decay * step),
            settings.epochs,
        )

    def claims(self, runs: Sequence[dict[str, "Fit"]], settings: Settings) -> list[Claim]:
        """The article's table, with what it shows where its protocol was followed; then times."""
        claims: list[Claim] = []
        for key in runs[0]:
            fits = [run[key] for run in runs]
            if settings.published:
                claims.append(self.best_epoch(key, fits))
            else:
                claims += claimed(self.rows(key), fits, f"{key}: ")
        times = [slower(key, self.clock) for key in runs[0] if self.clock]
        return claims + claimed(times, runs)

    def best_epoch(self, key: str, fits: Sequence["Fit"]) -> Claim:
        """As the article has it: the median over the seeds."""
        best = float(median(fit.best for fit in fits))
        name = f"{key}: best epoch on the test part"
        source = self.source if key in self.published else ""
        return Claim(name, self.published.get(key), best, source=source)

    def rows(self, key: str) -> tuple[Row, Row]:
        """A net's accuracies, with the article's beside them."""
        return (
            Row(
                "test accuracy at the best validation",
                lambda fit: fit.chosen,
                self.published.get(key),
                self.low.get(key),
                self.high.get(key),
                self.source if key in self.published else "",
            ),
            Row("test accuracy at the end", lambda fit: fit.last),
        )


def slower(key: str, clock: str) -> Row:
    return Row(f"{key}: time / {clock}", lambda run: run[key].seconds / run[clock].seconds)


@dataclass(frozen=True)
class Fit:
    """One run. Accuracies on the test part: at the look with the best validation accuracy, at the
    last look, and the best of all looks, as the original published; path: of all looks; validation:
    on that part; times: of the looks. gradients: norm of the gradient of every layer's weight
    before the first step; dead: the share of dead units of every activation at the end. weights: as
    safetensors, at the best validation accuracy and at the end.
    """

    chosen: float
    last: float
    best: float
    path: tuple[float, ...]
    validation: tuple[float, ...]
    times: tuple[float, ...]
    gradients: tuple[float, ...]
    dead: tuple[float, ...]
    parameters: int
    seconds: float
    weights: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    data: Images,
    rate: Callable[[int], float],
    epochs: int,
) -> Fit:
    """Train, with a look after each epoch."""
    validation: list[float] = []
    test: list[float] = []
    times: list[float] = []
    weights: dict[str, bytes] = {}

    def look(state: State) -> None:
        validation.append(scores(state.model, data.validation)[1])
        test.append(scores(state.model, data.test)[1])
        times.append(time.time())
        if validation[-1] == max(validation):
            weights["best"] = save(state.model.state_dict())

    gradients = gradient_norms(model, *next(iter(batches.range(0, 1))))
    state = State(model, optimizer, batches.seed)
    began = time.perf_counter()
    train(state, batches, objective, rate, steps=batches.per_epoch, rounds=epochs, hooks=[look])
    seconds = time.perf_counter() - began
    weights["last"] = save(model.state_dict())
    return Fit(
        chosen=test[validation.index(max(validation))],
        last=test[-1],
        best=max(test),
        path=tuple(test),
        validation=tuple(validation),
        times=tuple(times),
        gradients=gradients,
        dead=tuple(dead_units(model, data.validation[0][:500]).values()),
        parameters=count_parameters(model),
        seconds=seconds,
        weights=weights,
    )


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, ...]:
    """Of the weight of every linear and convolution layer, in order."""
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    gradients = torch.autograd.grad(objective(model, x, y), weights)
    return tuple(float(gradient.norm()) for gradient in gradients)


def drawn(name: str, fit: Fit) -> list[Curve]:
    """Accuracy by epoch; gradients and dead units by layer."""

    def curve(panel: str, values: Sequence[float]) -> Curve:
        return Curve(panel, name, tuple(range(1, len(values) + 1)), tuple(values))

    # what underflowed still has a place on a logarithmic axis
    norms = [max(norm, 1e-30) for norm in fit.gradients]
    return [curve("accuracy", fit.path), curve("gradients", norms), curve("dead", fit.dead)]


def traced(name: str, fit: Fit) -> list[Trace]:
    """Under the tag of the original, and the test accuracies beside it."""
    steps = tuple(range(1, len(fit.path) + 1))
    run = f"{name}-{int(fit.times[0])}"
    return [
        Trace(run, "val_acc", steps, fit.validation, fit.times),
        Trace(run, "test_acc", steps, fit.path, fit.times),
    ]


def checkpoints(name: str, fit: Fit) -> dict[str, bytes]:
    """The weights of one run, by the path of their file."""
    file = re.sub(r"[^A-Za-z0-9.+-]+", "-", name)
    return {
        f"checkpoints/{file}-{which}.safetensors": content for which, content in fit.weights.items()
    }


def told(name: str, fit: Fit) -> str:
    """One line of what a reader must know of a run."""
    dead = 100 * sum(fit.dead) / len(fit.dead)
    return (
        f"{name}: {fit.parameters} parameters, {fit.seconds:.0f} s, gradient norms "
        f"{fit.gradients[0]:.1e} (first layer) and {fit.gradients[-1]:.1e} (last) at the "
        f"start, {dead:.0f} % of units dead at the end"
    )
