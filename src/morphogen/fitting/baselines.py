"""Scikit-learn's answers to the same data: a linear model and gradient boosting; where more is
asked for, one multi-layer perceptron and a grid of twelve.
"""

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from morphogen.data.dataset import Dataset
from morphogen.deadline import NEVER, Deadline
from morphogen.fitting.metrics import Metric, scores
from morphogen.record import TableRow

# 12 configurations
GRID = {
    "hidden_layer_sizes": [(32,), (100,), (32, 32), (100, 100), (256,), (256, 256)],
    "alpha": [1e-4, 1e-2],
}
# iterations between two looks at the clock
_NEWTON_STEPS = 50
_MOST_NEWTON = 1000
_TREES = 10
_GRID_COST = 20.0  # times one perceptron: three folds of twelve, of two thirds of the rows


@dataclass(frozen=True)
class _Part:
    """What every model is given. y: a regression's in spreads, from its mean; in float64 until it
    is centred, since far from 0 float32 has lost what is to be predicted.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: Any = 0.0
    scale: Any = 1.0


def baselines(
    dataset: Dataset,
    metric: Metric,
    seed: int,
    more: bool = False,
    until: Deadline = NEVER,
    each: float = math.inf,
) -> Iterator[TableRow]:
    """One row each, in order of cost, as soon as it is known. Trained on the whole training part,
    images flattened.

    more: the perceptrons too. until, each: when all of them must have ended, and how many seconds
    one may take: what improves step by step stops then, which its row says; what has no time left
    is not begun.
    """
    part = _part(dataset)
    seed %= 2**32
    regression = dataset.task == "regression"
    for name, fitted in (("linear model", _linear), ("gradient boosting", _boosting)):
        if until.left() <= 0:
            yield _skipped(name)
            continue
        if fitted is _boosting and part.y.ndim > 1:
            yield TableRow(name, None, None, None, "skipped: it predicts one number only")
            continue
        began = time.perf_counter()
        model, seen, note = fitted(part, seed, until.within(each))
        yield _row(name, model, seen, metric, time.perf_counter() - began, note)
    if more:
        yield from _perceptrons(part, metric, seed, regression, until)


def _part(dataset: Dataset) -> _Part:
    x, x_test = (part.reshape(len(part), -1) for part in (dataset.x_train, dataset.x_test))
    if dataset.task == "classification":
        return _Part(x, dataset.y_train, x_test, dataset.y_test, max(2, len(dataset.classes)))
    whole = dataset.y_train.astype(np.float64)
    mean = whole.mean(0)
    spread = whole.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    return _Part(x, (whole - mean) / scale, x_test, dataset.y_test, 0, mean, scale)


def _linear(part: _Part, seed: int, until: Deadline) -> tuple[Any, _Part, str]:
    """(ridge or logistic regression on standardised columns, what it was given, a note)."""
    scaler = StandardScaler().fit(part.x)
    part = replace(part, x=scaler.transform(part.x), x_test=scaler.transform(part.x_test))
    if not part.classes:
        return Ridge().fit(part.x, part.y), part, ""
    model = LogisticRegression(max_iter=_NEWTON_STEPS, warm_start=True)
    for reached in range(_NEWTON_STEPS, _MOST_NEWTON + 1, _NEWTON_STEPS):
        _fit(model, part.x, part.y)
        if model.n_iter_.max() < _NEWTON_STEPS:
            break
        if until.left() <= 0:
            return model, part, f"stopped after {reached} iterations"
    return model, part, ""


def _boosting(part: _Part, seed: int, until: Deadline) -> tuple[Any, _Part, str]:
    """(histogram gradient boosting with its defaults, what it was given, a note)."""
    kind = HistGradientBoostingClassifier if part.classes else HistGradientBoostingRegressor
    model = kind(random_state=seed, warm_start=True)
    most = model.max_iter
    for reached in range(_TREES, most + 1, _TREES):
        model.set_params(max_iter=reached)
        model.fit(part.x, part.y)
        if model.n_iter_ < reached:
            break  # by its own rule
        if reached < most and until.left() <= 0:
            return model, part, f"stopped after {reached} of {most} iterations"
    return model, part, ""


def _fit(model: Any, x: np.ndarray, y: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)


def _perceptrons(
    part: _Part, metric: Metric, seed: int, regression: bool, until: Deadline
) -> Iterator[TableRow]:
    kind = MLPRegressor if regression else MLPClassifier
    mlp = kind(random_state=seed, early_stopping=len(part.x) > 10_000)
    if until.left() <= 0:
        yield _skipped("MLP(100)")
        yield _skipped("best of 12 MLPs")
        return
    began = time.perf_counter()
    _fit(mlp, part.x, part.y)
    seconds = time.perf_counter() - began
    yield _row("MLP(100)", mlp, part, metric, seconds, "scikit-learn")
    if until.left() <= _GRID_COST * seconds:
        yield _skipped("best of 12 MLPs")
        return
    began = time.perf_counter()
    grid = GridSearchCV(mlp, GRID, cv=3)
    _fit(grid, part.x, part.y)
    seconds = time.perf_counter() - began
    yield _row(
        "best of 12 MLPs", grid.best_estimator_, part, metric, seconds, str(grid.best_params_)
    )


def _row(name: str, model: Any, part: _Part, metric: Metric, seconds: float, note: str) -> TableRow:
    loss, score = None, None
    if len(part.x_test):
        loss, score = scores(metric, part.y_test, _answers(model, part))
    return TableRow(name, score, _parameters(model), seconds, note, loss)


def _answers(model: Any, part: _Part) -> np.ndarray:
    """As metrics take them: probabilities of all classes, or numbers in the target's unit."""
    if not part.classes:
        return np.asarray(model.predict(part.x_test).astype(np.float64) * part.scale + part.mean)
    chances = np.zeros((len(part.x_test), part.classes))
    chances[:, model.classes_] = model.predict_proba(part.x_test)
    return chances


def _parameters(model: Any) -> int | None:
    """Numbers that were fitted; None of trees."""
    if hasattr(model, "coefs_"):
        return int(sum(w.size for w in (*model.coefs_, *model.intercepts_)))
    if hasattr(model, "coef_"):
        return int(np.size(model.coef_) + np.size(model.intercept_))
    return None


def _skipped(name: str) -> TableRow:
    return TableRow(name, None, None, None, "skipped: no time was left")
