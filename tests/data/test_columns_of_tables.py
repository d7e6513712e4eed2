"""What becomes of each kind of column, and what the user is told about it."""

import datetime

import numpy as np
import pandas as pd
import pytest

from morphogen.data.columns import Columns, sort_columns
from morphogen.errors import DataError

ROWS = 2000
RANDOM = np.random.default_rng(0)


def kinds(cells: object) -> Columns:
    return sort_columns(pd.DataFrame({"x": cells, "other": RANDOM.normal(size=ROWS)}))


@pytest.mark.parametrize(
    "cells",
    [
        RANDOM.normal(size=ROWS),
        RANDOM.integers(0, 5, ROWS),
        RANDOM.random(ROWS) < 0.5,
        pd.Series([True, False, None, True] * (ROWS // 4), dtype=object),
        np.arange(ROWS) * 10,
    ],
    ids=["float", "integer", "bool", "bool with gaps", "spread integers"],
)
def test_numbers(cells: object) -> None:
    assert kinds(cells).numbers == ("x", "other")


@pytest.mark.parametrize(
    "cells",
    [["a", "b", None, "c"] * (ROWS // 4), pd.Categorical([1, 2] * (ROWS // 2))],
    ids=["text", "categorical integers"],
)
def test_categories(cells: object) -> None:
    assert kinds(cells).categories == ("x",)


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        ([7] * ROWS, "column 'x' has one value only: dropped"),
        (["a"] * ROWS, "column 'x' has one value only: dropped"),
        (np.arange(ROWS), "column 'x' numbers the rows: dropped as an identifier"),
        (RANDOM.permutation(ROWS) + 5000, "column 'x' numbers the rows: dropped as an identifier"),
        (
            [f"name {i}" for i in range(ROWS)],
            "column 'x' has 2,000 distinct texts in 2,000 rows: dropped as an identifier",
        ),
        (pd.date_range("2020-01-01", periods=ROWS), "column 'x' holds dates: dropped"),
        ([f"2020-01-{1 + i % 28:02}" for i in range(ROWS)], "column 'x' holds dates: dropped"),
        ([f"{1 + i % 28}.03.21" for i in range(ROWS)], "column 'x' holds dates: dropped"),
        (
            [datetime.date(2020, 1, 1 + i % 28) for i in range(ROWS)],
            "column 'x' holds dates: dropped",
        ),
        (
            [*(str(i / 7) for i in range(ROWS - 1)), "12,5"],
            "dropped as an identifier (most cells are numbers, but '12,5' is not)",
        ),
    ],
)
def test_dropped_with_a_note(cells: object, note: str) -> None:
    columns = kinds(cells)
    assert columns.numbers == ("other",)
    assert columns.categories == columns.hashed == ()
    assert note in columns.notes[0]


def test_ten_thousand_texts_are_hashed_and_noted() -> None:
    frame = pd.DataFrame({"id": [f"id {i % 10_000}" for i in range(20_000)]})
    columns = sort_columns(frame)
    assert columns.hashed == ("id",)
    assert columns.notes == ("column 'id' has 10,000 distinct texts: hashed into 64 columns",)


def test_texts_that_are_mostly_rare_are_hashed() -> None:
    assert kinds(
        [
            f"text {i}" if i < 1000 else "text 0" if i < 1400 else f"text {i - 500}"
            for i in range(ROWS)
        ]
    ).hashed


def test_a_column_without_values_is_refused() -> None:
    with pytest.raises(DataError, match="column 'x' has no value in any training row: drop it"):
        kinds([np.nan] * ROWS)


def test_a_table_without_a_usable_column_is_refused() -> None:
    with pytest.raises(
        DataError, match="no feature column can be used: column 'x' has one value only"
    ):
        sort_columns(pd.DataFrame({"x": [1, 1, 1]}))
