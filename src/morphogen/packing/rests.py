"""The rests of columns on an ANS stack, and back: `push_rests`, `pop_rests`.

A rest is coded given its bin alone: evenly on a grid, or by the counts that travel along.
"""

from collections.abc import Mapping

import numpy as np

from morphogen.packing.coder import Coder, pop_counted, pop_even, push_counted, push_even
from morphogen.packing.columns import Coded, Column, Columns


def push_rests(coder: Coder, columns: Columns, coded: Coded) -> None:
    for number in reversed([*coded.rests]):
        column = columns.columns[number]
        rest = coded.rests[number]
        own = _bin(column, coded.levels.get(number), coded.rows)
        if column.bins.counts:
            for place in reversed(range(len(column.bins.sizes))):
                counts = column.bins.counts_of(place)
                push_counted(coder, rest[own == place].astype(np.int64), counts)
        else:
            push_even(coder, rest[own >= 0], _sizes(column)[own[own >= 0]])


def pop_rests(
    coder: Coder, columns: Columns, levels: Mapping[int, np.ndarray], rows: int
) -> dict[int, np.ndarray]:
    """Those that were pushed, by the column's number."""
    rests = {}
    for number, column in enumerate(columns.columns):
        if not column.has_rest:
            continue
        rest = np.zeros(rows, dtype=np.uint64)
        own = _bin(column, levels.get(number), rows)
        if column.bins.counts:
            for place in range(len(column.bins.sizes)):
                chosen = own == place
                counts = column.bins.counts_of(place)
                rest[chosen] = pop_counted(coder, int(chosen.sum()), counts)
        else:
            rest[own >= 0] = pop_even(coder, _sizes(column)[own[own >= 0]])
        rests[number] = rest
    return rests


def _bin(column: Column, level: np.ndarray | None, rows: int) -> np.ndarray:
    """The bin of each row, negative where the level is none."""
    level = np.zeros(rows, dtype=np.int64) if level is None else level
    return level - len(column.odd) - len(column.bins.singles)


def _sizes(column: Column) -> np.ndarray:
    return np.array(column.bins.sizes, dtype=np.uint64)
