"""Arrays as data sets."""

from dataclasses import replace

import numpy as np
import pytest

from morphogen.data.dataset import from_arrays
from morphogen.data.split import split
from morphogen.errors import DataError

X = np.random.default_rng(0).normal(size=(20, 3))
Y = ["no", "yes"] * 10
IMAGES = np.full((20, 3, 8, 8), 255, np.uint8)


def test_a_table_with_text_labels() -> None:
    data = from_arrays(X, Y, X[:4], Y[:4])
    assert (data.task, data.classes, data.prepare) == ("classification", ("no", "yes"), None)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int64)
    assert data.y_test.tolist() == [0, 1, 0, 1]


def test_images_of_bytes_become_numbers_up_to_one() -> None:
    assert from_arrays(IMAGES, Y).x_train.max() == 1


def test_without_a_test_part_the_arrays_are_empty() -> None:
    data = from_arrays(X, X[:, 0])
    assert data.task == "regression"
    assert (data.x_test.shape, data.y_test.shape) == ((0, 3), (0,))
    assert data.y_train.dtype == data.y_test.dtype == np.float64


def test_the_fingerprint_follows_the_content() -> None:
    data = from_arrays(X, Y)
    assert len(data.fingerprint) == 16
    assert data.fingerprint == from_arrays(X.copy(), list(Y), name="another").fingerprint
    changed = X.copy()
    changed[0, 0] += 1
    others = [from_arrays(changed, Y), from_arrays(X, Y, X, Y), replace(data, classes=("a", "b"))]
    assert data.fingerprint not in {other.fingerprint for other in others}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[:, 0], Y), r"x_train has shape \(20,\): give \(n, features\)"),
        ((X[:, :0], Y), "there is no feature"),
        ((X[:0], []), "x_train has no rows"),
        ((IMAGES.transpose(0, 2, 3, 1), Y), r"channels last: give x_train.transpose\(0, 3, 1, 2\)"),
        ((np.where(X > 1, np.nan, X), Y), "values that are NaN or infinite"),
        ((np.where(X > 1, np.inf, X), Y), "values that are NaN or infinite"),
        ((X.astype(str).astype(object) + "x", Y), "x_train is not numeric"),
        ((X, Y[:5]), r"y_train has shape \(5,\): x has 20 rows"),
        ((X, [None, "yes"] * 10), "y_train has missing, NaN or infinite values"),
        ((X, [np.inf, 1.0] * 10), "y_train has missing, NaN or infinite values"),
        ((X, ["yes"] * 20), "target 'y_train' is constant"),
        ((X, Y, X), "x_test and y_test belong together"),
        ((X, Y, X[:, :2], Y), r"x_test has rows of shape \(2,\)"),
        ((X, Y, X, ["maybe"] * 20), "class 'maybe' .* in the test part only"),
        ((X, Y, None, None, "regression"), "holds text such as 'no': regression needs numbers"),
    ],
)
def test_faults(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(*arguments)


def test_a_class_with_one_row_is_kept_and_said() -> None:
    data = from_arrays(X, ["odd"] + ["no", "yes"] * 9 + ["no"])
    assert data.classes == ("no", "odd", "yes")
    assert "class 'odd' of target 'y_train' has one row only: kept in training" in data.notes[0]


def test_split_is_a_partition() -> None:
    y = np.array([0] * 2 + [1] * 3 + [2] * 50)
    train, test = split(y, 0.2, 0, stratify=True)
    assert sorted([*train, *test]) == list(range(55))
    assert np.bincount(y[test], minlength=3).tolist() == [0, 1, 10]
    assert [len(part) for part in split(y, 0.2, 0, stratify=False)] == [44, 11]
    assert len(split(y, 0.0, 0, stratify=True)[1]) == 0
