"""What the experiments with linked activations share: the activations under test, their starts, and one training run."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.experiments.images import Images, scores
from morphogen.layers.linked import LKSELU, LKPReLU, LKReLU, LKSwish, difference, looks_linear_, variance_
from morphogen.measures.dead import dead_units
from morphogen.resize.apply import count_parameters
from morphogen.train import Batches, State, train


@dataclass(frozen=True)
class Kind:
    """An activation under test. build: units -> module. widen: features it makes of one. factor: of all widths, cut to a whole
    number as the original does. norm: a batch norm before it. start: "glorot" (uniform, the original's), "he", "looks-linear"
    or "variance", of the layers that read it."""

    build: Callable[[int], nn.Module]
    widen: int = 1
    factor: float = 1.0
    norm: bool = False
    start: str = "glorot"

    def units(self, width: int) -> int:
        return int(self.factor * width)


def _prelu(units: int) -> nn.Module:
    return nn.PReLU(units, init=0.0)


ROOT = math.sqrt(2)
# The original's, by its names; its LK-PReLU never trained its slopes.
ORIGINAL: dict[str, Kind] = {
    "ReLU": Kind(lambda units: nn.ReLU()),
    "LK-ReLU": Kind(lambda units: LKReLU(), 2),
    "ReLU √2": Kind(lambda units: nn.ReLU(), factor=ROOT),
    "PReLU": Kind(_prelu),
    "LK-PReLU": Kind(lambda units: LKPReLU(units, 0.0, frozen=True), 2),
    "PReLU √2": Kind(_prelu, factor=ROOT),
    "BN+ReLU": Kind(lambda units: nn.ReLU(), norm=True),
    "SELU": Kind(lambda units: nn.SELU()),
    "LK-SELU": Kind(lambda units: LKSELU(), 2),
    "SELU √2": Kind(lambda units: nn.SELU(), factor=ROOT),
    "Swish": Kind(lambda units: nn.SiLU()),
    "LK-Swish": Kind(lambda units: LKSwish(), 2),
    "Swish √2": Kind(lambda units: nn.SiLU(), factor=ROOT),
}
# With the start that belongs to each: without these, the effect of linking cannot be told from that of scale.
STARTED: dict[str, Kind] = {
    "ReLU, He": Kind(lambda units: nn.ReLU(), start="he"),
    "LK-ReLU, looks linear": Kind(lambda units: LKReLU(), 2, start="looks-linear"),
    "LK-PReLU, trained, looks linear": Kind(lambda units: LKPReLU(units), 2, start="looks-linear"),
    "LK-SELU, variance": Kind(lambda units: LKSELU(), 2, start="variance"),
    "LK-Swish, looks linear": Kind(lambda units: LKSwish(), 2, start="looks-linear"),
}


def started(layer: nn.Module, kind: Kind, reads: bool) -> nn.Module:
    """A layer with the weights of its start, biases 0. reads: whether it reads the activation, not the input."""
    weight, bias = layer.weight, layer.bias
    if kind.start == "glorot":
        nn.init.xavier_uniform_(weight)  # type: ignore[arg-type]
    elif not reads or kind.start == "he":
        nn.init.kaiming_normal_(weight, nonlinearity="relu")  # type: ignore[arg-type]
    elif kind.start == "looks-linear":
        looks_linear_(layer, difference(kind.build(1)) or 1.0)
    else:
        variance_(layer, kind.build(1))
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
    return layer


@dataclass(frozen=True)
class Fit:
    """One run. Accuracies on the test part: at the look with the best validation accuracy, at the last look, and the best of
    all looks, as the original published. gradients: norm of the gradient of every layer's weight before the first step; dead:
    the share of dead units of every activation at the end."""

    chosen: float
    last: float
    best: float
    path: tuple[float, ...]
    gradients: tuple[float, ...]
    dead: tuple[float, ...]
    parameters: int
    seconds: float


def fit(
    model: nn.Module, optimizer: Optimizer, batches: Batches, data: Images, rate: Callable[[int], float], steps: int,
    rounds: int,
) -> Fit:  # fmt: skip
    """Train for `rounds` rounds of `steps` steps, with a look after each."""
    looks: list[tuple[float, float]] = []

    def look(state: State) -> None:
        looks.append((scores(state.model, data.validation)[1], scores(state.model, data.test)[1]))

    gradients = gradient_norms(model, *next(iter(batches.range(0, 1))))
    state, began = State(model, optimizer, batches.seed), time.perf_counter()
    train(state, batches, objective, rate, steps=steps, rounds=rounds, hooks=[look])
    seconds = time.perf_counter() - began
    chosen = max(looks, key=lambda pair: pair[0])[1]
    path = tuple(test for _, test in looks)
    dead = tuple(dead_units(model, data.validation[0][:500]).values())
    return Fit(chosen, path[-1], max(path), path, gradients, dead, count_parameters(model), seconds)


def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, ...]:
    """Of the weight of every linear and convolution layer, in order."""
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    gradients = torch.autograd.grad(objective(model, x, y), weights)
    return tuple(float(gradient.norm()) for gradient in gradients)


def middle(values: Sequence[float]) -> float:
    """The median, which the original's tables show."""
    return float(median(values))
