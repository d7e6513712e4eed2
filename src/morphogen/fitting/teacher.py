"""What several models of the training rows say together: `teach(rows, folds) -> Teacher`.

    t(x) = sum_m w_m (1/K) sum_k f_mk(x)

f_mk is the model of kind m that was fitted without fold k. The weights w_m are at least 0, add up
to 1, and give the out-of-fold predictions the least loss. A small network that learns t(x) beside
the labels comes close to all of them, and what it is judged by has far less noise than labels have.

Source: Breiman 1996, "Stacked regressions" (the weights); Hinton et al. 2015 (arXiv 1503.02531),
"Distilling the knowledge in a neural network". Differs: the teacher's kinds are a linear model,
perceptrons and gradient boosting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from morphogen.fitting.members import Members, Training, train_members

Folds = Sequence[tuple[np.ndarray, np.ndarray]]
Predict = Callable[[np.ndarray], np.ndarray]
"""x (n, features) -> probabilities, or standardised targets, (n, outputs)."""


@dataclass(frozen=True)
class Rows:
    """Training rows. x: (n, features). y: (n,) class indices, or (n, outputs) standardised targets.
    plain: the columns that are no bins, which trees and one of the linear models and of the
    networks read. weight: (n,).
    """

    x: np.ndarray
    y: np.ndarray
    outputs: int
    regression: bool
    plain: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Part:
    """Models of one kind. out_of_fold: what each row's model says of it that has not seen it,
    (n, outputs), NaN for rows that no fold holds out.
    """

    out_of_fold: np.ndarray
    predict: Predict


@dataclass(frozen=True)
class Teacher:
    """parts, with the weight of each. out_of_fold: of the mean, (n, outputs)."""

    parts: Mapping[str, Part]
    weights: Mapping[str, float]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Probabilities, or standardised targets, (n, outputs), in float32."""
        return self._mean({name: self.parts[name].predict(x) for name in self.weights})

    @property
    def out_of_fold(self) -> np.ndarray:
        return self._mean({name: self.parts[name].out_of_fold for name in self.weights})

    def _mean(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        weighed = [self.weights[name] * value for name, value in predictions.items()]
        return np.asarray(np.sum(weighed, 0), np.float32)


def teach(
    rows: Rows, folds: Folds, seed: int, stopped: Callable[[], bool] = lambda: False
) -> Teacher:
    """Fit every kind of `KINDS` on every fold, and weigh them. stopped: whether time is over, after
    which no further kind begins; at least one does.
    """
    parts: dict[str, Part] = {}
    for name, kind in KINDS.items():
        if parts and stopped():
            break
        if name.endswith("on bins") and len(rows.plain) == rows.x.shape[1]:
            continue  # there are none
        parts[name] = kind(rows, folds, seed, stopped)
    values = weigh([part.out_of_fold for part in parts.values()], rows)
    weights = dict(zip(parts, values.tolist(), strict=True))
    # what hardly counts would cost as much time as the others
    kept = {name: weight for name, weight in weights.items() if weight >= 0.02}
    total = sum(kept.values())
    return Teacher(parts, {name: weight / total for name, weight in kept.items()})


def weigh(predictions: Sequence[np.ndarray], rows: Rows) -> np.ndarray:
    """The weights of the mean with the least loss on rows that every prediction covers, by
    expectation maximisation, or by least squares.
    """
    covered = np.isfinite(np.sum(predictions, (0, 2)))
    if rows.regression:
        root = np.sqrt(rows.weight[covered])[:, None]
        columns = np.stack([(root * p[covered]).ravel() for p in predictions], 1)
        # one more equation, far heavier than all others: the weights add up to 1
        heavy = 1e3 * np.sqrt(len(columns))
        system = np.vstack([columns, np.full(len(predictions), heavy)])
        weights, _ = nnls(system, np.append((root * rows.y[covered]).ravel(), heavy))
        return np.asarray(weights / weights.sum())
    chosen = rows.y[covered]
    likelihood = np.stack([p[covered][np.arange(len(chosen)), chosen] for p in predictions])
    likelihood = likelihood.clip(1e-7)
    counts = rows.weight[covered]
    weights = np.full(len(predictions), 1 / len(predictions))
    for _ in range(200):
        shares = weights[:, None] * likelihood
        shares *= counts / shares.sum(0)
        # one row more for each, so that few rows do not decide alone
        weights = (shares.sum(1) + 1) / (counts.sum() + len(predictions))
    return np.asarray(weights)


def out_of_fold_loss(prediction: np.ndarray, rows: Rows) -> float:
    """Log loss, or mean squared error, of the rows that are covered."""
    covered = np.isfinite(prediction).all(1)
    if rows.regression:
        losses = ((prediction[covered] - rows.y[covered]) ** 2).mean(1)
    else:
        chosen = prediction[covered][np.arange(covered.sum()), rows.y[covered]]
        losses = -np.log(chosen.clip(1e-7))
    return float(np.average(losses, weights=rows.weight[covered]))


def _scikit(make: Callable[..., object], rows: Rows, folds: Folds, columns: np.ndarray) -> Part:
    """Of scikit-learn's estimators. make: (x, y, weight, x held out, y held out) -> one, fitted."""
    x = rows.x[:, columns]
    models = []
    outside = np.full((len(x), rows.outputs), np.nan, np.float32)
    for inside, held in folds:
        model = make(x[inside], rows.y[inside], rows.weight[inside], x[held], rows.y[held])
        outside[held] = _said(model, x[held], rows)
        models.append(model)

    def predict(given: np.ndarray) -> np.ndarray:
        said = [_said(model, given[:, columns], rows) for model in models]
        return np.asarray(np.mean(said, 0))

    return Part(outside, predict)


def _said(model: object, x: np.ndarray, rows: Rows) -> np.ndarray:
    if rows.regression:
        return np.asarray(model.predict(x)).reshape(len(x), -1)  # type: ignore[attr-defined]
    said = np.zeros((len(x), rows.outputs))
    said[:, model.classes_] = model.predict_proba(x)  # type: ignore[attr-defined]
    return said


# strengths of the penalty of a linear model, from the strongest on
PENALTIES = (1e4, 1e3, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.1)


def linear(
    which: Callable[[Rows], np.ndarray],
    rows: Rows,
    folds: Folds,
    seed: int,
    stopped: Callable[[], bool],
) -> Part:
    """Ridge or logistic regression, with the penalty that is best out of fold. which: the columns
    that it reads.
    """
    columns = which(rows)
    best: tuple[float, Part] | None = None
    for penalty in PENALTIES:
        part = _scikit(partial(_linear, penalty, rows.regression), rows, folds, columns)
        loss = out_of_fold_loss(part.out_of_fold, rows)
        if best is not None and (loss > best[0] or stopped()):
            break
        best = (loss, part)
    assert best is not None
    return best[1]


def _linear(
    penalty: float,
    regression: bool,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    *_: np.ndarray,
) -> object:
    if regression:
        return Ridge(penalty).fit(x, y, weight)
    return LogisticRegression(C=1 / penalty, max_iter=200).fit(x, y, weight)


def networks(
    which: Callable[[Rows], np.ndarray],
    rows: Rows,
    folds: Folds,
    seed: int,
    stopped: Callable[[], bool],
) -> Part:
    """Perceptrons of two layers of 64. which: the columns that they read."""
    columns = which(rows)
    x = torch.as_tensor(rows.x[:, columns])
    y = torch.as_tensor(rows.y)
    how = Training()
    members = Members(len(folds), (x.shape[1], 64, 64, rows.outputs), how.dropout, seed)
    if not rows.regression:
        shares = np.bincount(rows.y, minlength=rows.outputs).clip(0.5) / len(rows.y)
        with torch.no_grad():
            members.biases[-1].copy_(torch.as_tensor(np.log(shares)))
    loss = squared_error if rows.regression else cross_entropy
    weight = torch.as_tensor(rows.weight)
    train_members(members, x, y, weight, folds, loss, how, seed, stopped)
    outside = np.full((len(x), rows.outputs), np.nan, np.float32)
    for number, (_, held) in enumerate(folds):
        outside[held] = _means(members, x[held], rows.regression)[number].numpy()

    def predict(given: np.ndarray) -> np.ndarray:
        said = _means(members, torch.as_tensor(given[:, columns]), rows.regression)
        return np.asarray(said.mean(0))

    return Part(outside, predict)


@torch.no_grad()
def _means(members: Members, x: Tensor, regression: bool) -> Tensor:
    parts = [members(part) for part in x.split(4096)]
    out = torch.cat(parts, 1) if parts else members(x)
    return out if regression else F.softmax(out, -1)


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """(..., classes) and indices (...) -> (...)."""
    return F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)


