"""Read a table from a file: CSV (also gzipped, also with semicolons or tabs) or Parquet."""

import gzip
import zlib
from pathlib import Path

import pandas as pd
import pyarrow

from morphogen.errors import DataError

TEXT_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
ENDINGS = (*TEXT_ENDINGS, ".parquet")
SEPARATORS = ",;\t|"


def read_table(path: Path, numbers: bool = False) -> pd.DataFrame:
    """The table with its column names as text; empty cells and "?" are missing. numbers: where a
    text's first line has numbers alone, it is a row and no header.

    DataError: no such file, another ending, or content that is not what the ending says.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}: check the path")
    ending = table_ending(path)
    if ending is None:
        raise DataError(f"cannot read {path.name!r}: give a file that ends in {', '.join(ENDINGS)}")
    try:
        return (
            _read_text(path, numbers)
            if ending in TEXT_ENDINGS
            else pd.read_parquet(path).reset_index(drop=True)
        )
    except pd.errors.EmptyDataError as error:
        raise DataError(
            f"{str(path)!r} is an empty table: give a file with a header and rows"
        ) from error
    except (OSError, EOFError, ValueError, zlib.error, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot read {str(path)!r} as {ending} ({reason}): the file may be damaged"
        ) from error


def table_ending(path: Path) -> str | None:
    """Which of ENDINGS the file has, None for another."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def _read_text(path: Path, numbers: bool) -> pd.DataFrame:
    open_text = gzip.open if path.suffix.lower() == ".gz" else open
    with open_text(path, "rt", encoding="utf-8-sig") as file:
        header = file.readline()
        if "\0" in header:
            raise ValueError("it is not text")
        file.seek(0)
        separator = max(SEPARATORS, key=header.count)
        first = None if numbers and all(map(_numeric, header.strip("\r\n").split(separator))) else 0
        frame = pd.read_csv(
            file,
            sep=separator,
            header=first,
            skipinitialspace=True,
            na_values=["?"],
            low_memory=False,
        )
    if not frame.index.equals(pd.RangeIndex(len(frame))):  # pandas has shifted the columns by one
        raise ValueError("its rows have more cells than its header")
    return frame.rename(columns=lambda name: str(name).strip())


def _numeric(cell: str) -> bool:
    """A number, or nothing."""
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True
