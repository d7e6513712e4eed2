"""The extracted constants, the fitted scikit-learn pipeline and the exported source are one
function.
"""

import ast

import numpy as np
import pandas as pd
import pytest
from by_sklearn import pipeline

from morphogen.data.apply_preparation import hashed, moments, written
from morphogen.data.columns import sort_columns
from morphogen.data.preparation import Preparation, default_bins, fit_preparation, source
from morphogen.errors import DataError

BINS = (0, 1, 3, 8)


def table(rows: int, seed: int) -> pd.DataFrame:
    """Every kind of column: smooth, zero-inflated, few values, gaps, booleans, categories with a
    tail, many texts.
    """
    random = np.random.default_rng(seed)
    gain = np.where(random.random(rows) < 0.92, 0.0, random.exponential(5000, rows).round())
    gaps = pd.Series(random.normal(50, 10, rows)).mask(random.random(rows) < 0.1)
    flag = pd.Series(random.random(rows) < 0.3, dtype=object).mask(random.random(rows) < 0.05)
    city = random.choice(["Rome", "Oslo", "Lima", "Bonn"], rows, p=[0.6, 0.3, 0.097, 0.003])
    return pd.DataFrame(
        {
            "smooth": random.normal(size=rows),
            "gain": gain,
            "few": random.integers(0, 3, rows),
            "gaps": gaps,
            "flag": flag,
            "is__it": random.random(rows) < 0.5,
            "city": pd.Series(city, dtype="category"),
            "code": pd.Series(random.choice(["1", "2", "x"], rows)).mask(random.random(rows) < 0.1),
            "visitor": [f"visitor {i}" for i in random.integers(0, 1500, rows)],
        }
    )


@pytest.fixture(scope="module")
def train() -> pd.DataFrame:
    return table(3000, 0)


@pytest.fixture(scope="module")
def unseen() -> pd.DataFrame:
    """Unknown levels, gaps in columns that had none, and numbers far out of range."""
    frame = table(200, 1).astype({"city": object, "smooth": object, "few": float})
    frame.loc[:5, "city"] = "Atlantis"
    frame.loc[6:9, ["city", "gain", "few", "visitor"]] = None
    frame.loc[10:12, ["smooth", "gaps", "gain"]] = 1e9
    frame.loc[13:15, ["smooth", "gaps", "gain"]] = -1e9
    return frame.astype({"smooth": float})


@pytest.mark.parametrize("bins", BINS)
def test_equals_the_scikit_learn_pipeline(
    train: pd.DataFrame, unseen: pd.DataFrame, bins: int
) -> None:
    prepare = fit_preparation(train, bins)
    fitted = pipeline(train, sort_columns(train), bins).fit(train)
    for frame in (train, unseen):
        x = prepare(frame)
        assert x.dtype == np.float32
        assert x.shape == (len(frame), len(prepare.names))
        np.testing.assert_allclose(x, fitted.transform(frame), atol=1e-6)


@pytest.mark.parametrize("bins", BINS)
def test_survives_json_and_equals_its_source(
    train: pd.DataFrame, unseen: pd.DataFrame, bins: int, tmp_path
) -> None:
    prepare = fit_preparation(train, bins)
    text = prepare.to_json()
    assert Preparation.from_json(text) == prepare
    (tmp_path / "preparation.json").write_text(text)
    room = {"__file__": str(tmp_path / "model.py")}
    exec(compile(source(prepare), "model.py", "exec"), room)
    np.testing.assert_array_equal(room["prepare"](unseen), prepare(unseen))


