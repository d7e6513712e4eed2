"""A data set as a problem for a network: `Problem`, its split, its loss, its score, and what a user
may ask for, `Settings`.
"""

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.data.dataset import Dataset
from morphogen.data.split import holdout
from morphogen.fitting.distillation import Distillation
from morphogen.fitting.linear import closest
from morphogen.fitting.metrics import metric_for, scores
from morphogen.fitting.recipe import Recipe, recipe_for
from morphogen.fitting.scaling import Scaling, to_unit
from morphogen.layers.penalty import quadratic
from morphogen.layers.protocol import learns_size
from morphogen.models import convnet, dagnet, mlp
from morphogen.policies.stopping import log_loss
from morphogen.threads import threads
from morphogen.training.train import Batches, generator, predict

_WORTH_THREADS = 50_000  # numbers in a batch from which several threads are faster than one
LOOKED_AT = 2000  # validation examples of one evaluation; more would decide nothing
NEARLY = 0.005  # share by which a linear model's loss may be above that of what it learns from
LABELS = 0.25  # share of the labels in the targets of a row of which a teacher speaks too


PolicyName = Literal["trial", "prune-expand", "gradmax", "natural", "firefly", "stochastic"]
Wiring = Literal["layers", "dag"]


@dataclass(frozen=True)
class Settings:
    """What a user may ask for. budget: most parameters. seconds: for the search. policy:
    a name of POLICIES. wiring: a name of WIRINGS. distillation: whether a table's network learns
    from the folds of several models beside the labels, see `fitting.distillation`. metric: a name
    of METRICS, shown beside the loss. members: how many networks, each from a search of its own,
    are averaged into one.
    """

    budget: int | None = None
    seed: int = 0
    seconds: float | None = None
    device: str = "cpu"
    policy: PolicyName = "trial"
    wiring: Wiring = "layers"
    metric: str | None = None
    distillation: bool = True
    members: int = 1


WIRINGS: Mapping[Wiring, frozenset[PolicyName]] = {
    "layers": frozenset(),
    "dag": frozenset({"gradmax", "natural"}),
}
"""What a network starts from, layers with a learned depth or neurons that read everything before
them, and the policies that cannot change it: a DAG's operation cannot be differentiated twice.
"""


