"""A table in a file, some rows at a time: `row_parts`."""

import csv
import gzip
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet

from morphogen.data.tables import TEXT_ENDINGS, read_table, table_ending
from morphogen.data.text_table import COMMENTS, delimiter_of
from morphogen.errors import DataError

_SAMPLE = 2**18  # bytes that say how a file is written
_LINES = 50


def row_parts(
    path: Path, rows: int, columns: Sequence[str] | None, texts: Collection[str]
) -> Iterator[pd.DataFrame]:
    """The table in parts of so many rows, with `columns` alone, in any order; None for all.

    texts: columns that are read as text, even where they look like numbers. CSV and Parquet are
    read part by part, other kinds as a whole. DataError: what `read_table` raises, and columns
    that the table lacks.
    """
    ending = table_ending(path)
    if not path.is_file() or ending is None:
        whole = read_table(path)  # says what is wrong
        ending = ""
    try:
        way = _way(path, ending)
        if way is not None:
            yield from _text_parts(path, way, rows, columns, texts)
        elif ending == ".parquet":
            yield from _parquet_parts(path, rows, columns)
        else:
            whole = read_table(path)
            _require(columns, whole.columns, path)
            for start in range(0, max(1, len(whole)), rows):
                yield whole.iloc[start : start + rows]
    except DataError:
        raise
    except (OSError, EOFError, ValueError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot read {str(path)!r} as {ending} ({reason}): the file may be damaged"
        ) from error


def _text_parts(
    path: Path,
    way: tuple[str, list[str]],
    rows: int,
    columns: Sequence[str] | None,
    texts: Collection[str],
) -> Iterator[pd.DataFrame]:
    separator, header = way
    _require(columns, [name.strip() for name in header], path)
    wanted = None if columns is None else set(columns)
    kept = [name for name in header if wanted is None or name.strip() in wanted]
    reader = pd.read_csv(
        path,
        sep=r"\s+" if separator == " " else separator,
        usecols=kept,
        dtype={name: str for name in kept if name.strip() in texts},
        chunksize=rows,
        skipinitialspace=True,
        na_values=["?"],
        encoding="utf-8-sig",
        low_memory=False,
    )
    with reader:
        for part in reader:
            yield part.rename(columns=lambda name: str(name).strip())


def _way(path: Path, ending: str) -> tuple[str, list[str]] | None:
    """(separator, column names) of text that can be read part by part: in UTF-8, packed by gzip at
    most, without comment lines. None for anything else.
    """
    if ending.removesuffix(".gz") not in TEXT_ENDINGS:
        return None
    with gzip.open(path) if ending.endswith(".gz") else path.open("rb") as file:
        start = file.read(_SAMPLE)
        whole = len(start) < _SAMPLE
    try:
        # the last letter of a sample may be cut
        text = start.decode("utf-8-sig") if whole else start[:-4].decode("utf-8-sig", "ignore")
    except UnicodeDecodeError:
        return None
    lines = [line for line in text.splitlines()[:_LINES] if line.strip()]
    if not lines or text.lstrip().startswith(COMMENTS) or "\0" in text:
        return None
    separator = delimiter_of(lines)
    names = next(csv.reader(lines[:1], delimiter=separator, skipinitialspace=True))
    return separator, names


def _parquet_parts(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[pd.DataFrame]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _require(columns, names, path)
        start = 0
        for batch in file.iter_batches(rows, columns=None if columns is None else list(columns)):
            part = batch.to_pandas()
            part.index = pd.RangeIndex(start, start + len(part))
            start += len(part)
            yield part


def _require(columns: Sequence[str] | None, present: Collection[str], path: Path) -> None:
    """DataError that names what a table lacks."""
    absent = [name for name in columns or () if name not in present]
    if absent:
        raise DataError(
            f"{path.name} lacks the column{'s' if len(absent) > 1 else ''} "
            f"{', '.join(map(repr, absent))}: add them; they may be empty"
        )
