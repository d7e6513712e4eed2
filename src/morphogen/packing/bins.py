"""Integers as a level of few and a rest: `Bins`.

A frequent value is a level of its own, with no rest. Others lie in bins of about as many rows each;
the rest says where in its bin a value is: its place on an even grid, or among the values that were
seen, whose counts then travel along.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MOST_TABLE = 1 << 20  # values whose counts may be listed


@dataclass(frozen=True)
class Bins:
    """singles: values that are a level of their own, ascending. lows, steps, sizes: the grid of
    each bin, low + step * (0 .. size - 1), where `counts` is empty. Otherwise `values` are those of
    all bins together, ascending, `sizes` how many belong to each bin, `counts` how often each was
    seen.
    """

    singles: tuple[int, ...] = ()
    lows: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    def __len__(self) -> int:
        """How many levels there are."""
        return len(self.singles) + len(self.sizes)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each bin's values begin among all values, and their number."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    @cached_property
    def size_of_level(self) -> np.ndarray:
        """How many values each level stands for, uint64."""
        return np.array([1] * len(self.singles) + list(self.sizes), dtype=np.uint64)

    def counts_of(self, number: int) -> np.ndarray:
        """How often each value of a bin was seen."""
        start, stop = self.starts[number : number + 2]
        return np.array(self.counts[start:stop], dtype=np.float64)


def place(bins: Bins, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(level, rest, known) of int64 values: level int64, rest uint64, known whether a value is one
    of those that the bins stand for.
    """
    singles = np.array(bins.singles, dtype=np.int64)
    level, known = _among(singles, values)
    rest = np.zeros(len(values), dtype=np.uint64)
    if not bins.sizes:
        return level, rest, known
    others = ~known
    left = values[others]
    if bins.counts:
        where, found = _among(np.array(bins.values, dtype=np.int64), left)
        number = np.searchsorted(bins.starts, where, side="right") - 1
        inside = (where - bins.starts[number]).astype(np.uint64)
    else:
        lows = np.array(bins.lows, dtype=np.int64)
        number = np.clip(np.searchsorted(lows, left, side="right") - 1, 0, None)
        # differences of int64 need not fit into int64; modulo 2^64 they are right
        offset = left.view(np.uint64) - lows[number].view(np.uint64)
        step = np.array(bins.steps, dtype=np.uint64)[number]
        inside = offset // step
        found = (left >= lows[number]) & (offset % step == 0)
        found &= inside < np.array(bins.sizes, dtype=np.uint64)[number]
    level[others] = len(bins.singles) + number
    rest[others] = inside
    known[others] = found
    return level, rest, known


def value_of(bins: Bins, level: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The int64 values that `place` was given."""
    count = len(bins.singles)
    values = np.zeros(len(level), dtype=np.int64)
    single = level < count
    values[single] = np.array(bins.singles, dtype=np.int64)[level[single]]
    number = level[~single] - count
    inside = rest[~single]
    if bins.counts:
        listed = np.array(bins.values, dtype=np.int64)
        values[~single] = listed[bins.starts[number] + inside.astype(np.int64)]
    elif bins.sizes:
        low = np.array(bins.lows, dtype=np.int64)[number].view(np.uint64)
        step = np.array(bins.steps, dtype=np.uint64)[number]
        values[~single] = (low + step * inside).view(np.int64)
    return values


def cut(values: np.ndarray, most: int) -> Bins:
    """Bins for int64 values, at most `most` levels. All values have levels of their own where that
    is enough for them.
    """
    if not len(values):
        return Bins()
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= max(2, min(most, len(values) // 4)):
        return Bins(singles=_ints(distinct))
    levels = int(np.clip(np.sqrt(len(values)) / 2, 2, most))
    frequent = counts >= max(8, len(values) / (1.5 * levels))
    rare = distinct[~frequent]
    often = counts[~frequent]
    if not len(rare):
        return Bins(singles=_ints(distinct))
    bins = max(1, levels - int(frequent.sum()))
    # a bin ends at the value with which it has its share of the rows
    number = np.minimum((np.cumsum(often) - 1) * bins // often.sum(), bins - 1)
    edges = np.flatnonzero(np.diff(number, prepend=-1))
    parts = np.split(np.arange(len(rare)), edges[1:])
    return _cheaper(_ints(distinct[frequent]), rare, often, parts)


def _cheaper(
    singles: tuple[int, ...], rare: np.ndarray, often: np.ndarray, parts: Sequence[np.ndarray]
) -> Bins:
    """Grids, or the values seen with their counts, whichever takes fewer bits."""
    grids = [_grid(rare[part]) for part in parts]
    even = Bins(singles, *zip(*grids, strict=True))
    rows = [int(often[part].sum()) for part in parts]
    grid_bits = sum(row * np.log2(size) for row, size in zip(rows, even.sizes, strict=True))
    grid_bits += 32 * len(parts)
    listed = [often[part] for part in parts]
    table_bits = sum(_entropy(part) for part in listed) + _bits_of_table(rare, often)
    if table_bits >= grid_bits or len(rare) > MOST_TABLE:
        return even
    return Bins(singles, sizes=tuple(map(len, parts)), values=_ints(rare), counts=_ints(often))


def _grid(values: np.ndarray) -> tuple[int, int, int]:
    """(low, step, size) of the coarsest grid with all these ascending values."""
    if len(values) == 1:
        return int(values[0]), 1, 1
    offsets = values.view(np.uint64) - values[:1].view(np.uint64)
    step = int(np.gcd.reduce(offsets[1:]))
    return int(values[0]), step, int(offsets[-1]) // step + 1


def _entropy(counts: np.ndarray) -> float:
    """Bits of all rows together, coded by their own counts."""
    total = counts.sum()
    return float(-(counts * np.log2(counts / total)).sum())


def _bits_of_table(values: np.ndarray, counts: np.ndarray) -> float:
    """About what it takes to list values and counts in the compressed header."""
    gaps = np.diff(values.astype(np.float64))
    return float(np.log2(np.maximum(gaps, 1) * 2).sum() + (2 * np.log2(counts) + 2).sum() + 32)


def bits(bins: Bins, values: np.ndarray) -> float:
    """About what the values take by these bins alone, the bins counted in."""
    level, _, _ = place(bins, values)
    counts = np.bincount(level, minlength=len(bins))
    total = _entropy(counts[counts > 0]) + 24.0 * len(bins)
    inner = counts[len(bins.singles) :]
    if not bins.counts:
        sizes = np.array(bins.sizes, dtype=np.float64)
        return total + float((inner * np.log2(sizes)).sum())
    total += sum(_entropy(bins.counts_of(number)) for number in range(len(bins.sizes)))
    return total + _bits_of_table(np.array(bins.values), np.array(bins.counts))


def _among(listed: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in an ascending list, whether it is there) of each value."""
    if not len(listed):
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    where = np.clip(np.searchsorted(listed, values), 0, len(listed) - 1)
    return where, listed[where] == values


def _ints(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
