"""Which rows are held out: groups stay whole, nothing of the future trains, what the user gave is
kept.
"""

from dataclasses import replace

import numpy as np
import pytest

from morphogen.data.dataset import Dataset
from morphogen.data.split import folds, holdout, split
from morphogen.errors import DataError

ROWS = 300


def dataset(classes: int = 3, rows: int = ROWS, **given: object) -> Dataset:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 2)).astype(np.float32)
    y = np.arange(rows) % classes if classes else random.normal(size=rows)
    names = tuple(map(str, range(classes)))
    task = "classification" if classes else "regression"
    made = Dataset("toy", task, x, y, x[:0], y[:0], names)
    return replace(made, **given)


GROUPS = np.random.default_rng(1).integers(0, 40, ROWS)
TIME = np.random.default_rng(2).integers(0, 100, ROWS).astype(float)
CASES = {
    "classes": dataset(),
    "numbers": dataset(0),
    "groups": dataset(groups=GROUPS),
    "groups of a regression": dataset(0, groups=GROUPS),
    "time": dataset(time=TIME),
    "rows given": dataset(held=np.arange(20, 60)),
}


@pytest.mark.parametrize("case", CASES)
def test_no_row_is_on_both_sides_and_none_is_lost(case: str) -> None:
    inside, held = holdout(CASES[case], 0)
    assert sorted([*inside, *held]) == list(range(ROWS))
    for part, out in folds(CASES[case], 5, 0):
        assert len(part) > 0
        assert len(out) > 0
        assert not set(part) & set(out)


@pytest.mark.parametrize("case", ["classes", "numbers", "groups", "groups of a regression"])
def test_folds_hold_each_row_out_once(case: str) -> None:
    out = np.concatenate([held for _, held in folds(CASES[case], 5, 0)])
    assert sorted(out) == list(range(ROWS))


@pytest.mark.parametrize("case", CASES)
def test_the_seed_decides(case: str) -> None:
    first = holdout(CASES[case], 3)
    second = holdout(CASES[case], 3)
    np.testing.assert_array_equal(first[1], second[1])


def test_sizes_and_shares() -> None:
    assert len(holdout(dataset(), 0)[1]) == 75
    assert len(holdout(dataset(rows=4000), 0)[1]) == 400
    held = holdout(dataset(), 0)[1]
    assert np.bincount(np.arange(ROWS)[held] % 3).tolist() == [25, 25, 25]


def test_groups_stay_whole() -> None:
    pairs = [holdout(CASES["groups"], 0), *folds(CASES["groups"], 5, 0)]
    pairs.append(split(np.arange(ROWS) % 3, 0.2, 0, stratify=True, groups=GROUPS))
    for inside, held in pairs:
        assert not set(GROUPS[inside]) & set(GROUPS[held])
    assert len(pairs[0][1]) == pytest.approx(75, abs=25)


def test_nothing_of_the_future_trains() -> None:
    pairs = [holdout(CASES["time"], 0), *folds(CASES["time"], 5, 0)]
    pairs.append(split(np.arange(ROWS) % 3, 0.2, 0, stratify=True, time=TIME))
    assert len(pairs) == 7
    for inside, held in pairs:
        assert TIME[inside].max() < TIME[held].min()


def test_rows_of_one_time_are_split_all_the_same() -> None:
    inside, held = holdout(dataset(time=np.zeros(ROWS)), 0)
    assert (len(inside), len(held)) == (225, 75)
    assert len(folds(dataset(time=np.zeros(ROWS)), 5, 0)) == 1


def test_rows_that_the_user_gave_are_the_only_fold() -> None:
    (only,) = folds(CASES["rows given"], 5, 0)
    np.testing.assert_array_equal(only[1], np.arange(20, 60))


def test_a_class_with_one_row_always_trains() -> None:
    data = dataset()
    data.y_train[7] = 3
    data = replace(data, classes=("0", "1", "2", "3"))
    for inside, held in [holdout(data, 0), *folds(data, 5, 0)]:
        assert 7 in inside
        assert 7 not in held
    assert 7 in split(data.y_train, 0.6, 0, stratify=True)[0]


def test_tiny_parts_are_split() -> None:
    for rows in (2, 3, 5):
        for data in (dataset(0, rows), dataset(2, rows)):
            for inside, held in [holdout(data, 0), *folds(data, 5, 0)]:
                assert len(inside) > 0
                assert len(held) > 0


def test_what_cannot_be_split_is_said() -> None:
    with pytest.raises(DataError, match="all of one group"):
        holdout(dataset(groups=np.zeros(ROWS, int)), 0)
    with pytest.raises(DataError, match="group and time .* at once: give one"):
        folds(dataset(groups=GROUPS, time=TIME), 5, 0)
    with pytest.raises(DataError, match="1 sample in the training part"):
        folds(dataset(0, 1), 5, 0)


def test_the_fingerprint_follows_what_the_rows_are_given() -> None:
    given = [dataset(), *(CASES[case] for case in ("groups", "time", "rows given"))]
    given += [dataset(weight=np.ones(ROWS)), dataset(targets=("a",))]
    assert len({data.fingerprint for data in given}) == len(given)
