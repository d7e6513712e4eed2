"""Rows that could stand in a table, made of pairs of its rows: `between(x, preparation, count,
seed)`.

Of each column of the table a new row has what one of its two parents has; every second row lies
between them instead, wherever a column is a number. That is done before numbers are binned: half
way between the bins of two values are the bins of no value.

Source: Bucila, Caruana and Niculescu-Mizil 2006, "Model compression" (MUNGE), which mixes a row
with its nearest neighbour; Zhang et al. 2018 (arXiv 1710.09412), mixup. Differs: parents are any
two rows, and nothing is said of a new row's target.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from morphogen.data.apply_preparation import encoded
from morphogen.data.preparation import Number, Preparation

_FEW = 16  # values of a column that has none between them


def between(x: np.ndarray, preparation: Preparation | None, count: int, seed: int) -> np.ndarray:
    """(count, features) in float32. x: rows (n, features) as `preparation` makes them, or numbers
    alone where it is None.
    """
    draw = np.random.default_rng([seed, 8])
    first, second = draw.integers(len(x), size=(2, count))
    share = draw.random(count)
    on_line = np.arange(count) % 2 == 0
    # the nearer parent's, more often
    chance = np.where(on_line, share, 0.5)
    made = np.empty((count, x.shape[1]), np.float32)
    for place, number in _blocks(x, preparation):
        one, other = x[first, place], x[second, place]
        made[:, place] = np.where((draw.random(count) < chance)[:, None], one, other)
        if number is not None and len(np.unique(x[:, place.start])) > _FEW:
            inside = on_line & _known(one, number) & _known(other, number)
            z = share * one[:, 0] + (1 - share) * other[:, 0]
            made[inside, place] = encoded(z[inside] * number.scale + number.mean, asdict(number))
    return made


def _blocks(
    x: np.ndarray, preparation: Preparation | None
) -> Iterator[tuple[slice, Number | None]]:
    """Where each column of the table stands in x, and what it is as a number."""
    if preparation is None:
        plain = Number("", 0.0, 0.0, 1.0, math.inf, (), missing=False)
        yield from ((slice(place, place + 1), plain) for place in range(x.shape[1]))
        return
    start = 0
    for size, number in preparation.blocks:
        yield slice(start, start + size), number
        start += size


def _known(cells: np.ndarray, number: Number) -> np.ndarray:
    """Whether their value is: not where it is missing, or cut off at `clip`."""
    known = np.asarray(np.abs(cells[:, 0]) < number.clip)
    return np.logical_and(known, cells[:, -1] == 0) if number.missing else known
