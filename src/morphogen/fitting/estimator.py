"""`fit` behind the interface of scikit-learn."""

import copy
from collections import OrderedDict
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from morphogen.data.dataset import Dataset
from morphogen.fitting.fit import FAR, fit
from morphogen.fitting.problem import PolicyName, Settings, Wiring
from morphogen.record import Layer, Round, Task
from morphogen.tracing.program import dtype_of


class _Morphogen(BaseEstimator):  # type: ignore[misc]
    """What both estimators share. See them for the parameters."""

    def __init__(
        self,
        budget: int | None = None,
        seconds: float | None = None,
        policy: PolicyName = "trial",
        device: str = "cpu",
        random_state: Any = None,
        wiring: Wiring = "layers",
    ) -> None:
        self.budget = budget
        self.seconds = seconds
        self.policy = policy
        self.device = device
        self.random_state = random_state
        self.wiring = wiring

    def _fit(self, x: np.ndarray, y: np.ndarray, task: Task, classes: tuple[str, ...]) -> Self:
        scaler = StandardScaler().fit(x)
        data = Dataset(
            "arrays",
            task,
            scaler.transform(x).astype(np.float32),
            y,
            x[:0].astype(np.float32),
            y[:0],
            classes,
        )
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        settings = Settings(
            self.budget, int(seed), self.seconds, self.device, self.policy, self.wiring
        )
        fitted = fit(data, settings)
        # far from 0, in spreads, float32 would lose what the columns or the target say
        far = np.abs(scaler.mean_) > FAR * scaler.scale_
        self._kind = (
            torch.float64 if far.any() or dtype_of(fitted.plain) is torch.float64 else torch.float32
        )
        self.network_ = _with_scaler(fitted.plain.cpu().double(), scaler)
        self.history_: tuple[Round, ...] = fitted.report.rounds
        self.changes_ = fitted.report.changes
        self.structure_: tuple[Layer, ...] = fitted.report.rounds[-1].shape
        self.n_iter_ = fitted.report.rounds[-1].round
        return self

    def to_torch(self) -> nn.Sequential:
        """The found network as plain modules, in evaluation mode, that take the columns as given to
        `fit`.

        In float32; in float64 where a column or the target is so far from 0 for its spread, as
        seconds since 1970 are, that float32 would lose it. Output: logits (batch, classes), or the
        target (batch, 1).
        """
        check_is_fitted(self)
        return copy.deepcopy(self.network_).to(self._kind)

    def _output(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        x = validate_data(self, x, reset=False, dtype=np.float64)
        with torch.no_grad():
            return self.network_(torch.as_tensor(x)).numpy()  # type: ignore[no-any-return]


class MorphogenClassifier(ClassifierMixin, _Morphogen):  # type: ignore[misc]
    """A classifier whose network finds its own width and depth.

    budget: most parameters. seconds: for the search. policy: a name of `POLICIES`. device: a torch
    device. wiring: "layers" or "dag". random_state: an int for reproducible results. After `fit`:
    `history_` (one `Round` a round), `changes_`, `structure_` (the layers), `classes_`. Columns are
    standardised inside, also in the network of `to_torch()`.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """X: (n, features) numbers. y: (n,) labels of any kind, at least two different ones."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only ({self.classes_[0]!r}); a classifier needs at least two"
            )
        return self._fit(
            X, labels.astype(np.int64), "classification", tuple(map(str, self.classes_))
        )

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class in the order of `classes_`, shape (n, classes)."""
        logits = self._output(X)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(shifted / shifted.sum(1, keepdims=True))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape (n,)."""
        best = self._output(X).argmax(1)
        return np.asarray(self.classes_[best])


class MorphogenRegressor(RegressorMixin, _Morphogen):  # type: ignore[misc]
    """A regressor whose network finds its own width and depth. Parameters and attributes as in
    `MorphogenClassifier`.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """X: (n, features) numbers. y: (n,) numbers."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, y_numeric=True)
        return self._fit(X, y.astype(np.float64), "regression", ())

    def predict(self, X: Any) -> np.ndarray:
        """The target of each row, shape (n,)."""
        return np.asarray(self._output(X)[:, 0])


def _with_scaler(network: nn.Sequential, scaler: StandardScaler) -> nn.Sequential:
    """The network behind the standardisation of the columns, as a batch norm that never learns.

    Folded into the first layer it would subtract two large numbers wherever a column's mean is far
    above its spread.
    """
    first = nn.BatchNorm1d(len(scaler.mean_), eps=0.0, affine=False, dtype=torch.float64)
    first.running_mean = torch.as_tensor(scaler.mean_)
    first.running_var = torch.as_tensor(scaler.scale_) ** 2
    return nn.Sequential(OrderedDict(standardise=first, **dict(network.named_children()))).eval()
