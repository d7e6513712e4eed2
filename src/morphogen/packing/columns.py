"""A mixed table as bits and rests, and back, exactly: `fit_columns`, `Columns`.

A column becomes one group of the density model, the levels of a category: a text, a missing cell, a
frequent number, or a bin of numbers, with a rest that says which number of the bin. A column of two
levels is one bit, of one level none. Texts of which there are too many go along as they are.

Everything is text at first; numbers are those texts that an integer gives back letter by letter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from morphogen.density.groups import Groups
from morphogen.errors import DataError
from morphogen.packing.bins import Bins, cut, place, value_of
from morphogen.packing.cells import Text, cells_of, distinct_of, dtype_of, series_of
from morphogen.packing.formats import Format, fixed_for, missed, parse, prefix_of, write
from morphogen.packing.reference import Reference, add, choose, filled, subtract

MOST_LEVELS = 32  # of numbers
MOST_TEXTS = 64  # that are levels of their own
_MOST_ODD = 16  # texts that are no numbers, among numbers

LEVELS = Format("levels")


@dataclass(frozen=True)
class Column:
    """kind: "levels" or, of cells that go along as they are, "text". dtype: what pandas calls it.
    odd: texts that do not belong to the format; they are the first levels.
    """

    name: str
    dtype: str
    kind: Literal["levels", "text"] = "levels"
    format: Format = LEVELS
    odd: tuple[Text, ...] = ()
    reference: Reference = field(default_factory=Reference)
    bins: Bins = field(default_factory=Bins)

    @property
    def levels(self) -> int:
        return 0 if self.kind == "text" else len(self.odd) + len(self.bins)

    @property
    def has_rest(self) -> bool:
        return any(size > 1 for size in self.bins.sizes)

    @property
    def bits(self) -> int:
        """Of the model: a category, one bit, or none."""
        return {0: 0, 1: 0, 2: 1}.get(self.levels, self.levels)


@dataclass(frozen=True)
class Coded:
    """A table as the model sees it. bits: (rows, groups.bits), float32. levels: (rows,) of every
    column that has more than one. rests: (rows,) uint64 of every column whose bins have one. texts:
    cells of the columns that go along as they are. All by the column's number.
    """

    rows: int
    bits: np.ndarray
    levels: Mapping[int, np.ndarray]
    rests: Mapping[int, np.ndarray]
    texts: Mapping[int, Sequence[Text]]


@dataclass(frozen=True)
class Columns:
    """How every column of a table is coded."""

    columns: tuple[Column, ...]

    @cached_property
    def coded(self) -> tuple[int, ...]:
        """The columns that are a group of the model, in its order."""
        return tuple(k for k, column in enumerate(self.columns) if column.bits)

    @cached_property
    def groups(self) -> Groups:
        return Groups(tuple(self.columns[k].bits for k in self.coded))

    def encode(self, frame: pd.DataFrame) -> Coded:
        """Raises `DataError` for a table with other columns, or a value that these do not know."""
        names = [str(name) for name in frame.columns]
        own = [column.name for column in self.columns]
        if names != own:
            raise DataError(
                f"frame has the columns {names[:20]}: these are of a table with {own[:20]}"
            )
        cells = [cells_of(frame, number) for number in range(len(own))]
        levels: dict[int, np.ndarray] = {}
        rests: dict[int, np.ndarray] = {}
        values: dict[int, np.ndarray] = {}
        for number, column in enumerate(self.columns):
            if column.kind == "text":
                continue
            level, rest, values[number] = _encoded(column, cells[number], values)
            if column.bits:
                levels[number] = level
            if column.has_rest:
                rests[number] = rest
        texts = {k: cells[k] for k, column in enumerate(self.columns) if column.kind == "text"}
        return Coded(len(frame), self.bits_of(levels, len(frame)), levels, rests, texts)

    def decode(self, coded: Coded) -> pd.DataFrame:
        """The table that was encoded."""
        series: list[pd.Series] = []
        values: dict[int, np.ndarray] = {}
        for number, column in enumerate(self.columns):
            if column.kind == "text":
                texts = list(coded.texts[number])
            else:
                level = coded.levels.get(number, np.zeros(coded.rows, dtype=np.int64))
                rest = coded.rests.get(number, np.zeros(coded.rows, dtype=np.uint64))
                texts, values[number] = _decoded(column, level, rest, values)
            series.append(series_of(texts, column.dtype))
        frame = pd.concat(series, axis=1)
        frame.columns = pd.Index([column.name for column in self.columns])
        return frame

    def bits_of(self, levels: Mapping[int, np.ndarray], rows: int) -> np.ndarray:
        """(rows, groups.bits) from the level of each column."""
        bits = np.zeros((rows, self.groups.bits), dtype=np.float32)
        every = np.arange(rows)
        for group, number in enumerate(self.coded):
            start = self.groups.starts[group]
            level = levels[number]
            if self.groups.sizes[group] == 1:
                bits[:, start] = level
            else:
                bits[every, start + level] = 1
        return bits

    def levels_of(self, bits: np.ndarray) -> dict[int, np.ndarray]:
        """The other way round."""
        levels = {}
        for group, number in enumerate(self.coded):
            own = bits[:, self.groups.slice(group)]
            levels[number] = (own[:, 0] if own.shape[1] == 1 else own.argmax(1)).astype(np.int64)
        return levels


def fit_columns(frame: pd.DataFrame) -> Columns:
    """How to code this table. Raises `DataError` for a table without rows or columns, and for cells
    that are neither numbers nor texts.
    """
    if not len(frame) or not len(frame.columns):
        raise DataError(
            f"frame has {frame.shape[0]} rows and {frame.shape[1]} columns: none to code"
        )
    columns: list[Column] = []
    values: dict[int, np.ndarray] = {}
    numbers: dict[int, np.ndarray] = {}
    levels: list[np.ndarray] = []
    for number in range(len(frame.columns)):
        cells = cells_of(frame, number)
        name = str(frame.columns[number])
        column = _fitted(name, dtype_of(frame, number), cells, numbers, levels)
        columns.append(column)
        if column.kind == "text":
            continue
        level, _, values[number] = _encoded(column, cells, values)
        if column.bits:
            levels.append(level)
        if column.format.name == "fixed" and column.levels > 2:
            numbers[number] = values[number]
    return Columns(tuple(columns))


def _fitted(
    name: str,
    dtype: str,
    cells: Sequence[Text],
    numbers: Mapping[int, np.ndarray],
    levels: Sequence[np.ndarray],
) -> Column:
    codes, distinct = distinct_of(cells)
    counts = dict(zip(distinct, np.bincount(codes).tolist(), strict=True))
    form = _format(counts)
    plain = Column(name, dtype, format=form)
    if form.name == "levels":
        known = {text: place for place, text in enumerate(form.texts)}
        if len(known) > max(2, min(max(MOST_TEXTS, len(cells) // 8), len(cells) // 2)):
            return Column(name, dtype, "text")
        places = np.array([known[text] for text in distinct])[codes]
        return replace(plain, bins=cut(places, MOST_TEXTS))
    parsed = parse(form, distinct)
    odd = [text for text, value in zip(distinct, parsed, strict=True) if value is None]
    plain = replace(plain, odd=tuple(sorted(odd, key=lambda text: (text is not None, text or ""))))
    read, there = _values(plain, cells)
    reference = Reference()
    if form.name == "fixed" and len(distinct) > 8:
        reference = choose(read, there, numbers, levels, MOST_LEVELS)
    differences = subtract(reference, filled(read, there, reference.start), numbers)
    return replace(plain, reference=reference, bins=cut(differences[there], MOST_LEVELS))


def _format(counts: Mapping[Text, int]) -> Format:
    """Numbers where all but a few texts are some, else levels, the most frequent first."""
    fixed = fixed_for(counts)
    for form in (fixed, Format("float", prefix_of(counts))):
        wrong = missed(form, counts)
        if len(counts) > 2 and wrong <= min(_MOST_ODD, len(counts) / 4):
            return form
    texts = sorted(counts, key=lambda text: (-counts[text], text is not None, text or ""))
    return Format("levels", texts=tuple(texts))


def _encoded(
    column: Column, cells: Sequence[Text], earlier: Mapping[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(level, rest, value) of every cell."""
    read, there = _values(column, cells)
    values = filled(read, there, column.reference.start)
    differences = subtract(column.reference, values, earlier)
    level, rest, known = place(column.bins, differences)
    known |= ~there
    if not known.all():
        _unseen(column, cells[int(np.argmin(known))])
    level = np.where(there, level + len(column.odd), read)
    return level, np.where(there, rest, np.uint64(0)), values


