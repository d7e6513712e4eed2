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
        ([np.nan] * ROWS, "column 'x' has no value in any training row: dropped"),
        ([None] * ROWS, "column 'x' has no value in any training row: dropped"),
        (
            [*(f"{i}.x" for i in range(ROWS // 4)), *(str(i / 7) for i in range(ROWS * 3 // 4))],
            "dropped as an identifier (most cells are numbers, but '0.x' is not)",
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


def test_a_table_without_a_usable_column_is_refused() -> None:
    with pytest.raises(
        DataError, match="no feature column can be used: column 'x' has one value only"
    ):
        sort_columns(pd.DataFrame({"x": [1, 1, 1]}))


@pytest.mark.parametrize(
    "cells",
    [
        pd.date_range("2020-01-01", periods=ROWS),
        pd.date_range("2020-01-01", periods=ROWS, tz="Europe/Berlin"),
        [f"2020-01-{1 + i % 28:02}" for i in range(ROWS)],
        [f"2020-01-{1 + i % 28:02}T{i % 24:02}:30:00Z" for i in range(ROWS)],
        [f"{1 + i % 28}.03.21" for i in range(ROWS)],
        [f"{1 + i % 12}/{1 + i % 28}/2021" for i in range(ROWS)],
        [f"{1 + i % 28} March 2021" for i in range(ROWS)],
        [f"{i % 24}:{i % 60:02}" for i in range(ROWS)],
        [datetime.date(2020, 1, 1 + i % 28) for i in range(ROWS)],
        ["unknown", *(f"2020-01-{1 + i % 28:02}" for i in range(ROWS - 1))],
    ],
)
def test_dates(cells: object) -> None:
    columns = kinds(cells)
    assert columns.dates == ("x",)
    assert "column 'x' holds dates: read as days passed" in columns.notes[0]


@pytest.mark.parametrize(
    ("written", "mark"),
    [("{:.2f}", "."), ("{:,.2f}", "."), ("$ {:,.0f}", "."), ("{:.1f} %", "."), ("({:.1f})", ".")],
)
@pytest.mark.parametrize("german", [False, True])
def test_numbers_written_as_text(written: str, mark: str, german: bool) -> None:
    cells = [written.format(1000 * i / 7) for i in range(ROWS)]
    if german:
        cells = [cell.translate(str.maketrans(",.", ".,")) for cell in cells]
        mark = "," if "," in cells[9].replace(".", "") else "."
    columns = kinds(cells)
    assert columns.numbers == ("x", "other")
    assert "column 'x' holds numbers written as text, such as" in columns.notes[0]
    assert columns.marks.get("x", ".") == mark or written == "$ {:,.0f}"


def test_words_among_numbers_are_gaps_and_said_once() -> None:
    cells = ["unknown", *(f"{i / 7:.3f}" for i in range(499))]
    frame = pd.DataFrame({"x": cells, "other": RANDOM.normal(size=500)})
    columns = sort_columns(frame)
    assert columns.numbers == ("x", "other")
    assert columns.notes == (
        "column 'x' holds numbers written as text, such as '0.000': read as numbers, 1 other "
        "cell(s) such as 'unknown' as gaps",
    )


def test_a_thousand_is_read_as_the_other_columns_write_it() -> None:
    table = {
        "price": [f"{i},{i % 10}" for i in range(ROWS)],
        "total": [f"{1 + i % 9}.{i % 1000:03}" for i in range(ROWS)],
    }
    assert sort_columns(pd.DataFrame(table)).marks == {"price": ",", "total": ","}


def test_row_numbers_are_kept_where_there_is_nothing_else() -> None:
    columns = sort_columns(pd.DataFrame({"x": np.arange(200)}))
    assert columns.numbers == ("x",)
    assert columns.notes == ()


def test_a_grid_and_values_that_do_not_repeat_are_no_identifiers() -> None:
    assert kinds(np.arange(ROWS) * 2).numbers == ("x", "other")
    assert kinds(RANDOM.normal(size=ROWS)).numbers == ("x", "other")


def test_long_texts_are_read_by_their_words() -> None:
    cells = [f"the {['good', 'bad'][i % 2]} one of number {i}" for i in range(ROWS)]
    columns = kinds(cells)
    assert columns.words == ("x",)
    assert "texts of 6 words on average: hashed by their words" in columns.notes[0]


def test_the_user_has_the_last_word() -> None:
    frame = pd.DataFrame(
        {"a": np.arange(ROWS) % 7, "b": ["x", "1"] * (ROWS // 2), "c": np.arange(ROWS)}
    )
    forced = {"a": "categories", "b": "numbers", "c": "numbers"}
    columns = sort_columns(frame, forced)
    assert columns.categories == ("a",)
    assert columns.numbers == ("b", "c")
    with pytest.raises(DataError, match="numeric: no cell of column 'b' reads as a number"):
        sort_columns(frame.assign(b="x"), forced)
    with pytest.raises(DataError, match="date: no cell of column 'b' reads as a date"):
        sort_columns(frame.assign(b="x"), {"b": "dates"})
