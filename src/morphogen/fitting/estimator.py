"""`fit` behind the interface of scikit-learn."""

import copy
import logging as python_logging
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import nn

from morphogen.data.dataset import Dataset
from morphogen.data.preparation import Preparation, fit_preparation, numbers_of
from morphogen.fitting.encoding import encoder, far_from_zero
from morphogen.fitting.fit import FAR, fit
from morphogen.fitting.problem import PolicyName, Settings, Wiring
from morphogen.record import Change, Layer, Round, Task
from morphogen.report.live import display as make_display
from morphogen.tracing.program import dtype_of

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class _Rows:
    """What is given of the rows beside x and y; further: rows that decide, as (x, y)."""

    weight: np.ndarray | None
    groups: np.ndarray | None
    further: tuple[np.ndarray, np.ndarray] | None


class _Morphogen(BaseEstimator):  # type: ignore[misc]
    """What both estimators share. See them for the parameters."""

    prepare_: Preparation | None

    def __init__(
        self,
        budget: int | None = None,
        seconds: float | None = None,
        policy: PolicyName = "trial",
        device: str = "cpu",
        random_state: Any = None,
        wiring: Wiring = "layers",
        members: int = 1,
        distillation: bool = True,
        verbose: bool = False,
        logging: bool = False,
    ) -> None:
        self.budget = budget
        self.seconds = seconds
        self.policy = policy
        self.device = device
        self.random_state = random_state
        self.wiring = wiring
        self.members = members
        self.distillation = distillation
        self.verbose = verbose
        self.logging = logging

    def _read(self, X: Any, y: Any, numeric: bool) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) of the training rows: a table as it is prepared, an array as it stands."""
        if not isinstance(X, pd.DataFrame):
            self.prepare_ = None
            x, y = validate_data(
                self, X, y, dtype=np.float64, ensure_min_samples=2, y_numeric=numeric
            )
            return x, y
        validate_data(self, X, y, skip_check_array=True)
        y = _labels(y, numeric)
        check_consistent_length(X, y)
        if len(X) < 2:
            raise ValueError(f"X has {len(X)} sample; give at least 2")
        self.prepare_ = fit_preparation(X.rename(columns=str))
        return self.prepare_(X.rename(columns=str)), y

    def _matrix(self, X: Any) -> np.ndarray:
        """What the network takes, of rows as `fit` took them."""
        if self.prepare_ is None:
            return np.asarray(validate_data(self, X, reset=False, dtype=np.float64))
        validate_data(self, X, reset=False, skip_check_array=True)
        if not isinstance(X, pd.DataFrame):
            names = getattr(self, "feature_names_in_", range(self.n_features_in_))
            X = pd.DataFrame(X, columns=names)
        return self.prepare_(X.rename(columns=str))

    def _fit(
        self, x: np.ndarray, y: np.ndarray, task: Task, classes: tuple[str, ...], rows: _Rows
    ) -> Self:
        prepare = self.prepare_ or numbers_of(x)
        # what prepares an array is a part of the network
        front = encoder(prepare) if self.prepare_ is None else None
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        settings = Settings(
            self.budget,
            int(seed),
            self.seconds,
            self.device,
            self.policy,
            self.wiring,
            distillation=self.distillation,
            members=self.members,
        )
        data = _dataset(_encoded(front, x), y, task, classes, rows.weight, rows.groups, prepare)
        if rows.further is not None:
            x_held, y_held = rows.further
            data = _with_held(data, _encoded(front, x_held), y_held)
        with self._display(data.metric) as display:
            fitted = fit(data, settings, display=display)
        network = fitted.plain.cpu()
        kind = dtype_of(network)
        if front is not None:
            # far from 0, in spreads, float32 would lose what the columns or the target say
            kind = torch.float64 if far_from_zero(prepare, FAR) else kind
            layers = dict(network.double().named_children())
            network = nn.Sequential(OrderedDict(encode=front, **layers)).eval()
        self._kind = torch.float64 if kind is torch.float64 else torch.float32
        self.network_ = network.double()
        self.history_: tuple[Round, ...] = fitted.report.rounds
        self.changes_ = fitted.report.changes
        self.structure_: tuple[Layer, ...] = fitted.report.result.shape
        self.n_iter_ = fitted.report.rounds[-1].round
        return self

    def _display(self, metric: str) -> Any:
        if self.verbose:
            return make_display(False, metric=metric)
        return nullcontext(_Log() if self.logging else None)

    def to_torch(self) -> nn.Sequential:
        """The found network as plain modules, in evaluation mode, that take the columns as given to
        `fit`; of an estimator fitted on a DataFrame, what `prepare_(frame)` makes of it.

        In float32; in float64 where a column or the target is so far from 0 for its spread, as
        seconds since 1970 are, that float32 would lose it. Output: logits (batch, classes), or the
        target (batch, 1).
        """
        check_is_fitted(self)
        return copy.deepcopy(self.network_).to(self._kind)

    def _output(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        x = self._matrix(X).astype(np.float64)
        with torch.no_grad():
            return self.network_(torch.as_tensor(x)).numpy()  # type: ignore[no-any-return]


class MorphogenClassifier(ClassifierMixin, _Morphogen):  # type: ignore[misc]
    """A classifier whose network finds its own width and depth.

    budget: most parameters. seconds: for the search. policy: a name of `POLICIES`. device: a torch
    device. wiring: "layers" or "dag". members: networks that are averaged. distillation: whether
    the network learns from folds of several models beside the labels, which takes most of the time.
    random_state: an int for reproducible results. verbose: show the progress. logging: to the
    logger "morphogen". class_weight: "balanced", or the weight of each class. After `fit`:
    `history_` (one `Round` a round), `changes_`, `structure_` (the layers), `classes_`. Columns of
    an array are prepared inside, also in the network of `to_torch()`; those of a DataFrame, with
    gaps, text and dates, by `prepare_`: as `morphogen fit` prepares a table.
    """

    def __init__(
        self,
        budget: int | None = None,
        seconds: float | None = None,
        policy: PolicyName = "trial",
        device: str = "cpu",
        random_state: Any = None,
        wiring: Wiring = "layers",
        members: int = 1,
        distillation: bool = True,
        verbose: bool = False,
        logging: bool = False,
        class_weight: Any = None,
    ) -> None:
        super().__init__(
            budget,
            seconds,
            policy,
            device,
            random_state,
            wiring,
            members,
            distillation,
            verbose,
            logging,
        )
        self.class_weight = class_weight

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        groups: Any = None,
        validation_data: Pair | None = None,
    ) -> Self:
        """X: (n, features) numbers, or a DataFrame. y: (n,) labels of any kind, at least two
        different ones. sample_weight: (n,) in the loss. groups: (n,), rows of one group are never
        parted when some are held out. validation_data: (X, y) that decide in their place.
        """
        x, y = self._read(X, y, numeric=False)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only ({self.classes_[0]!r}); a classifier needs at least two"
            )
        weight = _weights(sample_weight, len(x))
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y)
            weight = by_class if weight is None else weight * by_class
        further = None
        if validation_data is not None:
            y_held = _labels(validation_data[1], numeric=False)
            if unknown := sorted(set(y_held.tolist()) - set(self.classes_.tolist())):
                raise ValueError(f"validation_data has the class {unknown[0]!r}, which y has not")
            places = np.searchsorted(self.classes_, y_held).astype(np.int64)
            further = (self._matrix(validation_data[0]), places)
        rows = _Rows(weight, _groups(groups, len(x)), further)
        names = tuple(map(str, self.classes_))
        return self._fit(x, labels.astype(np.int64), "classification", names, rows)

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
    `MorphogenClassifier`, without classes.
    """

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        groups: Any = None,
        validation_data: Pair | None = None,
    ) -> Self:
        """X: (n, features) numbers, or a DataFrame. y: (n,) numbers. The others as in
        `MorphogenClassifier.fit`.
        """
        x, y = self._read(X, y, numeric=True)
        further = None
        if validation_data is not None:
            y_held = _labels(validation_data[1], numeric=True)
            further = (self._matrix(validation_data[0]), y_held)
        rows = _Rows(_weights(sample_weight, len(x)), _groups(groups, len(x)), further)
        return self._fit(x, y.astype(np.float64), "regression", (), rows)

    def predict(self, X: Any) -> np.ndarray:
        """The target of each row, shape (n,)."""
        return np.asarray(self._output(X)[:, 0])