def _decoded(
    column: Column, level: np.ndarray, rest: np.ndarray, earlier: Mapping[int, np.ndarray]
) -> tuple[list[Text], np.ndarray]:
    """(texts, values) of every cell."""
    there = level >= len(column.odd)
    shifted = np.where(there, level - len(column.odd), 0)
    differences = value_of(column.bins, shifted, rest) if len(column.bins) else shifted
    if column.reference.name == "row":
        # a row without a number hands on the number above
        values = add(column.reference, np.where(there, differences, 0), earlier)
    else:
        values = filled(add(column.reference, differences, earlier), there, 0)
    distinct, codes = np.unique(values[there], return_inverse=True)
    cells = np.empty(len(level), dtype=object)
    cells[there] = _objects(write(column.format, distinct.tolist()))[codes]
    cells[~there] = _objects(column.odd)[level[~there]]
    return cells.tolist(), values


def _objects(texts: Sequence[Text]) -> np.ndarray:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def _values(column: Column, cells: Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
    """(integer, whether the cell is a number); of others the integer is the place in `odd`."""
    codes, distinct = distinct_of(cells)
    odd = {text: place for place, text in enumerate(column.odd)}
    parsed = parse(column.format, distinct)
    there = np.array([text not in odd for text in distinct], dtype=bool)
    for text, value, number in zip(distinct, parsed, there, strict=True):
        if number and value is None:
            _unseen(column, text)
    pairs = zip(distinct, parsed, strict=True)
    values = np.array([odd.get(text, value) for text, value in pairs], dtype=np.int64)
    return values[codes], there[codes]


def _unseen(column: Column, text: Text) -> None:
    raise DataError(
        f"column {column.name!r} has the value {text!r}, which the table that these columns were "
        "fitted to does not have: fit_columns to this table"
    )
