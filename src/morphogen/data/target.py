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

    DataError: as `classes_of`, `class_indices` and `target_numbers`.
    """
    if task == "regression":
        return target_numbers(train), target_numbers(test), ()
    classes = classes_of(train)
    return class_indices(train, classes), class_indices(test, classes, "the test part"), classes


def classes_of(target: pd.Series) -> tuple[str, ...]:
    """The classes as text, sorted; numbers as numbers, so that class 10 comes after class 9.

    DataError: no class has a second row.
    """
    counts = pd.Series(text(target), dtype=object).value_counts()
    if counts.max() == 1:
        raise DataError(
            f"class {counts.index[0]!r} of target {target.name!r} has one row only, as has every "
            "other class: choose another column, or task='regression' for numbers"
        )
    # False and True are names
    if is_number(target) and pd.api.types.infer_dtype(target) != "boolean":
        return tuple(sorted(counts.index, key=float))
    return tuple(sorted(counts.index))


def class_indices(
    target: pd.Series, classes: tuple[str, ...], part: str = "the training part"
) -> np.ndarray:
    """(n,) int64 places in `classes`. DataError: a class that training does not know."""
    cells = text(target)
    places = pd.Index(classes, dtype=object).get_indexer(cells)
    if (places < 0).any():
        raise DataError(
            f"class {cells[places < 0][0]!r} of target {target.name!r} is in {part} only: remove "
            "those rows"
        )
    return np.asarray(places, np.int64)


def rare_note(y: np.ndarray, classes: tuple[str, ...], target: str) -> tuple[str, ...]:
    """What is said of classes with one training row."""
    counts = np.bincount(y, minlength=len(classes)) if classes else np.arange(0)
    single = [classes[place] for place in np.flatnonzero(counts == 1)]
    if not single:
        return ()
    more = f" (and {len(single) - 1:,} more classes)" if len(single) > 1 else ""
    said = f"class {single[0]!r}{more} of target {target!r} has one row only"
    return (f"{said}: kept in training, where little can be learned of it",)


def target_numbers(target: pd.Series) -> np.ndarray:
    """(n,) float64: in float32 seconds since 1970 are 128 apart. DataError: a cell that is no
    finite number.
    """
    values = floats(target)
    wrong = target[~np.isfinite(values)]
    if len(wrong):
        raise DataError(
            f"target {target.name!r} cannot be regressed: it holds {wrong.iloc[0]!r}, which is "
            "not a finite number; remove those rows"
        )
    return values
