"""What every source of data becomes: arrays for training and testing."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from morphogen.data.preparation import Preparation
from morphogen.data.target import decide_task, encode_target, rare_note
from morphogen.errors import DataError
from morphogen.record import Task


@dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays ready for training.

    x: float32, (n, features) for tables, (n, channels, height, width) in [0, 1] for images. y:
    (n,), int64 indices into `classes`, or float64 in the target's own unit (then `classes` is ()),
    which may be (n, targets) for several numeric targets, named by `targets`. The test part may be
    empty. `flip`: a mirrored image keeps its label. `prepare`: what turned a table's columns into
    x, None for images and arrays. `notes`: what the user should be told.

    Of the training rows, each None where there is none: `weight`, (n,) float64 with mean 1, in the
    loss. `groups`, (n,) int64 codes: rows of one group are never parted. `time`, (n,) float64:
    sorts the rows, and later ones are held out. `held`: the places of rows that the user gave as
    validation rows.
    `target`: the name of the column that is predicted, "" where it has none.
    """

    name: str
    task: Task
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    flip: bool = False
    prepare: Preparation | None = None
    notes: tuple[str, ...] = ()
    weight: np.ndarray | None = None
    groups: np.ndarray | None = None
    time: np.ndarray | None = None
    held: np.ndarray | None = None
    targets: tuple[str, ...] = ()
    target: str = ""

    @property
    def metric(self) -> Literal["accuracy", "RMSE"]:
        """What a score is: "accuracy" (a fraction) or "RMSE" (in the target's unit)."""
        return "RMSE" if self.task == "regression" else "accuracy"

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any value, shape or name of a class or target, so
        that a resumed run can tell.
        """
        digest = hashlib.sha256(repr((self.task, self.classes, self.targets)).encode())
        given = (self.x_train, self.y_train, self.x_test, self.y_test)
        optional = (self.weight, self.groups, self.time, self.held)
        for array in (*given, *optional):
            if array is None:
                digest.update(b"none")
                continue
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data if array.size else b"")
        return digest.hexdigest()[:16]


def from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    task: Task | None = None,
    name: str = "arrays",
) -> Dataset:
    """A `Dataset` from arrays or what numpy can read as such.

    x: (n, features) or images (n, channels, height, width); uint8 images are divided by 255. y:
    (n,) labels of any kind or numbers; without `task` its values decide (see `decide_task`).
    Without x_test the test part is empty. DataError: shapes that do not fit, NaN or infinite
    values, values that float32 cannot tell apart, a constant target.
    """
    if (x_test is None) != (y_test is None):
        raise DataError("x_test and y_test belong together: give both or neither")
    x = _features("x_train", x_train)
    y = _target("y_train", y_train, len(x))
    if not len(x):
        raise DataError("x_train has no rows: give at least two of each class")
    x_other = x[:0] if x_test is None else _features("x_test", x_test)
    y_other = y[:0] if x_test is None else _target("y_test", y_test, len(x_other))
    if x_other.shape[1:] != x.shape[1:]:
        raise DataError(
            f"x_test has rows of shape {x_other.shape[1:]}, x_train {x.shape[1:]}: make them equal"
        )
    task, notes = decide_task(y, task)
    labels, labels_other, classes = encode_target(y, y_other, task)
    notes += rare_note(labels, classes, "y_train")
    return Dataset(name, task, x, labels, x_other, labels_other, classes, notes=notes)


def _features(name: str, values: Any) -> np.ndarray:
    given = np.asarray(values)
    if given.ndim not in (2, 4):
        raise DataError(
            f"{name} has shape {given.shape}: give (n, features) or (n, channels, height, width)"
        )
    if given.ndim == 4 and given.shape[3] in (1, 3, 4) and given.shape[1] > 4:
        raise DataError(
            f"{name} has shape {given.shape}, channels last: give {name}.transpose(0, 3, 1, 2)"
        )
    if 0 in given.shape[1:]:
        raise DataError(f"{name} has shape {given.shape}: there is no feature to learn from")
    try:
        x = given.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} is not numeric ({error}): give numbers, or a table to from_frame"
        ) from error
    if not np.isfinite(x).all():
        raise DataError(
            f"{name} has {(~np.isfinite(x)).sum():,} values that are NaN or infinite: fill or "
            "remove them"
        )
    if given.ndim == 2 and len(given):
        _refuse_lost(name, given.astype(np.float64), x)
    return x / np.float32(255) if given.ndim == 4 and given.dtype == np.uint8 else x


def _refuse_lost(name: str, given: np.ndarray, x: np.ndarray) -> None:
    """DataError that names the first column whose differences float32 loses, as those of seconds
    since 1970.
    """
    # a constant, but for rounding, says nothing that could be lost
    told = np.ptp(given, 0) > 1e-12 * np.abs(given).max(0)
    lost = told & (np.abs(given - x).max(0) > 1e-3 * given.std(0))
    if lost.any():
        column = int(lost.argmax())
        raise DataError(
            f"{name}[:, {column}] has values about {given[:, column].mean():.6g} that differ by "
            f"about {given[:, column].std():.3g}, which float32 cannot tell apart: subtract their "
            "mean, or give a table to from_frame"
        )


def _target(name: str, values: Any, rows: int) -> pd.Series:
    given = np.asarray(values)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.shape != (rows,):
        raise DataError(f"{name} has shape {given.shape}: x has {rows:,} rows, so give ({rows},)")
    y = pd.Series(given, name=name)
    if y.isna().any() or (given.dtype.kind == "f" and np.isinf(given).any()):
        raise DataError(f"{name} has missing, NaN or infinite values: remove those rows")
    return y
