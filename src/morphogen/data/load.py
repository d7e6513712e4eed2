"""One way in: a name or a path becomes a `Dataset`."""

import difflib
from pathlib import Path

from morphogen.data.dataset import Dataset
from morphogen.data.from_frame import from_frame
from morphogen.data.named import NAMED
from morphogen.data.tables import read_table, table_ending
from morphogen.errors import DataError
from morphogen.record import Task


def load_data(
    source: str,
    *,
    target: str | None = None,
    task: Task | None = None,
    test: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """`source` is a name of NAMED or the path of a CSV or Parquet file, of which `target` is the
    column to predict.

    `test` is a second file; without it, `test_fraction` of the rows are set aside by `seed` (a
    named set with a published split keeps that). `task` overrides what the target's values say.
    DataError: one line on what is wrong.
    """
    if source in NAMED:
        return _named(source, target, task, test, test_fraction, seed)
    path = Path(source).expanduser()
    if not path.exists() and path.name == source and not path.suffix:
        close = difflib.get_close_matches(source.lower().replace("_", "-"), NAMED, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(
            f"there is no data set {source!r}: {hint}the names are {', '.join(NAMED)}, or give a "
            "file"
        )
    frame = read_table(path)
    test_frame = None if test is None else read_table(Path(test).expanduser())
    name = (
        path.name[: -len(table_ending(path) or "")].encode(errors="backslashreplace").decode()
        or "table"
    )
    return from_frame(
        frame, target, test=test_frame, task=task, test_fraction=test_fraction, seed=seed, name=name
    )


def _named(
    name: str,
    target: str | None,
    task: Task | None,
    test: str | None,
    test_fraction: float,
    seed: int,
) -> Dataset:
    if target is not None or test is not None:
        raise DataError(f"{name!r} has its own target and test part: leave target and test out")
    dataset = NAMED[name](test_fraction, seed)
    if task not in (None, dataset.task):
        raise DataError(f"{name!r} is a {dataset.task} set: leave task={task!r} out")
    return dataset
