"""Which rows train and which test."""

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from morphogen.data.dataset import Dataset
from morphogen.errors import DataError

_HELD_OUT = 6000  # most rows that are ever held out for decisions


def split(
    y: np.ndarray, fraction: float, seed: int, *, stratify: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) row indices in increasing order; the test part has about `fraction` of the
    rows.

    With `stratify`, each class of y gives round(fraction * its rows) to the test part, so up to a
    fraction of 0.2 a class with two rows keeps both in training. DataError: a fraction outside [0,
    1).
    """
    if not 0 <= fraction < 1:
        raise DataError(
            f"test_fraction={fraction} is out of range: give a number from 0 up to, not including, "
            "1"
        )
    random = np.random.default_rng(seed)
    groups = (
        [np.flatnonzero(y == label) for label in np.unique(y)] if stratify else [np.arange(len(y))]
    )
    taken = [random.permutation(rows)[: round(fraction * len(rows))] for rows in groups]
    test = np.sort(np.concatenate(taken)) if taken else np.arange(0)
    return np.setdiff1d(np.arange(len(y)), test), test


def holdout(dataset: Dataset, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows held out): a tenth, at least 200 where that is at most a quarter,
    stratified where possible.
    """
    n = len(dataset.x_train)
    if n < 2:
        raise DataError(f"{n} sample in the training part; give at least 2")
    held = min(max(1, n // 10, min(200, n // 4)), _HELD_OUT)
    y = dataset.y_train
    stratify = None
    if dataset.task == "classification":
        _, counts = np.unique(y, return_counts=True)
        fits = counts.min() >= 2 and held >= len(counts) and n - held >= len(counts)
        stratify = y if fits else None
    inside, out = train_test_split(
        np.arange(n), test_size=held, random_state=seed % 2**32, stratify=stratify
    )
    return inside, out


def folds(dataset: Dataset, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`count` pairs (rows to train on, rows held out); each row is held out once."""
    y = dataset.y_train
    kind = KFold
    if dataset.task == "classification" and np.unique(y, return_counts=True)[1].max() >= count:
        kind = StratifiedKFold
    return list(kind(count, shuffle=True, random_state=seed % 2**32).split(dataset.x_train, y))