class _Log:
    """Progress as lines of the logger "morphogen"."""

    def __init__(self) -> None:
        self.logger = python_logging.getLogger("morphogen")

    def round(self, r: Round, time_left: float | None) -> None:
        self.logger.info(
            "round %d (%s): validation loss %.4g, score %.4g, %d parameters",
            r.round,
            r.phase,
            r.valid_loss,
            r.valid_score,
            r.parameters,
        )

    def change(self, c: Change) -> None:
        self.logger.info("%s", c)

    def say(self, text: str) -> None:
        self.logger.info("%s", text)


def _dataset(
    x: np.ndarray,
    y: np.ndarray,
    task: Task,
    classes: tuple[str, ...],
    weight: np.ndarray | None,
    groups: np.ndarray | None,
    prepare: Preparation,
) -> Dataset:
    return Dataset(
        "arrays",
        task,
        x,
        y,
        x[:0],
        y[:0],
        classes,
        prepare=prepare,
        weight=_of_mean_one(weight),
        groups=groups,
    )


def _with_held(data: Dataset, x: np.ndarray, y: np.ndarray) -> Dataset:
    """With further rows, which decide and weigh 1."""
    weight = data.weight
    return replace(
        data,
        x_train=np.concatenate([data.x_train, x]),
        y_train=np.concatenate([data.y_train, y]),
        weight=None if weight is None else np.concatenate([weight, np.ones(len(x))]),
        groups=None,
        held=len(data.x_train) + np.arange(len(x)),
    )


