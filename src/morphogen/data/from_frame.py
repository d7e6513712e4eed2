"""A table with a target column, or several, as a `Dataset`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from morphogen.data.choices import (
    Choices,
    group_codes,
    listed,
    loss_weights,
    row_weights,
    suggestion,
    times,
)
from morphogen.data.columns import as_numbers, check_finite
from morphogen.data.dataset import Dataset
from morphogen.data.preparation import Preparation, fit_preparation
from morphogen.data.split import Parts, split
from morphogen.data.target import class_indices, classes_of, decide_task, rare_note, target_numbers
from morphogen.errors import DataError
from morphogen.record import Task


@dataclass(frozen=True)
class _Table:
    """Rows that have a target. notes: what the user is told of them."""

    name: str
    frame: pd.DataFrame
    notes: tuple[str, ...]


def from_frame(
    frame: pd.DataFrame,
    target: str | Sequence[str] | None,
    *,
    test: pd.DataFrame | None = None,
    valid: pd.DataFrame | None = None,
    task: Task | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    name: str = "table",
    bins: int | None = None,
    **choices: Any,
) -> Dataset:
    """Prepare all columns but `target`, which is predicted (several numeric ones: all at once); the
    constants are fitted on the training rows alone.

    Without `test`, `test_fraction` of the rows are set aside: by class where there are classes,
    whole groups, the latest rows where there is a time. `valid`: rows that decide in place of rows
    held out. `bins`: see `fit_preparation`. choices: those of `Choices`. DataError: every way in
    which the table cannot be used, by column.
    """
    chosen = Choices(**choices)
    targets = () if target is None else (target,) if isinstance(target, str) else tuple(target)
    whole = _checked(frame, targets, name)
    features = chosen.features(whole.frame, targets)
    check_finite(whole.frame[features])
    decided, task_notes = _task(whole.frame, targets, task)
    classes = classes_of(whole.frame[targets[0]]) if decided == "classification" else ()
    y = _y(whole, targets, decided, classes)
    rows, out = np.arange(len(y)), np.arange(0)
    if test is None:
        rows, out = _apart(whole.frame, y, test_fraction, seed, decided, chosen)
    train = _Table(whole.name, whole.frame.iloc[rows], whole.notes)
    kinds = {column: kind for column, kind in chosen.kinds.items() if column in features}
    prepare = fit_preparation(train.frame[features], bins, kinds)
    made = Dataset(
        name,
        decided,
        prepare(train.frame),
        y[rows],
        prepare(whole.frame.iloc[out]),
        y[out],
        classes,
        prepare=prepare,
        target=targets[0],
        targets=targets if len(targets) > 1 else (),
    )
    weight = None if chosen.weights is None else row_weights(train.frame[chosen.weights])
    notes = whole.notes
    if test is not None:
        table = _further(test, targets, f"the test table of {name}", prepare)
        y_test = _y(table, targets, decided, classes)
        made = replace(made, x_test=prepare(table.frame), y_test=y_test)
        notes += table.notes
    if not len(made.y_test) and test_fraction:
        notes += (f"{len(y):,} rows are too few for a test part: there is none",)
    if valid is not None:
        table = _further(valid, targets, f"the validation table of {name}", prepare)
        weight = _longer(weight, table.frame, chosen.weights)
        made = _with_held(made, prepare(table.frame), _y(table, targets, decided, classes))
        notes += table.notes
    else:
        made = replace(
            made,
            groups=None if chosen.group is None else group_codes(train.frame[chosen.group]),
            time=None if chosen.time is None else times(train.frame[chosen.time]),
        )
    if chosen.class_weight is not None and not classes:
        raise DataError(
            f"class_weight={chosen.class_weight}: {targets[0]!r} is a number and has no classes; "
            "leave it out"
        )
    notes += task_notes + rare_note(made.y_train, classes, targets[0]) + prepare.notes
    return replace(
        made, weight=loss_weights(weight, made.y_train, chosen.class_weight), notes=notes
    )


def _apart(
    frame: pd.DataFrame, y: np.ndarray, fraction: float, seed: int, task: str, chosen: Choices
) -> Parts:
    """(training rows, test rows)."""
    return split(
        y,
        fraction,
        seed,
        stratify=task == "classification",
        groups=None if chosen.group is None else group_codes(frame[chosen.group]),
        time=None if chosen.time is None else times(frame[chosen.time]),
    )


def _task(
    frame: pd.DataFrame, targets: Sequence[str], task: Task | None
) -> tuple[Task, tuple[str, ...]]:
    if len(targets) == 1:
        return decide_task(frame[targets[0]], task)
    if task == "classification":
        raise DataError(f"task={task}: {len(targets)} targets can be regressed only; give one")
    for target in targets:
        decide_task(frame[target], "regression")
    return "regression", ()


def _y(table: _Table, targets: Sequence[str], task: str, classes: tuple[str, ...]) -> np.ndarray:
    """Class indices (n,), the target's numbers (n,), or those of several targets (n, targets)."""
    if task == "classification":
        return class_indices(table.frame[targets[0]], classes, table.name)
    columns = [target_numbers(table.frame[target]) for target in targets]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _further(
    frame: pd.DataFrame, targets: Sequence[str], name: str, prepare: Preparation
) -> _Table:
    """Another table with the columns that `prepare` reads; cells that it cannot read are told."""
    table = _checked(frame, targets, name)
    if absent := [column for column in prepare.columns if column not in table.frame]:
        raise DataError(f"{name} lacks the columns {absent}: add them")
    check_finite(table.frame[list(prepare.columns)])
    notes = table.notes
    for column, (count, sample) in prepare.unread(table.frame).items():
        if count == table.frame[column].notna().sum():
            raise DataError(
                f"column {column!r} of {name} holds {sample!r}, which is not a number or a date as "
                "in training: correct it"
            )
        notes += (f"column {column!r} of {name}: {count:,} cell(s) such as {sample!r} are gaps",)
    return replace(table, notes=notes)


