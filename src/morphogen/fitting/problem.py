"""A data set as a problem for a network: `Problem`, its split, its loss, its score, and what a user
may ask for, `Settings`.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.data.dataset import Dataset
from morphogen.data.split import holdout
from morphogen.fitting.metrics import metric_for, scores
from morphogen.fitting.recipe import Recipe, recipe_for
from morphogen.layers.penalty import quadratic
from morphogen.layers.protocol import learns_size
from morphogen.models import convnet, dagnet, mlp
from morphogen.threads import threads
from morphogen.training.train import Batches, predict

_WORTH_THREADS = 50_000  # numbers in a batch from which several threads are faster than one
LOOKED_AT = 2000  # validation examples of one evaluation; more would decide nothing


PolicyName = Literal["trial", "prune-expand", "gradmax", "natural", "firefly", "stochastic"]
Wiring = Literal["layers", "dag"]


@dataclass(frozen=True)
class Settings:
    """What a user may ask for. budget: most parameters. seconds: for the search. policy:
    a name of POLICIES. wiring: a name of WIRINGS. metric: a name of METRICS, shown beside the loss.
    """

    budget: int | None = None
    seed: int = 0
    seconds: float | None = None
    device: str = "cpu"
    policy: PolicyName = "trial"
    wiring: Wiring = "layers"
    metric: str | None = None


WIRINGS: Mapping[Wiring, frozenset[PolicyName]] = {
    "layers": frozenset(),
    "dag": frozenset({"gradmax", "natural"}),
}
"""What a network starts from, layers with a learned depth or neurons that read everything before
them, and the policies that cannot change it: a DAG's operation cannot be differentiated twice.
"""


class Problem:
    """A data set as tensors on a device, with its split, loss and score."""

    def __init__(self, dataset: Dataset, recipe: Recipe | None, settings: Settings) -> None:
        seed = settings.seed
        device = settings.device
        self.wiring = settings.wiring
        self.dataset = dataset
        self.regression = dataset.task == "regression"
        self.metric = metric_for(settings.metric, dataset.task)
        # a DAG knows no neighbours
        self.images = dataset.x_train.ndim == 4 and settings.wiring == "layers"
        inside, held = holdout(dataset, seed)
        self.recipe = recipe or recipe_for(self.images, len(inside), dataset.flip)
        y = dataset.y_train.astype(np.float64)
        self.mean, self.scale = (
            (float(y.mean()), float(y.std()) or 1.0) if self.regression else (0.0, 1.0)
        )
        self.device = torch.device(device)
        x = torch.as_tensor(dataset.x_train, device=self.device)
        target = self._target(dataset.y_train)
        self.x = x[inside]
        self.y = target[inside]
        looked = held[:LOOKED_AT]
        self.looked = (x[looked], target[looked])
        self.outputs = 1 if self.regression else max(2, len(dataset.classes))
        self.batches = Batches(
            self.x,
            self.y,
            min(self.recipe.batch, len(self.x)),
            seed,
            self.recipe.shift,
            self.recipe.flip,
        )

    def _target(self, y: np.ndarray) -> Tensor:
        if self.regression:
            return torch.as_tensor(
                (y.astype(np.float64) - self.mean) / self.scale,
                dtype=torch.float32,
                device=self.device,
            )
        return torch.as_tensor(y, dtype=torch.long, device=self.device)

    @property
    def example(self) -> Tensor:
        """A few rows to trace and to compare with; at least two."""
        return self.x[:64] if len(self.x) > 1 else self.x.repeat(2, *(1,) * (self.x.dim() - 1))

    def build(self) -> nn.Module:
        """The first, tiny network."""
        width = self.recipe.width
        dropout = self.recipe.dropout
        if self.wiring == "dag":
            return dagnet(self.x[0].numel(), self.outputs, width)
        if self.images:
            channels, height, breadth = self.x.shape[1:]
            model = convnet((channels, height, breadth), self.outputs, width, dropout)
            # up to twice as fast on a CPU, where widths are multiples of 8
            return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
        return mlp(self.x.shape[1], self.outputs, width, dropout)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Task loss of a batch, with smoothed labels where asked, plus the penalty of the
        depths.
        """
        out = model(x)
        loss = (
            F.mse_loss(out[:, 0], y)
            if self.regression
            else F.cross_entropy(out, y, label_smoothing=smoothing)
        )
        for layer in model.modules():
            if learns_size(layer):
                loss = loss + quadratic(layer, self.recipe.depth_penalty)
        return loss

    def losses(self, model: nn.Module) -> Tensor:
        """Loss of each validation example that is looked at, shape (n,)."""
        return self._losses(predict(model, self.looked[0]), self.looked[1])

    def observation(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss and score on the validation examples that are looked at."""
        out = predict(model, self.looked[0])
        return float(self._losses(out, self.looked[1]).mean()), self._score(out, self.looked[1])

    def _losses(self, out: Tensor, y: Tensor) -> Tensor:
        return (
            (out[:, 0] - y).square()
            if self.regression
            else F.cross_entropy(out, y, reduction="none")
        )

    def _score(self, out: Tensor, y: Tensor) -> float:
        """The metric, of numbers in the target's own unit; NaN where it is not defined."""
        y = y.double() * self.scale + self.mean if self.regression else y
        score = self.metric.of(y.cpu().numpy(), self.answers(out))
        return math.nan if score is None else score

    def answers(self, out: Tensor) -> np.ndarray:
        """What a network that was trained here says, as metrics take it: probabilities
        (n, classes), or numbers (n,) in the target's own unit.
        """
        if self.regression:
            return np.asarray((out[:, 0].double() * self.scale + self.mean).cpu())
        return np.asarray(out.double().softmax(1).cpu())

    def test_scores(self, model: nn.Module) -> tuple[float | None, float | None]:
        """(loss, metric) on the test part, None where there is none."""
        if not len(self.dataset.x_test):
            return None, None
        out = predict(model, torch.as_tensor(self.dataset.x_test, device=self.device))
        return scores(self.metric, self.dataset.y_test, self.answers(out))


def threads_for(problem: Problem) -> AbstractContextManager[None]:
    """One thread where a batch is small. Two would be no faster, waiting for each other at every
    operation, and many times slower once another process wants a core; and the result would depend
    on how many there are.
    """
    small = problem.batches.size * problem.x[0].numel() < _WORTH_THREADS
    return threads(1 if small else None)


@torch.no_grad()
def to_unit(plain: nn.Sequential, mean: float, scale: float) -> None:
    """Fold the target's standardisation into the last layer, computed in float64 whatever its own
    type.
    """
    last = plain[-1]
    assert isinstance(last, nn.Linear)
    last.weight.copy_(last.weight.double() * scale)
    last.bias.copy_(last.bias.double() * scale + mean)
