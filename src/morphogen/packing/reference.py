"""What a number is compared with before it is cut into bins: `Reference`.

none     nothing
row      the number one row above
columns  a linear map of earlier columns of the same row, in integers, the same on any machine:
         (offset + sum_k weight_k value_k) >> 16
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from morphogen.packing.bins import bits, cut, place

ReferenceName = Literal["none", "row", "columns"]
_SHIFT = 16
_LARGEST = 1 << 40
_MOST_WEIGHT = 1 << 21
_MOST_COLUMNS = 8
_ROWS = 20_000  # that a linear map is fitted to
_BITS_OF_CELL = 6.0  # of a pair of levels, that a model would have to learn


@dataclass(frozen=True)
class Reference:
    """start: what the first row is compared with, of "row". columns, weights, offset: of
    "columns".
    """

    name: ReferenceName = "none"
    start: int = 0
    columns: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    offset: int = 0


def subtract(
    reference: Reference, values: np.ndarray, earlier: Mapping[int, np.ndarray]
) -> np.ndarray:
    """values less their reference, int64. earlier: the values of columns before, by number."""
    if reference.name == "row":
        return np.asarray(np.diff(values, prepend=np.int64(reference.start)))
    if reference.name == "columns":
        return np.asarray(values - _predicted(reference, earlier))
    return values


def add(
    reference: Reference, differences: np.ndarray, earlier: Mapping[int, np.ndarray]
) -> np.ndarray:
    """The values that `subtract` was given."""
    if reference.name == "row":
        return np.asarray(np.cumsum(differences, dtype=np.int64) + np.int64(reference.start))
    if reference.name == "columns":
        return np.asarray(differences + _predicted(reference, earlier))
    return differences


def _predicted(reference: Reference, earlier: Mapping[int, np.ndarray]) -> np.ndarray:
    pairs = zip(reference.columns, reference.weights, strict=True)
    total = sum(earlier[column] * np.int64(weight) for column, weight in pairs)
    return np.asarray((total + np.int64(reference.offset)) >> _SHIFT)


def choose(
    values: np.ndarray,
    there: np.ndarray,
    earlier: Mapping[int, np.ndarray],
    levels: Sequence[np.ndarray],
    most: int,
) -> Reference:
    """The reference with which numbers are shortest. there: rows that have a number. levels: of all
    columns before, what a model sees of them.
    """
    plain = Reference()
    if there.sum() < 16 or np.abs(values[there]).max() >= _LARGEST:
        return plain
    found = [plain, _row(values[there])]
    linear = _linear(values, there, earlier)
    found += [linear] if linear else []
    costs = []
    for reference in found:
        whole = filled(values, there, reference.start)
        numbers = subtract(reference, whole, earlier)[there]
        bins = cut(numbers, most)
        cost = bits(bins, numbers)
        if reference is plain and len(values) > 200:
            level = place(bins, numbers)[0]
            # what a model can see of the number itself, it cannot see of a difference
            cost -= max((_shared(level, other[there]) for other in levels), default=0.0)
        costs.append(cost)
    return found[int(np.argmin(costs))]


def filled(values: np.ndarray, there: np.ndarray, start: int) -> np.ndarray:
    """With the number above, or start, where there is none."""
    last = np.maximum.accumulate(np.where(there, np.arange(len(values)), -1))
    return np.where(last < 0, np.int64(start), values[last])


def _row(values: np.ndarray) -> Reference:
    steps, counts = np.unique(np.diff(values), return_counts=True)
    # so that the first row's difference is the most frequent one
    usual = int(steps[counts.argmax()]) if len(steps) else 0
    return Reference("row", start=int(values[0]) - usual)


def _linear(
    values: np.ndarray, there: np.ndarray, earlier: Mapping[int, np.ndarray]
) -> Reference | None:
    """Least absolute differences, by least squares that are weighted anew, over the columns that
    are most alike.
    """
    usable = [k for k, column in earlier.items() if 0 < np.abs(column).max() < _LARGEST]
    rows = np.flatnonzero(there)
    rows = rows[:: max(1, len(rows) // _ROWS)]
    y = values[rows].astype(np.float64)
    if not usable or len(rows) < 64 or y.std() == 0:
        return None
    x = np.stack([earlier[k][rows] for k in usable]).astype(np.float64)
    spread = x.std(1)
    covariance = (x - x.mean(1, keepdims=True)) @ (y - y.mean())
    alike = np.abs(covariance) / np.maximum(spread, 1e-9)
    kept = [k for k in np.argsort(-alike)[:_MOST_COLUMNS] if spread[k] > 0]
    matrix = np.column_stack([*x[kept], np.ones(len(y))])
    scale = np.abs(matrix).max(0)
    weight = np.ones(len(y))
    for _ in range(8):
        root = np.sqrt(weight)[:, None]
        solved = np.linalg.lstsq(matrix / scale * root, y * root[:, 0], rcond=1e-10)[0]
        weight = 1 / np.maximum(np.abs(y - matrix / scale @ solved), 0.5)
    whole = np.round(solved / scale * (1 << _SHIFT))
    if not len(kept) or np.abs(whole[:-1]).max() > _MOST_WEIGHT or abs(whole[-1]) > 2.0**60:
        return None
    pairs = [(int(usable[k]), int(w)) for k, w in zip(kept, whole[:-1], strict=True) if w]
    if not pairs:
        return None
    columns, weights = zip(*pairs, strict=True)
    # half a unit, so that the shift rounds
    offset = int(whole[-1]) + (1 << _SHIFT - 1)
    return Reference("columns", columns=columns, weights=weights, offset=offset)


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    """Bits that one level says of another over all rows, less what learning the pairs costs."""
    width = int(b.max()) + 1
    table = np.bincount(a * width + b)
    pairs = np.flatnonzero(table)
    counts = table[pairs]
    own = np.bincount(a)[pairs // width]
    other = np.bincount(b)[pairs % width]
    information = (counts * np.log2(counts * len(a) / (own * other))).sum()
    return float(information) - _BITS_OF_CELL * len(pairs)