def _with_held(made: Dataset, x: np.ndarray, y: np.ndarray) -> Dataset:
    """With further training rows, which are the ones to be held out."""
    held = len(made.x_train) + np.arange(len(x))
    return replace(
        made,
        x_train=np.concatenate([made.x_train, x]),
        y_train=np.concatenate([made.y_train, y]),
        held=held,
    )


def _longer(
    weight: np.ndarray | None, frame: pd.DataFrame, column: str | None
) -> np.ndarray | None:
    """The weights with those of further rows, which weigh as much as the mean where they do not
    say.
    """
    if weight is None or column is None:
        return weight
    more = row_weights(frame[column]) if column in frame else np.full(len(frame), weight.mean())
    return np.concatenate([weight, more])


def _checked(frame: pd.DataFrame, targets: Sequence[str], name: str) -> _Table:
    """The rows that have a target, and a note on those that have none."""
    frame = frame.rename(columns=str).reset_index(drop=True)
    notes = tuple(frame.attrs.get("notes", ()))
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise DataError(f"{name} has two columns {twice!r}: rename one")
    if frame.empty:
        raise DataError(
            f"{name} is an empty table ({len(frame)} rows, {frame.shape[1]} columns): give one "
            "with rows"
        )
    if not targets:
        raise DataError(
            f"no target given: name the column to predict with target=, one of {listed(frame)}"
        )
    for target in targets:
        if target not in frame:
            hint = suggestion(frame, target)
            raise DataError(f"{name} has no column {target!r}: {hint}it has {listed(frame)}")
    if frame.shape[1] == len(targets):
        raise DataError(
            f"{name} has the target {targets[0]!r} and no other column: add columns to predict it "
            "from"
        )
    for target in targets:
        frame, more = _known(frame, target, name)
        notes += more
    return _Table(name, frame, notes)


def _known(frame: pd.DataFrame, target: str, name: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows that have this target, which is made of numbers where it reads as such."""
    cells, note = as_numbers(frame[target])
    notes: tuple[str, ...] = (f"target {target!r} {note}",) if note else ()
    if note:
        frame = frame.assign(**{target: cells})
    check_finite(frame[[target]])
    missing = int(cells.isna().sum())
    if missing == len(frame):
        raise DataError(f"target {target!r} has no value in any row: choose another column")
    if missing:
        notes += (f"{missing:,} of {len(frame):,} rows of {name} have no {target!r}: left out",)
        frame = frame[cells.notna()].reset_index(drop=True)
    return frame, notes
