"""How good predictions are: `METRICS`, a row a metric, computed by scikit-learn.

Source: scikit-learn's definitions. Differs: AUC is the mean over the classes that the rows have,
one against the rest; where the rows have one class alone it is not defined.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from sklearn import metrics

from morphogen.errors import RunError


@dataclass(frozen=True)
class Metric:
    """label: in reports. task: that it judges. higher: whether higher is better. of: its value for
    true targets (n,) and answers: probabilities (n, classes) or numbers (n,). None where it is not
    defined.
    """

    label: str
    task: str
    higher: bool
    of: Callable[[np.ndarray, np.ndarray], float | None]


def _log_loss(y: np.ndarray, p: np.ndarray) -> float:
    # a float32 0 is not certain: its logarithm would be the loss of a whole table
    p = np.clip(p, np.finfo(np.float32).tiny, 1)
    return float(-np.log(p[np.arange(len(y)), y]).mean())


def _auc(y: np.ndarray, p: np.ndarray) -> float | None:
    present = np.unique(y)
    if len(present) < 2:
        return None
    judged = present[1:] if p.shape[1] == 2 else present
    return float(np.mean([metrics.roc_auc_score(y == k, p[:, k]) for k in judged]))


def _average_precision(y: np.ndarray, p: np.ndarray) -> float | None:
    present = np.unique(y)
    if len(present) < 2:
        return None
    judged = present[1:] if p.shape[1] == 2 else present
    return float(np.mean([metrics.average_precision_score(y == k, p[:, k]) for k in judged]))


def _balanced_accuracy(y: np.ndarray, p: np.ndarray) -> float:
    """The mean recall of the classes that the rows have."""
    present = np.unique(y)
    recalls = metrics.recall_score(y, p.argmax(1), labels=present, average="macro", zero_division=0)
    return float(recalls)


def _f1(y: np.ndarray, p: np.ndarray) -> float:
    return float(metrics.f1_score(y, p.argmax(1), average="macro", zero_division=0))


def _r2(y: np.ndarray, answers: np.ndarray) -> float | None:
    return float(metrics.r2_score(y, answers)) if len(y) > 1 else None


_CLASSES = "classification"
_NUMBERS = "regression"

METRICS: Mapping[str, Metric] = {
    "log-loss": Metric("log loss", _CLASSES, False, _log_loss),
    "accuracy": Metric(
        "accuracy",
        _CLASSES,
        True,
        lambda y, p: float(metrics.accuracy_score(y, p.argmax(1))),
    ),
    "balanced-accuracy": Metric("balanced accuracy", _CLASSES, True, _balanced_accuracy),
    "auc": Metric("AUC", _CLASSES, True, _auc),
    "average-precision": Metric("average precision", _CLASSES, True, _average_precision),
    "f1": Metric("F1", _CLASSES, True, _f1),
    "mcc": Metric(
        "MCC",
        _CLASSES,
        True,
        lambda y, p: float(metrics.matthews_corrcoef(y, p.argmax(1))),
    ),
    "rmse": Metric(
        "RMSE",
        _NUMBERS,
        False,
        lambda y, answers: float(metrics.root_mean_squared_error(y, answers)),
    ),
    "mae": Metric(
        "MAE",
        _NUMBERS,
        False,
        lambda y, answers: float(metrics.mean_absolute_error(y, answers)),
    ),
    "median-error": Metric(
        "median error",
        _NUMBERS,
        False,
        lambda y, answers: float(metrics.median_absolute_error(y, answers)),
    ),
    "r2": Metric("R2", _NUMBERS, True, _r2),
}
"""By the name that `Settings.metric` has."""

LOSS: Mapping[str, str] = {_CLASSES: "log-loss", _NUMBERS: "rmse"}
"""What is minimised, by task: always shown."""

_DEFAULT: Mapping[str, str] = {_CLASSES: "accuracy", _NUMBERS: "rmse"}


def metric_for(name: str | None, task: str) -> Metric:
    """The metric that is shown beside the loss. Raises `RunError` where it is unknown, or of
    another task.
    """
    fitting = [key for key, metric in METRICS.items() if metric.task == task]
    name = name or _DEFAULT[task]
    if name not in fitting:
        raise RunError(f"metric={name}: unknown for a {task}; choose one of {', '.join(fitting)}")
    return METRICS[name]


def loss_for(task: str) -> Metric:
    """What is minimised, as a metric."""
    return METRICS[LOSS[task]]


def scores(metric: Metric, y: np.ndarray, answers: np.ndarray) -> tuple[float, float | None]:
    """(loss, metric) of answers to a part's rows."""
    loss = loss_for(metric.task).of(y, answers)
    assert loss is not None
    return loss, metric.of(y, answers)
