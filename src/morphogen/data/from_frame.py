"""A table with a target column as a `Dataset`."""

import difflib

import pandas as pd

from morphogen.data.columns import check_finite
from morphogen.data.dataset import Dataset
from morphogen.data.preparation import fit_preparation
from morphogen.data.split import split
from morphogen.data.target import decide_task, encode_target
from morphogen.errors import DataError
from morphogen.record import Task


def from_frame(
    frame: pd.DataFrame,
    target: str | None,
    *,
    test: pd.DataFrame | None = None,
    task: Task | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "table",
    bins: int = 32,
) -> Dataset:
    """Prepare all columns but `target`, which is predicted; the constants are fitted on the
    training rows alone.

    Without `test`, `test_fraction` of the rows are set aside, by class where there are classes.
    `bins`: see `fit_preparation`. DataError: every way in which the table cannot be used, by
    column.
    """
    frame, notes = _checked(frame, target, name)
    decided, task_notes = decide_task(frame[target], task)
    if test is None:
        # Encoding all rows first refuses a class with one row before the split could hide it.
        labels, _, _ = encode_target(frame[target], frame[target][:0], decided)
        train_rows, test_rows = split(
            labels, test_fraction, seed, stratify=decided == "classification"
        )
        train = frame.iloc[train_rows]
        test = frame.iloc[test_rows]
    else:
        train = frame
        test, test_notes = _checked(test, target, f"the test table of {name}")
        notes += test_notes
    if not len(test):
        notes += (
            (f"{len(frame):,} rows are too few for a test part: there is none",)
            if test_fraction
            else ()
        )
    y_train, y_test, classes = encode_target(train[target], test[target], decided)
    prepare = fit_preparation(train.drop(columns=target), bins)
    notes += task_notes + prepare.notes
    return Dataset(
        name,
        decided,
        prepare(train),
        y_train,
        prepare(test),
        y_test,
        classes,
        prepare=prepare,
        notes=notes,
        target=str(target),
    )


def _checked(
    frame: pd.DataFrame, target: str | None, name: str
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows that have a target, and a note on those that have none."""
    frame = frame.rename(columns=str).reset_index(drop=True)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{name} has two columns {twice!r}: rename one")
    if frame.empty:
        raise DataError(
            f"{name} is an empty table ({len(frame)} rows, {frame.shape[1]} columns): give one "
            "with rows"
        )
    if target is None:
        raise DataError(
            f"no target given: name the column to predict with target=, one of {_listed(frame)}"
        )
    if target not in frame:
        close = difflib.get_close_matches(target, list(frame.columns), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"{name} has no column {target!r}: {hint}it has {_listed(frame)}")
    if frame.shape[1] == 1:
        raise DataError(
            f"{name} has the target {target!r} and no other column: add columns to predict it from"
        )
    check_finite(frame)
    missing = int(frame[target].isna().sum())
    if missing == len(frame):
        raise DataError(f"target {target!r} has no value in any row: choose another column")
    note = f"{missing:,} of {len(frame):,} rows of {name} have no {target!r}: left out"
    kept = frame[frame[target].notna()].reset_index(drop=True)
    return (kept, (note,)) if missing else (frame, ())


def _listed(frame: pd.DataFrame, most: int = 30) -> str:
    names = [repr(name) for name in frame.columns]
    return ", ".join(names[:most]) + (
        f", and {len(names) - most:,} more" if len(names) > most else ""
    )