def squared_error(out: Tensor, y: Tensor) -> Tensor:
    """(..., outputs) twice -> the mean over outputs, (...)."""
    return (out - y).square().mean(-1)


def boosting(rows: Rows, folds: Folds, seed: int, stopped: Callable[[], bool]) -> Part:
    """Gradient boosting that stops where the held out part of its fold is best; one for each
    target.
    """
    how = {
        "learning_rate": 0.05,
        "max_iter": 1000,
        "early_stopping": True,
        "n_iter_no_change": 20,
        "random_state": seed % 2**32,
    }

    def make(
        x: np.ndarray, y: np.ndarray, weight: np.ndarray, x_held: np.ndarray, y_held: np.ndarray
    ) -> object:
        if not rows.regression:
            model = HistGradientBoostingClassifier(**how)
            return model.fit(x, y, weight, X_val=x_held, y_val=y_held)
        models = []
        for column, held in zip(y.T, y_held.T, strict=True):
            model = HistGradientBoostingRegressor(**how)
            models.append(model.fit(x, column, weight, X_val=x_held, y_val=held))
        return _Each(models)

    return _scikit(make, rows, folds, rows.plain)


@dataclass(frozen=True)
class _Each:
    """One regressor a target."""

    models: Sequence[HistGradientBoostingRegressor]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.stack([model.predict(x) for model in self.models], 1)


def _plain(rows: Rows) -> np.ndarray:
    return rows.plain


def _all(rows: Rows) -> np.ndarray:
    return np.arange(rows.x.shape[1])


KINDS: Mapping[str, Callable[[Rows, Folds, int, Callable[[], bool]], Part]] = {
    "linear": partial(linear, _plain),
    "linear on bins": partial(linear, _all),
    "boosting": boosting,
    "networks": partial(networks, _plain),
    "networks on bins": partial(networks, _all),
}
