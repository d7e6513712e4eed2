"""What a user says about the columns and rows of a table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphogen.data.from_frame import from_frame
from morphogen.data.load import load_data
from morphogen.data.split import folds, holdout
from morphogen.errors import DataError

ROWS = 600
RANDOM = np.random.default_rng(0)


def table(**columns: object) -> pd.DataFrame:
    usual = {
        "a": RANDOM.normal(size=ROWS),
        "b": RANDOM.integers(0, 9, ROWS),
        "who": [f"user {i}" for i in RANDOM.integers(0, 60, ROWS)],
        "when": RANDOM.permutation(pd.date_range("2020-01-01", periods=ROWS).strftime("%d.%m.%Y")),
        "w": RANDOM.integers(1, 4, ROWS),
        "y": ["no", "yes", "no"] * (ROWS // 3),
        "z": RANDOM.normal(size=ROWS),
    }
    return pd.DataFrame(usual | columns)


def columns_of(**choices: object) -> tuple[str, ...]:
    data = from_frame(table(), "y", **choices)
    assert data.prepare is not None
    return data.prepare.columns


def test_drop_and_keep() -> None:
    assert set(columns_of(drop=["who", "when"])) == {"a", "b", "w", "z"}
    assert columns_of(keep="a") == ("a",)
    assert columns_of(keep=["a", "b"], time="when") == ("a", "b")


def test_kinds_that_the_user_says() -> None:
    data = from_frame(table(), "y", categorical=["b"], date=["when"])
    assert data.prepare is not None
    assert "b" in [category.name for category in data.prepare.categories]
    assert [date.name for date in data.prepare.dates] == ["when"]


def test_no_group_is_parted_by_the_test_split_or_later() -> None:
    frame = table()
    frame["a"] = pd.factorize(frame["who"])[0]
    data = from_frame(frame, "y", group="who", keep=["a"], categorical=["a"])
    assert data.groups is not None
    assert len(data.x_test) == pytest.approx(ROWS / 5, abs=ROWS / 15)
    # one-hot rows say which group each row is of; the groups of the test part are not known
    assert not data.x_test.any()
    for inside, held in [holdout(data, 0), *folds(data, 4, 0)]:
        assert not set(data.groups[inside]) & set(data.groups[held])


def test_nothing_of_the_future_trains() -> None:
    frame = table()
    frame["a"] = pd.to_datetime(frame["when"], dayfirst=True).astype("int64") / 1e15
    data = from_frame(frame, "y", time="when", keep=["a"])
    assert data.time is not None
    assert (len(data.x_train), len(data.x_test)) == (480, 120)
    assert data.x_train[:, 0].max() < data.x_test[:, 0].min()
    for inside, held in [holdout(data, 0), *folds(data, 4, 0)]:
        assert data.time[inside].max() < data.time[held].min()


def test_weights_have_a_mean_of_one_and_classes_count_alike() -> None:
    frame = table()
    data = from_frame(frame, "y", weights="w")
    assert data.weight is not None
    assert data.weight.mean() == pytest.approx(1)
    assert data.prepare is not None
    assert "w" not in data.prepare.columns
    assert len(np.unique(data.weight.round(6))) == 3
    both = from_frame(frame, "y", weights="w", class_weight="balanced")
    assert both.weight is not None
    total = np.bincount(both.y_train, weights=both.weight)
    assert total[0] == pytest.approx(total[1])


def test_validation_rows_are_the_ones_held_out(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    table()[:90].to_csv(tmp_path / "v.csv", index=False)
    data = load_data(
        str(tmp_path / "t.csv"), target="y", valid=str(tmp_path / "v.csv"), weights="w", group="who"
    )
    inside, held = holdout(data, 0)
    assert len(held) == 90
    assert data.weight is not None
    assert len(data.weight) == len(data.x_train) == len(inside) + 90
    assert data.groups is None


def test_several_numeric_targets() -> None:
    data = from_frame(table(), ["a", "z"], drop=["when"])
    assert (data.task, data.targets) == ("regression", ("a", "z"))
    assert (data.y_train.shape, data.y_test.shape) == ((480, 2), (120, 2))
    with pytest.raises(DataError, match="target 'y' holds text such as 'no'"):
        from_frame(table(), ["a", "y"])


def test_a_target_written_as_text_is_a_number() -> None:
    cells = [f"{1000 + i / 7:,.2f}" for i in range(ROWS)]
    cells[3] = "unknown"
    data = from_frame(table(y=cells), "y")
    assert data.task == "regression"
    assert "target 'y' holds numbers written as text" in data.notes[0]
    assert "1 of 600 rows of table have no 'y': left out" in data.notes[1]


def test_a_target_far_from_zero_keeps_what_it_says() -> None:
    x = np.arange(200.0)
    data = from_frame(pd.DataFrame({"x": np.arange(200), "y": 1.7e9 + 20 * x}), "y")
    assert len(np.unique(data.y_train)) == 160
    assert len(np.unique(data.x_train[:, 0])) == 160


def test_a_class_with_one_row_trains_and_is_said() -> None:
    data = from_frame(table(y=["rare", *["no", "yes"] * 299, "no"]), "y")
    assert (data.y_train == data.classes.index("rare")).sum() == 1
    assert "class 'rare' of target 'y' has one row only: kept in training" in " ".join(data.notes)


@pytest.mark.parametrize("seed", range(4))
def test_columns_that_are_nearly_empty_depend_on_no_split(seed: int) -> None:
    cells = pd.Series([np.nan] * ROWS)
    cells[5] = 1.0
    data = from_frame(table(a=cells, b=np.nan), "y", seed=seed)
    assert "column 'b' has no value in any training row: dropped" in data.notes


FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "drop": ({"drop": ["A"]}, "no column 'A', given as drop: did you mean 'a'?"),
    "all dropped": ({"keep": ["a"], "drop": ["b", "a"]}, "column 'a' is to be a feature and is"),
    "twice": ({"numeric": ["b"], "categorical": ["b"]}, "column 'b' is given as two of"),
    "target kept": ({"keep": ["y"]}, "column 'y' is to be a feature and is dropped, or is the"),
    "one group": ({"group": "one"}, "group=one: the column has one value only"),
    "no time": ({"time": "who"}, "time=who: 'user .*' is neither a number nor a date"),
    "negative": ({"weights": "z"}, "weights=z: -.* cannot be a row's weight"),
    "both": ({"group": "who", "time": "when"}, "group=who and time=when cannot be kept apart"),
    "class weight": ({"class_weight": "even"}, "class_weight='even' is unknown"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_clear_line(fault: str) -> None:
    choices, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        from_frame(table(one="x"), "y", **choices)


def test_numbers_have_no_class_weight() -> None:
    with pytest.raises(DataError, match="class_weight=balanced: 'z' is a number"):
        from_frame(table(), "z", class_weight="balanced")