class Problem:
    """A data set as tensors on a device, with its split, loss and score.

    Targets are (n, outputs): shares of the classes, or standardised numbers. distillation: what the
    training rows say by way of a teacher, see `fitting.distillation`.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe | None,
        settings: Settings,
        distillation: Distillation | None = None,
    ) -> None:
        self.seed = seed = settings.seed
        self.wiring = settings.wiring
        self.dataset = dataset
        self.distillation = distillation
        self.regression = dataset.task == "regression"
        self.metric = metric_for(settings.metric, dataset.task)
        # a DAG knows no neighbours
        self.images = dataset.x_train.ndim == 4 and settings.wiring == "layers"
        inside, held = holdout(dataset, seed)
        self.scaling = Scaling.of(dataset)
        self.device = torch.device(settings.device)
        x = torch.as_tensor(dataset.x_train, device=self.device)
        labels = self._targets(dataset.y_train)
        self.outputs = labels.shape[1]
        looked = held[:LOOKED_AT]
        self.truth = dataset.y_train[looked]
        self.looked = (x[looked], labels[looked])
        self.floor = torch.zeros(len(looked), device=self.device)
        self.x = x[inside]
        self.y = labels[inside]
        if distillation is not None:
            taught = torch.as_tensor(distillation.targets, device=self.device)
            self.looked = (x[looked], taught[looked])
            self.floor = distillation.loss - self._least(taught[looked])
            targets = LABELS * labels + (1 - LABELS) * taught
            points = torch.as_tensor(distillation.x, device=self.device)
            said = torch.as_tensor(distillation.y, device=self.device)
            self.x = torch.cat([x[inside], points])
            self.y = torch.cat([targets[inside], said])
        self.recipe = recipe or recipe_for(
            self.images, len(self.x), dataset.flip, distillation is not None
        )
        self.batches = Batches(
            self.x,
            self.y,
            min(self.recipe.batch, len(self.x)),
            seed,
            self.recipe.shift,
            self.recipe.flip,
            weight=self._weights(dataset, inside),
        )
        weight = np.ones(len(looked)) if dataset.weight is None else dataset.weight[looked]
        self.weight = torch.as_tensor(weight / weight.mean(), dtype=torch.float32).to(self.device)
        self.linear: nn.Linear | None = None
        if recipe is None and distillation is not None and settings.wiring == "layers":
            self._try_linear(distillation.loss)

    def _try_linear(self, least: float) -> None:
        """Do without a hidden layer where a network that said all that the teacher says would not
        be better: it would have the teacher's loss, `least`.
        """
        draw = generator(self.seed, 7)
        linear = closest(self.x, self.y, self.regression, self.batches.weight, draw)
        if linear is None:
            return
        loss = float(self.losses(nn.Sequential(linear)).mean())
        if log_loss(loss) - log_loss(least) < NEARLY:
            # it begins where it should end
            self.recipe = replace(self.recipe, width=0, rate=self.recipe.rate / 10)
            self.linear = linear

    def _weights(self, dataset: Dataset, inside: np.ndarray) -> Tensor | None:
        """Of what is trained on; points between rows count as a row each."""
        if dataset.weight is None:
            return None
        weight = torch.ones(len(self.x), dtype=torch.float64)
        weight[: len(inside)] = torch.as_tensor(dataset.weight[inside])
        return weight

    def _targets(self, y: np.ndarray) -> Tensor:
        if self.regression:
            return torch.as_tensor(self.scaling.standardised(y), device=self.device)
        classes = torch.as_tensor(y, dtype=torch.long, device=self.device)
        return F.one_hot(classes, max(2, len(self.dataset.classes))).float()

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
        select = self.recipe.feature_penalty > 0
        model = mlp(self.x.shape[1], self.outputs, width, dropout, select=select)
        if self.linear is not None:
            model.get_submodule("output").load_state_dict(self.linear.state_dict())
        return model

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Task loss of a batch, with smoothed labels where asked, plus the penalty of the
        depths.
        """
        out = model(x)
        loss = (
            F.mse_loss(out, y)
            if self.regression
            else F.cross_entropy(out, y, label_smoothing=smoothing)
        )
        for layer in model.modules():
            if learns_size(layer):
                loss = loss + quadratic(layer, self.recipe.depth_penalty)
        return loss

    def losses(self, model: nn.Module) -> Tensor:
        """Loss of each validation example that is looked at, shape (n,).

        With a teacher t, what a network s loses beside it, and the teacher's own loss out of fold:
        L(t) + KL(t, s), or L(t) + (t - s)^2. So an improvement is as large as that of the loss on
        labels would be, with far less noise.
        """
        return self._losses(predict(model, self.looked[0]))

    def observation(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss and score on the validation examples that are looked at."""
        out = predict(model, self.looked[0])
        return float(self._losses(out).mean()), self._score(out)

    def _least(self, y: Tensor) -> Tensor:
        """The least loss that targets leave: their entropy, or nothing."""
        return torch.zeros(len(y)).to(y) if self.regression else -torch.special.xlogy(y, y).sum(1)

    def _losses(self, out: Tensor) -> Tensor:
        y = self.looked[1]
        if self.regression:
            losses = (out - y).square().mean(1)
        else:
            losses = F.cross_entropy(out, y, reduction="none")
        return self.weight * (self.floor + losses)

    def _score(self, out: Tensor) -> float:
        """The metric, of numbers in the target's own unit; NaN where it is not defined."""
        score = self.metric.of(self.truth, self.answers(out))
        return math.nan if score is None else score

    def answers(self, out: Tensor) -> np.ndarray:
        """What a network that was trained here says, as metrics take it: probabilities
        (n, classes), or numbers (n,) in the target's own unit.
        """
        if self.regression:
            return self._in_unit(out)
        return np.asarray(out.double().softmax(1).cpu())

    def _in_unit(self, out: Tensor) -> np.ndarray:
        """Standardised numbers (n, targets) in the targets' own units; (n,) of one target."""
        scale = torch.as_tensor(self.scaling.scale, device=out.device)
        mean = torch.as_tensor(self.scaling.mean, device=out.device)
        numbers = np.asarray((out.double() * scale + mean).cpu())
        return numbers[:, 0] if numbers.shape[1] == 1 else numbers

    def test_scores(self, model: nn.Module) -> tuple[float | None, float | None]:
        """(loss, metric) on the test part, None where there is none."""
        if not len(self.dataset.x_test):
            return None, None
        out = predict(model, torch.as_tensor(self.dataset.x_test, device=self.device))
        return scores(self.metric, self.dataset.y_test, self.answers(out))

    def test_scores_in_unit(self, plain: nn.Sequential) -> tuple[float | None, float | None]:
        """`test_scores` of a network that says numbers in the targets' own units."""
        if self.regression:
            plain = copy.deepcopy(plain)
            to_unit(plain, self.scaling.inverse())
        return self.test_scores(plain)


def threads_for(problem: Problem) -> AbstractContextManager[None]:
    """One thread where a batch is small. Two would be no faster, waiting for each other at every
    operation, and many times slower once another process wants a core; and the result would depend
    on how many there are.
    """
    small = problem.batches.size * problem.x[0].numel() < _WORTH_THREADS
    return threads(1 if small else None)
