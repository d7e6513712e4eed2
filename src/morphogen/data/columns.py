"""What each column of a table is: a number, a category, a text to hash, or nothing that a network
should read.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from morphogen.data.apply_preparation import text
from morphogen.errors import DataError

MAX_LEVELS = 1_000  # distinct texts beyond which a column is hashed
# share of distinct texts above which a column names rows and says nothing about the next row
IDENTIFIER = 0.9
DATE = (
    r"\d{4}-\d{1,2}(-\d{1,2})?([T ].*)?|\d{1,2}([./-])\d{1,2}\3\d{2,4}( "
    r".*)?|\d{4}/\d{1,2}/\d{1,2}( .*)?"
)


@dataclass(frozen=True)
class Columns:
    """Column names by kind, in the table's order; `notes` says in a line each what was left out or
    hashed.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    hashed: tuple[str, ...]
    notes: tuple[str, ...]


def sort_columns(frame: pd.DataFrame) -> Columns:
    """Decide the kind of each feature column from the training rows.

    DataError: a column without a single value, and a table none of whose columns can be used.
    """
    found: dict[str, list[str]] = {"number": [], "category": [], "hashed": [], "dropped": []}
    notes: list[str] = []
    for name in frame.columns:
        kind, note = _kind(frame[name])
        found[kind].append(name)
        notes += [f"column {name!r} {note}"] if note else []
    if not (found["number"] or found["category"] or found["hashed"]):
        raise DataError(
            f"no feature column can be used: {'; '.join(notes) or 'the table has none'}"
        )
    return Columns(
        tuple(found["number"]), tuple(found["category"]), tuple(found["hashed"]), tuple(notes)
    )


def check_finite(frame: pd.DataFrame) -> None:
    """DataError that names the first column with an infinite value."""
    for name in frame.columns:
        if frame[name].dtype.kind == "f":
            infinite = np.isinf(frame[name].to_numpy(np.float64, na_value=np.nan))
            if infinite.any():
                rows = f"{infinite.sum():,} infinite value(s)"
                raise DataError(
                    f"column {name!r} has {rows}: replace them with numbers, or leave them empty"
                )


def is_number(cells: pd.Series) -> bool:
    """True for integers, floats and booleans, also for booleans with gaps (which pandas reads as
    objects).
    """
    if isinstance(cells.dtype, pd.CategoricalDtype):
        return False
    return cells.dtype.kind in "iufb" or pd.api.types.infer_dtype(cells, skipna=True) in {
        "boolean",
        "decimal",
    }


def _kind(cells: pd.Series) -> tuple[str, str]:
    """("number" | "category" | "hashed" | "dropped", what to tell the user or "")."""
    if cells.isna().all():
        raise DataError(
            f"column {cells.name!r} has no value in any training row: drop it from the table"
        )
    if cells.dtype.kind in "mM" or pd.api.types.infer_dtype(cells, skipna=True) in {
        "date",
        "datetime",
    }:
        return "dropped", _DATE_NOTE
    if is_number(cells):
        return _number_kind(cells)
    return _text_kind(pd.Series(text(cells)), int(cells.notna().sum()))


_DATE_NOTE = (
    "holds dates: dropped (add columns such as the year or the weekday as numbers to use it)"
)


def _number_kind(cells: pd.Series) -> tuple[str, str]:
    distinct = cells.nunique(dropna=False)
    if distinct == 1:
        return "dropped", "has one value only: dropped"
    # Integers that never repeat and leave few gaps number the rows: in a sorted file they would
    # give the target away.
    if (
        distinct == len(cells) >= 50
        and cells.dtype.kind in "iu"
        and cells.max() - cells.min() < 2 * len(cells)
    ):
        return "dropped", "numbers the rows: dropped as an identifier"
    return "number", ""


def _text_kind(cells: pd.Series, present: int) -> tuple[str, str]:
    counts = cells.value_counts()
    if len(counts) == 1:
        return "dropped", "has one value only: dropped"
    if cells.str.fullmatch(DATE).sum() == present:
        return "dropped", _DATE_NOTE
    if len(counts) > IDENTIFIER * len(cells):
        note = (
            f"has {len(counts):,} distinct texts in {len(cells):,} rows: dropped as an identifier"
        )
        return "dropped", note + _stray(cells, present)
    frequent = counts[counts >= min_frequency(len(cells))].sum()
    if len(counts) > MAX_LEVELS or frequent < 0.5 * len(cells):
        return "hashed", f"has {len(counts):,} distinct texts: hashed into 64 columns" + _stray(
            cells, present
        )
    return "category", ""


def _stray(cells: pd.Series, present: int) -> str:
    """One typing error makes a column of numbers text: say so, or the user will not know why it is
    not used.
    """
    wrong = cells[pd.to_numeric(cells, errors="coerce").isna() & (cells != "(missing)")]
    return (
        f" (most cells are numbers, but {wrong.iloc[0]!r} is not)"
        if 0 < len(wrong) < 0.1 * present
        else ""
    )


def min_frequency(rows: int) -> int:
    """Rows that a category needs for a column of its own: 0.1 % and at least 2, so that "other" is
    seen in training.
    """
    return max(2, -(-rows // 1000))
