"""Which rows train and which test."""

import numpy as np

from morphogen.errors import DataError


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