def test_source_needs_neither_morphogen_nor_scikit_learn(train: pd.DataFrame) -> None:
    nodes = list(ast.walk(ast.parse(source(fit_preparation(train)))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == {"itertools", "json", "numpy", "pandas", "pathlib", "re", "typing", "zlib"}


def test_bins_are_the_piecewise_linear_encoding() -> None:
    frame = pd.DataFrame({"x": [0.0, 1.0, 3.0]})
    prepare = fit_preparation(frame, bins=2)
    assert prepare.names == ("x", "x[0..1]", "x[1..3]")
    x = prepare(pd.DataFrame({"x": [-1.0, 0.5, 2.0, 9.0]}))
    np.testing.assert_allclose(x[:, 1:], [[0, 0], [0.5, 0], [1, 0.5], [1, 1]])


def test_a_zero_inflated_column_has_bins_in_its_tail(train: pd.DataFrame) -> None:
    edges = next(
        number.edges for number in fit_preparation(train, bins=8).numbers if number.name == "gain"
    )
    assert edges[0] == 0
    assert len(edges) == 9
    assert (np.diff(edges) > 0).all()


def test_two_values_need_no_bins_and_z_is_clipped() -> None:
    prepare = fit_preparation(pd.DataFrame({"flag": [True, False] * 10}))
    assert prepare.names == ("flag",)
    np.testing.assert_allclose(
        prepare(pd.DataFrame({"flag": [False, True, 1000]}))[:, 0], [-1, 1, 4]
    )


def test_rare_levels_share_a_column_and_a_gap_is_a_level() -> None:
    prepare = fit_preparation(pd.DataFrame({"c": ["a"] * 9 + ["b"] * 9 + ["rare"] + [None] * 3}))
    assert prepare.names == ("c=(missing)", "c=a", "c=b", "c=(other)")
    x = prepare(pd.DataFrame({"c": ["a", None, "rare", "new"]}))
    np.testing.assert_array_equal(x, [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])


def test_an_unknown_level_is_all_zeros_where_nothing_was_rare() -> None:
    prepare = fit_preparation(pd.DataFrame({"c": ["a", "b"] * 9}))
    np.testing.assert_array_equal(prepare(pd.DataFrame({"c": ["new"]})), [[0, 0]])


def test_a_level_that_reads_as_a_number_is_found_in_integers_and_floats() -> None:
    prepare = fit_preparation(pd.DataFrame({"c": ["1", "2", "x"] * 9}))
    for cells in (["1"], [1], [1.0]):
        np.testing.assert_array_equal(prepare(pd.DataFrame({"c": cells})), [[1, 0, 0]])


def test_the_hash_is_the_same_in_every_process() -> None:
    x = hashed(pd.Series(["abc"]), {})  # CRC-32 of "abc" is 0x352441c2
    assert x.shape == (1, 64)
    assert np.flatnonzero(x[0]).tolist() == [0x2, 16 + 0xC, 32 + 0x1, 48 + 0x4]


def test_no_rows_give_no_rows(train: pd.DataFrame) -> None:
    prepare = fit_preparation(train)
    assert prepare(train[:0]).shape == (0, len(prepare.names))


def test_nullable_and_decimal_columns_are_numbers() -> None:
    frame = pd.DataFrame(
        {
            "a": pd.array([1, None, 3, 5], "Int64"),
            "b": pd.array([True, None, False, True], "boolean"),
        }
    )
    prepare = fit_preparation(frame)
    assert [number.missing for number in prepare.numbers] == [True, True]
    assert np.isfinite(prepare(frame)).all()


def test_what_does_not_fit_is_refused(train: pd.DataFrame) -> None:
    prepare = fit_preparation(train)
    with pytest.raises(DataError, match=r"lacks the columns \['gain'\]"):
        prepare(train.drop(columns="gain"))
    with pytest.raises(DataError, match="bins=-1"):
        fit_preparation(train, bins=-1)


@pytest.mark.parametrize(
    ("cell", "mark", "value"),
    [
        ("1,234.50", ".", 1234.5),
        ("1.234,50", ",", 1234.5),
        ("1 234,5", ",", 1234.5),
        ("1'234.5", ".", 1234.5),
        ("12,34,567", ".", 1234567),
        ("€ 5", ".", 5),
        ("US$5.5", ".", 5.5),
        ("-5 EUR", ".", -5),
        ("12 %", ".", 0.12),
        ("(300)", ".", -300),
        ("−3", ".", -3),
        (".5", ".", 0.5),
        ("1e-3", ".", 0.001),
        ("1,5", ".", np.nan),
        ("1.2.2020", ",", np.nan),
        ("12:30", ".", np.nan),
        ("5a", ".", np.nan),
        ("nan", ".", np.nan),
        ("", ".", np.nan),
        ("-", ".", np.nan),
        (".", ".", np.nan),
    ],
)
def test_numbers_as_people_write_them(cell: str, mark: str, value: float) -> None:
    np.testing.assert_equal(written(cell, mark), value)


def untidy(rows: int = 3000) -> pd.DataFrame:
    random = np.random.default_rng(0)
    days = pd.Timestamp("2019-12-30") + pd.to_timedelta(random.integers(0, 900, rows), unit="D")
    grade = random.choice(["fine", "poor"], rows)
    return pd.DataFrame(
        {
            "price": [
                f"{value:,.2f} €".translate(str.maketrans(",.", ".,"))
                for value in random.exponential(2000, rows)
            ],
            "day": pd.Series(days.strftime("%d.%m.%Y")).mask(random.random(rows) < 0.1),
            "text": [f"a {word} thing, number {i}" for i, word in enumerate(grade)],
        }
    )


def test_untidy_columns_survive_json_and_equal_their_source(tmp_path) -> None:
    frame = untidy()
    prepare = fit_preparation(frame)
    assert prepare.columns == ("price", "text", "day")
    x = prepare(frame)
    assert x.shape == (3000, len(prepare.names))
    assert np.isfinite(x).all()
    (tmp_path / "preparation.json").write_text(prepare.to_json())
    room = {"__file__": str(tmp_path / "model.py")}
    exec(compile(source(prepare), "model.py", "exec"), room)
    np.testing.assert_array_equal(room["prepare"](frame), x)
    assert Preparation.from_json(prepare.to_json()) == prepare


def test_the_parts_of_a_date() -> None:
    prepare = fit_preparation(untidy()[["day"]], bins=0)
    parts = ["days", "year", "month", "day", "weekday"]
    assert [part.name for part in prepare.dates[0].parts] == parts
    x = prepare(pd.DataFrame({"day": ["31.12.2020", "01.01.2021", None, "soon"]}))
    place = prepare.names.index("day.month cos")
    np.testing.assert_allclose(x[0, place], 1, atol=1e-6)
    assert x[:, prepare.names.index("day.days?")].tolist() == [0, 0, 1, 1]
    assert x[1, 0] > x[0, 0]


def test_a_stray_cell_is_a_gap_and_can_be_asked_for() -> None:
    prepare = fit_preparation(pd.DataFrame({"a": [1.0, 2.0, 4.0] * 9}))
    frame = pd.DataFrame({"a": [1, "much", None]})
    np.testing.assert_array_equal(prepare(frame)[1], prepare(frame)[2])
    assert prepare.unread(frame) == {"a": (1, "much")}


def test_the_encoding_is_plain_for_few_rows_or_many_columns() -> None:
    assert default_bins(150, 5) == 0
    assert default_bins(900, 5) == 8
    assert default_bins(1_000, 2_000) == 0
    assert default_bins(10_000, 8_000) == 0
    assert default_bins(20_000, 8) == 16
    assert 2 <= default_bins(1_000_000, 20) <= 5
    assert default_bins(5_000, 0) == 0


def test_bins_are_the_columns_that_are_named_after_a_range() -> None:
    days = pd.date_range("2020-01-01", periods=300).astype(str)
    frame = pd.DataFrame(
        {"x": np.linspace(0, 1, 300) ** 2, "kind": ["a", "b", "c"] * 100, "day": days}
    )
    frame.loc[3, "x"] = np.nan
    prepared = fit_preparation(frame, 4)
    assert list(prepared.bins) == ["[" in name for name in prepared.names]
    assert sum(prepared.bins) >= 8


def test_the_day_comes_first_only_where_the_year_does_not() -> None:
    cells = pd.Series(["04.03.2020", "2020-03-04", "2020-03-04T00:00:00Z", "4/3/2020"])
    assert len(set(moments(cells, {"dayfirst": True}))) == 1
