"""How the found network does on rows that it has not seen: where it errs, whether its probabilities
are right, and which columns it relies on. `evaluate(fitted, dataset) -> Evaluation`, figures alone.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import metrics
from torch import Tensor, nn

from morphogen.data.apply_preparation import KINDS
from morphogen.data.dataset import Dataset
from morphogen.data.split import holdout
from morphogen.deadline import NEVER, Deadline
from morphogen.fitting.fit import Fitted
from morphogen.fitting.problem import LOOKED_AT
from morphogen.record import Bin, Evaluation, Importance, Line
from morphogen.tracing.program import dtype_of
from morphogen.training.train import predict

_MOST_CLASSES = 12  # of the confusion matrix and of curves; the others are taken together
_POINTS = 100  # of one curve
_SHOWN = 400  # residuals
_BINS = 10  # of probability
_ROWS = 2000  # that columns are permuted on
_REPEATS = 5
_MEASURED = 60  # columns; of more, those that matter most by their gradient
_NORMAL = 1.96  # standard errors of a 95 % interval


def evaluate(fitted: Fitted, dataset: Dataset, until: Deadline = NEVER) -> Evaluation:
    """On the test part; where there is none, on the validation rows that were looked at. until:
    columns that are not measured by then are left out.
    """
    regression = dataset.task == "regression"
    if len(dataset.x_test):
        part, x, y = "test", torch.as_tensor(dataset.x_test), dataset.y_test
    else:
        part = "validation"
        held = holdout(dataset, fitted.settings.seed)[1][:LOOKED_AT]
        x, y = torch.as_tensor(dataset.x_train[held]), dataset.y_train[held]
    net = copy.deepcopy(fitted.plain).cpu().eval()
    answers = _answers(net, x, regression)
    importance = _importance(net, x[:_ROWS], y[:_ROWS], dataset, until)
    begun = Evaluation(part, len(y), importance=importance)
    if regression:
        return _of_numbers(begun, y, answers)
    return _of_classes(begun, y, answers, dataset.classes)


def _answers(net: nn.Module, x: Tensor, regression: bool) -> np.ndarray:
    """Numbers (n,) in the target's unit, (n, targets) of several, or probabilities
    (n, classes).
    """
    out = predict(net, x).double()
    if regression:
        return np.asarray(out[:, 0] if out.shape[1] == 1 else out)
    return np.asarray(out.softmax(1))


# Classes -----------------------------------------------------------------------------------------


def _of_classes(
    begun: Evaluation, y: np.ndarray, p: np.ndarray, classes: Sequence[str]
) -> Evaluation:
    p = p[:, : len(classes)]
    kept = _most_frequent(y, len(classes))
    names = [classes[k] for k in kept]
    place = np.full(len(classes), len(kept))
    place[kept] = np.arange(len(kept))
    if len(kept) < len(classes):
        names.append("(others)")
    confusion = metrics.confusion_matrix(place[y], place[p.argmax(1)], labels=np.arange(len(names)))
    # of two classes one curve says it all
    judged = [1] if len(classes) == 2 else kept
    judged = [k for k in judged if 0 < (y == k).sum() < len(y)]
    return replace(
        begun,
        classes=tuple(names),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
        reliability=_reliability(y, p),
        roc=tuple(_roc(y == k, p[:, k], classes[k]) for k in judged),
        precision_recall=tuple(_precision_recall(y == k, p[:, k], classes[k]) for k in judged),
    )


def _most_frequent(y: np.ndarray, classes: int) -> list[int]:
    """The classes that are shown, in their own order."""
    if classes <= _MOST_CLASSES:
        return list(range(classes))
    counts = np.bincount(y, minlength=classes)
    return sorted(map(int, np.argsort(-counts, kind="stable")[: _MOST_CLASSES - 1]))


def _reliability(y: np.ndarray, p: np.ndarray) -> tuple[Bin, ...]:
    """Of two classes: of the second one's probability, and how often it was that; of several: of
    the largest probability, and how often that class was right.
    """
    if p.shape[1] == 2:
        said, true = p[:, 1], y == 1
    else:
        said, true = p.max(1), p.argmax(1) == y
    at = np.minimum((said * _BINS).astype(int), _BINS - 1)
    bins = []
    for number in np.unique(at):
        inside = at == number
        bins.append(Bin(float(said[inside].mean()), float(true[inside].mean()), int(inside.sum())))
    return tuple(bins)


def _roc(true: np.ndarray, p: np.ndarray, name: str) -> Line:
    x, y, _ = metrics.roc_curve(true, p)
    return _thinned(name, x, y, float(metrics.auc(x, y)))


def _precision_recall(true: np.ndarray, p: np.ndarray, name: str) -> Line:
    precision, recall, _ = metrics.precision_recall_curve(true, p)
    area = float(metrics.average_precision_score(true, p))
    return _thinned(name, recall[::-1], precision[::-1], area)


def _thinned(name: str, x: np.ndarray, y: np.ndarray, area: float) -> Line:
    """At most `_POINTS` points, evenly spread over x, with the first and the last."""
    kept = np.arange(len(x))
    if len(x) > _POINTS:
        kept = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], _POINTS)))
        kept = np.union1d(kept.clip(max=len(x) - 1), [0, len(x) - 1])
    points = zip(x[kept].tolist(), y[kept].tolist(), strict=True)
    return Line(name, tuple(points), area)


# Numbers -----------------------------------------------------------------------------------------


def _of_numbers(begun: Evaluation, y: np.ndarray, answers: np.ndarray) -> Evaluation:
    y, answers = y.ravel(), answers.ravel()
    rows = np.linspace(0, len(y) - 1, min(_SHOWN, len(y))).astype(int)
    residuals = (y - answers)[rows]
    return replace(
        begun, residuals=tuple(zip(answers[rows].tolist(), residuals.tolist(), strict=True))
    )


# Columns -----------------------------------------------------------------------------------------


def _importance(
    net: nn.Sequential, x: Tensor, y: np.ndarray, dataset: Dataset, until: Deadline
) -> tuple[Importance, ...]:
    """How much the loss rises where a column's values are dealt out anew among the rows, with the
    95 % interval that these rows leave it in; the largest first.

    Source: Breiman 2001, "Random forests", section 10; Fisher, Rudin, Dominici 2019. Differs: the
    interval is that of the mean difference over the rows, each one's being averaged over the
    permutations.
    """
    groups = list(_groups(dataset))
    if not groups or len(y) < 2:
        return ()
    if len(groups) > _MEASURED:
        steep = _steepness(net, x, y, dataset.task)
        weight = [float(steep[columns].sum()) for _, columns in groups]
        best = np.argsort(weight)[::-1][:_MEASURED]
        groups = [groups[i] for i in best]
    draw = np.random.default_rng(0)
    base = _losses(net, x, y, dataset.task)
    measured = []
    for name, columns in groups:
        if until.left() <= 0:
            break
        rises = np.zeros(len(y))
        for _ in range(_REPEATS):
            dealt = x.clone()
            order = torch.as_tensor(draw.permutation(len(y)))
            dealt[:, columns] = x[order][:, columns]
            rises += (_losses(net, dealt, y, dataset.task) - base) / _REPEATS
        mean = rises.mean()
        far = _NORMAL * rises.std(ddof=1) / np.sqrt(len(y))
        ends = [_rise(base.mean(), value, dataset.task) for value in (mean, mean - far, mean + far)]
        measured.append(Importance(name, *ends))
    return tuple(sorted(measured, key=lambda row: -row.rise))


def _rise(base: float, difference: float, task: str) -> float:
    """Of the log loss, or of the RMSE where the mean square rises by `difference`."""
    if task == "classification":
        return float(difference)
    return float(np.sqrt(max(0.0, base + difference)) - np.sqrt(base))


def _losses(net: nn.Module, x: Tensor, y: np.ndarray, task: str) -> np.ndarray:
    """Of each row, (n,)."""
    answers = _answers(net, x, task == "regression")
    if task == "regression":
        return np.asarray(((answers - y) ** 2).reshape(len(y), -1).mean(1))
    tiny = np.finfo(np.float32).tiny
    return np.asarray(-np.log(np.clip(answers[np.arange(len(y)), y], tiny, 1)))


def _steepness(net: nn.Sequential, x: Tensor, y: np.ndarray, task: str) -> np.ndarray:
    """By how much the outputs move with each feature, to first order, (features,)."""
    given = x.to(dtype_of(net)).requires_grad_()
    net(given).square().sum().backward()
    assert given.grad is not None
    return np.asarray((given.grad * (given.detach() - given.detach().mean(0))).abs().mean(0))


def _groups(dataset: Dataset) -> Iterator[tuple[str, list[int]]]:
    """(name, the features that are made of it) of each column; nothing for images."""
    if dataset.x_train.ndim != 2:
        return
    if dataset.prepare is None:
        for place in range(dataset.x_train.shape[1]):
            yield f"x[{place}]", [place]
        return
    start = 0
    for name, size in _sizes(asdict(dataset.prepare)):
        yield name, list(range(start, start + size))
        start += size


def _sizes(constants: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """(column, how many features it becomes), in the order of x."""
    gap = pd.Series([None], dtype=object)
    for kind, read in KINDS.items():
        for column in constants[kind]:
            yield column["name"], read(gap, column).shape[1]