def _encoded(front: nn.Module | None, x: np.ndarray) -> np.ndarray:
    """What the network learns from, in float32; x itself where it has been prepared."""
    if front is None:
        return x
    with torch.no_grad():
        return np.asarray(front(torch.tensor(x, dtype=torch.float64)).float())


def _labels(y: Any, numeric: bool) -> np.ndarray:
    """(n,) labels, or finite numbers. ValueError: anything else."""
    y = column_or_1d(y, warn=True)
    if pd.isna(y).any():
        raise ValueError("y has missing values or NaN; remove those rows")
    return np.asarray(check_array(y, ensure_2d=False, dtype=np.float64 if numeric else None))


def _weights(sample_weight: Any, rows: int) -> np.ndarray | None:
    """ValueError: not (n,) numbers that are not negative."""
    if sample_weight is None:
        return None
    weight = check_array(
        sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight"
    )
    if weight.shape != (rows,):
        raise ValueError(f"sample_weight has shape {weight.shape}; X has {rows} rows")
    if weight.min() < 0 or not weight.sum() > 0:
        raise ValueError("sample_weight must not be negative, and one weight must not be zero")
    return np.asarray(weight)


def _of_mean_one(weight: np.ndarray | None) -> np.ndarray | None:
    return None if weight is None else weight / weight.mean()


def _groups(groups: Any, rows: int) -> np.ndarray | None:
    """A code for each row. ValueError: not (n,)."""
    if groups is None:
        return None
    codes = pd.factorize(column_or_1d(groups))[0]
    if len(codes) != rows:
        raise ValueError(f"groups has {len(codes)} values; X has {rows} rows")
    return np.asarray(codes, np.int64)
