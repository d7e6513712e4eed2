"""One way in: a name or a path becomes a `Dataset`."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from morphogen.data.dataset import Dataset
from morphogen.data.from_frame import from_frame
from morphogen.data.image_folder import read_image_folder
from morphogen.data.named import NAMED
from morphogen.data.tables import read_table, table_ending
from morphogen.errors import DataError
from morphogen.record import Task


def load_data(
    source: str,
    *,
    target: str | Sequence[str] | None = None,
    task: Task | None = None,
    test: str | None = None,
    valid: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    **choices: Any,
) -> Dataset:
    """`source` is a name of NAMED, the path of a table (see `read_table`), of which `target` is the
    column to predict or several numeric ones, or a folder of images with a subfolder a class.

    `test` and `valid` are further files, with rows to test on and rows that decide; without `test`,
    `test_fraction` of the rows are set aside by `seed` (a named set with a published split keeps
    that). `task` overrides what the target's values say. choices: those of `Choices`, for tables.
    DataError: one line on what is wrong.
    """
    if source in NAMED:
        _refuse(source, {"target": target, "test": test, "valid": valid, **choices})
        return _named(source, task, test_fraction, seed)
    path = Path(source).expanduser()
    if path.is_dir():
        _refuse(source, {"target": target, "test": test, "valid": valid, "task": task, **choices})
        return read_image_folder(path, test_fraction, seed)
    if not path.exists() and path.name == source and not path.suffix:
        close = difflib.get_close_matches(source.lower().replace("_", "-"), NAMED, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(
            f"there is no data set {source!r}: {hint}the names are {', '.join(NAMED)}, or give a "
            "file"
        )
    frame = read_table(path)
    test_frame = None if test is None else read_table(Path(test).expanduser())
    valid_frame = None if valid is None else read_table(Path(valid).expanduser())
    name = (
        path.name[: -len(table_ending(path) or "")].encode(errors="backslashreplace").decode()
        or "table"
    )
    return from_frame(
        frame,
        target,
        test=test_frame,
        valid=valid_frame,
        task=task,
        test_fraction=test_fraction,
        seed=seed,
        name=name,
        **choices,
    )


def _refuse(source: str, given: dict[str, Any]) -> None:
    """DataError for what belongs to a table."""
    if wrong := [argument for argument, value in given.items() if value not in (None, (), [])]:
        raise DataError(
            f"{source!r} has its own target and test part: leave {' and '.join(wrong)} out"
        )


def _named(name: str, task: Task | None, test_fraction: float, seed: int) -> Dataset:
    dataset = NAMED[name](test_fraction, seed)
    if task not in (None, dataset.task):
        raise DataError(f"{name!r} is a {dataset.task} set: leave task={task!r} out")
    return dataset
