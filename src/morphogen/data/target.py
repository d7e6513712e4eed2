"""The column to predict: which task it poses, and its cells as class indices or as numbers."""

from typing import get_args

import numpy as np
import pandas as pd

from morphogen.data.apply_preparation import floats, text
from morphogen.data.columns import is_number
from morphogen.errors import DataError
from morphogen.record import Task

TASKS: tuple[Task, ...] = get_args(Task)
FEW = 20  # distinct whole numbers up to which a target counts as classes


def decide_task(target: pd.Series, task: Task | None = None) -> tuple[Task, tuple[str, ...]]:
    """(task, notes) for a target without missing cells; a given `task` is only checked.

    Text, booleans and categories are classes; whole numbers are where at most 20 differ, with 5
    rows each on average. DataError: an unknown task, a constant target, or text to regress.
    """
    if task not in (None, *TASKS):
        raise DataError(f"task={task!r} is unknown: choose one of {', '.join(TASKS)}")
    cells = target if is_number(target) else pd.Series(text(target))
    distinct = cells.nunique()
    if distinct < 2:
        raise DataError(
            f"target {target.name!r} is constant ('{cells.iloc[0]}' in every row): choose another "
            "column"
        )
    if not is_number(target):
        if task == "regression":
            raise DataError(
                f"target {target.name!r} holds text such as {cells.iloc[0]!r}: regression needs "
                "numbers; choose another column or task='classification'"
            )
        return "classification", ()
    if task is not None:
        return task, ()
    numbers = target.astype(float)
    if not (numbers % 1 == 0).all() or distinct > FEW or distinct > max(2, len(target) // 5):
        return "regression", ()
    note = (
        f"target {target.name!r} has {distinct} different whole numbers: read as classes "
        "(task='regression' if not)"
    )
    return "classification", (note,) if distinct > 2 else ()


def encode_target(
    train: pd.Series, test: pd.Series, task: Task
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(y_train, y_test, classes): int64 indices into the sorted classes, or float64 numbers and ().

    DataError: a class with one training row, a class that only the test part has, a number that is
    not finite.
    """
    if task == "regression":
        return _numbers(train), _numbers(test), ()
    ordered = _ordered(train)
    cells = _labels(train, ordered)
    other = _labels(test, ordered and _ordered(test))
    counts = cells.value_counts()
    if single := [str(label) for label in counts.index[counts == 1]]:
        more = f" (and {len(single) - 1:,} more classes)" if len(single) > 1 else ""
        raise DataError(
            f"class {single[0]!r}{more} of target {train.name!r} has one row only: add rows, merge "
            "it with another class or remove it"
        )
    levels = pd.Index(sorted(counts.index), dtype=object)
    y_test = levels.get_indexer(other)
    if (y_test < 0).any():
        unknown = other[y_test < 0].iloc[0]
        raise DataError(
            f"class {str(unknown)!r} of target {train.name!r} is in the test part only: remove "
            "those rows"
        )
    return (
        levels.get_indexer(cells).astype(np.int64),
        y_test.astype(np.int64),
        tuple(str(label) for label in levels),
    )


def _ordered(target: pd.Series) -> bool:
    """Numbers sort as numbers, so that class 10 comes after class 9; False and True are names."""
    return is_number(target) and pd.api.types.infer_dtype(target) != "boolean"


def _labels(target: pd.Series, ordered: bool) -> pd.Series:
    if ordered:
        numbers = target.astype(float)
        return (numbers.astype(int) if (numbers % 1 == 0).all() else numbers).astype(object)
    return pd.Series(text(target), dtype=object)


def _numbers(target: pd.Series) -> np.ndarray:
    try:
        numbers = floats(target)  # float64: seconds since 1970 are 128 apart in float32
    except ValueError as error:
        raise DataError(f"target {target.name!r} cannot be regressed: {error}") from error
    if not np.isfinite(numbers).all():
        raise DataError(f"target {target.name!r} has values that are not finite: remove those rows")
    return numbers
