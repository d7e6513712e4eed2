"""What a small network learns from in the place of labels alone: `distil(dataset, seed)`.

The teacher's answers to the training rows, and to rows made of pairs of them, of which there can be
as many as one likes, see `fitting.between`. Source: Hinton et al. 2015 (arXiv 1503.02531).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from morphogen.data.dataset import Dataset
from morphogen.data.split import folds
from morphogen.fitting.between import between
from morphogen.fitting.scaling import Scaling
from morphogen.fitting.teacher import Rows, out_of_fold_loss, teach

FOLDS = 5
MOST_ROWS = 60_000  # beyond these a network finds in the labels all that a teacher could say
_TIMES = 10  # rows made of each training row
_POINTS = 40_000  # and of all of them, at most
_NUMBERS = 20_000_000  # in all of these
_FEWEST = 20  # rows


@dataclass(frozen=True)
class Distillation:
    """targets: of the training rows, (n, outputs). x, y: rows made of others, (m, features) and
    (m, outputs). loss: of the teacher, out of fold. weights: of the teacher's parts.
    """

    targets: np.ndarray
    x: np.ndarray
    y: np.ndarray
    loss: float
    weights: Mapping[str, float]

    @property
    def note(self) -> str:
        """One line for the user."""
        shares = sorted(self.weights.items(), key=lambda part: -part[1])
        parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
        return f"learns from {FOLDS} folds of {parts}; their loss out of fold is {self.loss:.4g}"


def distil(
    dataset: Dataset, seed: int, stopped: Callable[[], bool] = lambda: False
) -> Distillation | None:
    """None where there is nothing to gain: images, a great many rows, or too few for folds.

    stopped: see `teacher.teach`.
    """
    x = dataset.x_train
    if x.ndim != 2 or not _FEWEST <= len(x) <= MOST_ROWS:
        return None
    rows = _rows(dataset)
    teacher = teach(rows, folds(dataset, FOLDS, seed), seed, stopped)
    points = between(x, dataset.prepare, _count(x), seed)
    return Distillation(
        teacher(x),
        points,
        teacher(points),
        out_of_fold_loss(teacher.out_of_fold, rows),
        teacher.weights,
    )


def _count(x: np.ndarray) -> int:
    """How many rows are made of `x`."""
    return int(max(1, min(_TIMES * len(x), _POINTS, _NUMBERS // x.shape[1])))


def _rows(dataset: Dataset) -> Rows:
    regression = dataset.task == "regression"
    y = Scaling.of(dataset).standardised(dataset.y_train) if regression else dataset.y_train
    outputs = y.shape[1] if regression else max(2, len(dataset.classes))
    weight = np.ones(len(y)) if dataset.weight is None else dataset.weight
    return Rows(
        dataset.x_train,
        y,
        outputs,
        regression,
        plain_columns(dataset),
        np.asarray(weight, np.float32),
    )


def plain_columns(dataset: Dataset) -> np.ndarray:
    """Those that are no bins of a number."""
    width = dataset.x_train.shape[1]
    if dataset.prepare is None:
        return np.arange(width)
    return np.flatnonzero(~np.asarray(dataset.prepare.bins))
