"""Which rows train, which test, and which are held out of training for decisions."""

import warnings

import numpy as np
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)

from morphogen.data.dataset import Dataset
from morphogen.errors import DataError

Parts = tuple[np.ndarray, np.ndarray]

_HELD_OUT = 6000  # most rows that are ever held out for decisions
_STRATIFIED = 20_000  # groups x folds up to which groups are dealt out by class, which is slow


def split(
    y: np.ndarray,
    fraction: float,
    seed: int,
    *,
    stratify: bool,
    groups: np.ndarray | None = None,
    time: np.ndarray | None = None,
) -> Parts:
    """(train, test) row indices in increasing order; the test part has about `fraction` of the
    rows.

    With `stratify`, each class of y gives round(fraction * its rows) to the test part, so up to a
    fraction of 0.2 a class with two rows keeps both in training; a class with one row always does.
    With `groups` (codes) no group is in both parts; with `time` no row of the test part is earlier
    than a training row. DataError: a fraction outside [0, 1), groups and time at once.
    """
    if not 0 <= fraction < 1:
        raise DataError(
            f"test_fraction={fraction} is out of range: give a number from 0 up to, not including, "
            "1"
        )
    rows = np.arange(len(y))
    count = round(fraction * len(y))
    if count and (groups is not None or time is not None):
        return _apart(y if stratify else None, count, seed, groups, time)
    random = np.random.default_rng(seed)
    classes = [np.flatnonzero(y == label) for label in np.unique(y)] if stratify else [rows]
    sizes = [round(fraction * len(members)) for members in classes]
    taken = [
        random.permutation(members)[: min(size, len(members) - 1)]
        for members, size in zip(classes, sizes, strict=True)
    ]
    test = np.sort(np.concatenate(taken)) if taken else np.arange(0)
    return np.setdiff1d(rows, test), test


def holdout(dataset: Dataset, seed: int) -> Parts:
    """(rows to train on, rows held out for decisions), both of the training part.

    The rows that the user gave, where there are any; else a tenth, at least 200 where that is at
    most a quarter, at most 6,000: whole groups, the latest rows where there is a time, stratified
    where possible. A class with one row is never held out. DataError: fewer than two rows, or one
    group only.
    """
    n = _rows(dataset)
    if dataset.held is not None:
        return np.setdiff1d(np.arange(n), dataset.held), dataset.held
    count = min(max(1, n // 10, min(200, n // 4)), _HELD_OUT)
    labels = dataset.y_train if dataset.task == "classification" else None
    if dataset.groups is not None or dataset.time is not None:
        return _apart(labels, count, seed, dataset.groups, dataset.time)
    several = _several(labels, n)
    count = min(count, max(1, len(several) - 1))
    if len(several) < 2:
        return np.arange(n), np.arange(n)[-1:]
    stratify = None
    if labels is not None:
        _, counts = np.unique(labels[several], return_counts=True)
        enough = count >= len(counts) and len(several) - count >= len(counts)
        stratify = labels[several] if enough else None
    inside, held = train_test_split(
        several, test_size=count, random_state=seed % 2**32, stratify=stratify
    )
    # in front, so that a table without such rows is split as train_test_split alone would
    return np.concatenate([np.setdiff1d(np.arange(n), several), inside]), held


def folds(dataset: Dataset, count: int, seed: int) -> list[Parts]:
    """At most `count` pairs (rows to train on, rows held out) of the training part.

    Every row is held out once, but for a class with one row, which never is; stratified where
    possible, groups whole. With a time, count forward chaining folds: each holds out what comes
    next after its training rows. Validation rows that the user gave are the only fold. DataError:
    fewer than two rows, or one group only.
    """
    n = _rows(dataset)
    if dataset.held is not None:
        return [holdout(dataset, seed)]
    if dataset.time is not None:
        _not_both(dataset.groups, dataset.time)
        return _chained(dataset.time, count)
    labels = dataset.y_train if dataset.task == "classification" else None
    if dataset.groups is not None:
        return _by_group(labels, dataset.groups, count, seed)
    several = _several(labels, n)
    if len(several) < 2:
        return [holdout(dataset, seed)]
    splits = min(count, len(several))
    common = labels is not None and np.unique(labels[several], return_counts=True)[1].max()
    kind = StratifiedKFold if labels is not None and common >= splits else KFold
    dealer = kind(splits, shuffle=True, random_state=seed % 2**32)
    pairs: list[Parts] = []
    with warnings.catch_warnings():
        # a class with fewer rows than folds is dealt out as far as it goes
        warnings.simplefilter("ignore", UserWarning)
        for _, out in dealer.split(several, None if labels is None else labels[several]):
            pairs.append((np.setdiff1d(np.arange(n), several[out]), several[out]))
    return pairs


def _rows(dataset: Dataset) -> int:
    n = len(dataset.x_train)
    if n < 2:
        raise DataError(f"{n} sample in the training part; give at least 2")
    return n


def _several(labels: np.ndarray | None, n: int) -> np.ndarray:
    """The rows whose class has another row; all rows without classes."""
    if labels is None:
        return np.arange(n)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[codes] > 1)


def _apart(
    labels: np.ndarray | None,
    count: int,
    seed: int,
    groups: np.ndarray | None,
    time: np.ndarray | None,
) -> Parts:
    """(inside, held) with about `count` rows held, by time or by group."""
    _not_both(groups, time)
    if time is not None:
        later = _later(time, count)
        return np.flatnonzero(~later), np.flatnonzero(later)
    assert groups is not None
    return _by_group(labels, groups, max(2, round(len(groups) / count)), seed)[0]


def _not_both(groups: np.ndarray | None, time: np.ndarray | None) -> None:
    if groups is not None and time is not None:
        raise DataError("group and time cannot be kept apart at once: give one of them")


def _later(time: np.ndarray, count: int) -> np.ndarray:
    """Which rows come last, about `count` of them; rows of one time stay together where they
    can.
    """
    order = np.argsort(time, kind="stable")
    border = time[order[len(time) - count]]
    for later in (time >= border, time > border):
        if later.any() and not later.all():
            return np.asarray(later)
    last = np.zeros(len(time), bool)
    last[order[len(time) - count :]] = True
    return last


def _chained(time: np.ndarray, count: int) -> list[Parts]:
    """Forward chaining: the rows in order of time in count + 1 blocks; fold i trains on the blocks
    before block i + 1.
    """
    n = len(time)
    blocks = min(count, n - 1) + 1
    borders = np.unique(np.sort(time)[[n * i // blocks for i in range(blocks)]])
    block = np.searchsorted(borders, time, side="right")
    if len(borders) < 2:
        later = _later(time, max(1, n // blocks))
        return [(np.flatnonzero(~later), np.flatnonzero(later))]
    return [
        (np.flatnonzero(block < i), np.flatnonzero(block == i)) for i in range(2, len(borders) + 1)
    ]


def _by_group(labels: np.ndarray | None, groups: np.ndarray, count: int, seed: int) -> list[Parts]:
    different = len(np.unique(groups))
    if different < 2:
        raise DataError(
            "the rows to split are all of one group: give a group column with at least two values"
        )
    splits = min(count, different)
    common = 0 if labels is None else np.unique(labels, return_counts=True)[1].max()
    stratify = common >= splits and different * splits <= _STRATIFIED
    kind = StratifiedGroupKFold if stratify else GroupKFold
    dealer = kind(splits, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # a class with fewer rows than folds is dealt out as far as it goes
        warnings.simplefilter("ignore", UserWarning)
        pairs = list(dealer.split(groups, labels, groups))
    return [(inside, held) for inside, held in pairs if len(held) and len(inside)]
