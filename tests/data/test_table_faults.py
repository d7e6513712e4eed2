"""Tables as data sets: the task, the split, and one clear line for each fault."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphogen.data.from_frame import from_frame
from morphogen.data.load import load_data
from morphogen.errors import DataError

ROWS = 100


def table(**columns: object) -> pd.DataFrame:
    random = np.random.default_rng(0)
    usual = {
        "a": random.normal(size=ROWS),
        "b": random.choice(["u", "v"], ROWS),
        "y": ["no", "yes"] * (ROWS // 2),
    }
    return pd.DataFrame(usual | columns)


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (["no", "yes"] * 50, "classification", ("no", "yes")),
        ([True, False] * 50, "classification", ("False", "True")),
        ([2, 10] * 50, "classification", ("2", "10")),
        ([0.0, 1.0] * 50, "classification", ("0", "1")),
        (pd.Categorical(["b", "a"] * 50), "classification", ("a", "b")),
        (list(range(100)), "regression", ()),
        (np.linspace(0, 1, 100), "regression", ()),
        (list(range(25)) * 4, "regression", ()),
    ],
)
def test_the_task_follows_from_the_target(y: object, task: str, classes: tuple[str, ...]) -> None:
    data = from_frame(table(y=y), "y")
    assert (data.task, data.classes) == (task, classes)
    assert data.y_train.dtype == (np.int64 if classes else np.float64)
    assert data.x_train.dtype == np.float32
    assert (len(data.x_train), len(data.x_test)) == (80, 20)
    assert data.prepare is not None


def test_the_task_can_be_overridden() -> None:
    assert from_frame(table(y=[0, 1] * 50), "y", task="regression").classes == ()
    assert len(from_frame(table(y=list(range(25)) * 4), "y", task="classification").classes) == 25


def test_few_whole_numbers_are_noted_as_classes() -> None:
    assert (
        "3 different whole numbers: read as classes"
        in from_frame(table(y=[1, 2, 3, 1] * 25), "y").notes[0]
    )


def test_the_split_keeps_the_classes_shares_and_follows_the_seed() -> None:
    frame = table(y=["rare"] * 10 + ["usual"] * 90)
    data = from_frame(frame, "y", seed=1)
    assert np.bincount(data.y_test).tolist() == [2, 18]
    assert data.fingerprint == from_frame(frame, "y", seed=1).fingerprint
    assert data.fingerprint != from_frame(frame, "y", seed=2).fingerprint


def test_the_constants_are_fitted_on_training_rows_only() -> None:
    data = from_frame(table(), "y", test=table(a=np.full(ROWS, 100.0)))
    np.testing.assert_allclose(data.x_train[:, 0].mean(), 0, atol=1e-6)
    assert (data.x_test[:, 0] == 4).all()


def test_rows_without_a_target_are_left_out_with_a_note() -> None:
    data = from_frame(table(y=["no", "yes", None, "no"] * 25), "y")
    assert len(data.x_train) + len(data.x_test) == 75
    assert data.notes == ("25 of 100 rows of table have no 'y': left out",)


def test_a_target_with_gaps_keeps_its_whole_numbers() -> None:
    assert from_frame(table(y=[0, 1, None, 1] * 25), "y").classes == ("0", "1")


def test_a_tiny_table_has_no_test_part_and_says_so() -> None:
    data = from_frame(table()[:4], "y")
    assert data.x_test.shape == (0, data.x_train.shape[1])
    assert "too few for a test part" in data.notes[0]


def test_ten_thousand_texts() -> None:
    n = 10_000
    frame = pd.DataFrame(
        {"id": [f"i{i}" for i in range(n)], "a": np.arange(n) % 7, "y": np.arange(n) % 2}
    )
    assert "dropped as an identifier" in from_frame(frame, "y").notes[0]
    doubled = pd.concat([frame, frame], ignore_index=True)
    data = from_frame(doubled, "y", test=doubled)
    assert data.notes == ("column 'id' has 10,000 distinct texts: hashed into 64 columns",)


FAULTS: dict[str, tuple[pd.DataFrame, dict[str, object], str]] = {
    "no target": (
        table(),
        {"target": None},
        "no target given: name .* target=, one of 'a', 'b', 'y'",
    ),
    "missing target": (
        table(income=1),
        {"target": "incme"},
        "no column 'incme': did you mean 'income'.* 'a', 'b'",
    ),
    "constant target": (table(y=1), {}, r"target 'y' is constant \('1' in every row\)"),
    "empty target": (table(y=np.nan), {}, "target 'y' has no value in any row"),
    "one-row classes": (
        table(y=[f"c{i}" for i in range(ROWS)]),
        {},
        "class 'c0' of target 'y' has one row only, as has every other class",
    ),
    "nothing but empty columns": (
        table(a=np.nan, b=None),
        {},
        "column 'b' has no value in any training row",
    ),
    "infinite": (table(a=[np.inf, 1.0] * 50), {}, r"column 'a' has 50 infinite value\(s\)"),
    "infinite target": (table(y=[np.inf, 1.0] * 50), {}, "column 'y' has 50 infinite"),
    "no rows": (table()[:0], {}, r"is an empty table \(0 rows, 3 columns\)"),
    "no features": (table()[["y"]], {}, "has the target 'y' and no other column"),
    "text to regress": (
        table(),
        {"task": "regression"},
        "holds text such as 'no': regression needs numbers",
    ),
    "unknown task": (
        table(),
        {"task": "ranking"},
        "task='ranking' is unknown: choose one of classification",
    ),
    "fraction": (table(), {"test_fraction": 1.0}, "test_fraction=1.0 is out of range"),
    "unknown class": (
        table(),
        {"test": table(y=["no", "maybe"] * 50)},
        "class 'maybe' .* in the test table of table only",
    ),
    "text in test": (
        table(),
        {"test": table(a="x")},
        "column 'a' of the test table of table holds 'x', which is not a number",
    ),
    "column not in test": (
        table(),
        {"test": table().drop(columns="a")},
        r"lacks the columns \['a'\]",
    ),
    "twice the same name": (table().rename(columns={"a": "b"}), {}, "has two columns 'b'"),
    "text in a regression test": (
        table(y=np.linspace(0, 1, ROWS)),
        {"test": table()},
        "target 'y' cannot be regressed: it holds 'no'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_clear_line(fault: str) -> None:
    frame, options, message = FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        from_frame(frame, **({"target": "y"} | options))
    assert "\n" not in str(caught.value)


def test_load_names_the_set_and_takes_a_second_file(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "train.csv.gz", index=False)
    table()[:30].to_parquet(tmp_path / "test.parquet")
    data = load_data(
        str(tmp_path / "train.csv.gz"), target="y", test=str(tmp_path / "test.parquet")
    )
    assert (data.name, len(data.x_train), len(data.x_test)) == ("train", 100, 30)


def test_load_refuses_a_table_without_target(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="target=, one of 'a', 'b', 'y'"):
        load_data(str(tmp_path / "t.csv"))
