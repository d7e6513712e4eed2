"""A table's columns as variables of a density, and back: `fit_variables(frame)`.

    number     of few distinct values: these are its levels; two of them are one bit
               of many: cut at quantiles into bins; log p(x) = log p(bin) - log(width of the bin)
    category   its levels, and "(other)" for rare ones and those seen later

A gap is a level of its own where training rows have some; in later rows it is a value not known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from morphogen.data.apply_preparation import floats, text
from morphogen.data.columns import min_frequency, sort_columns
from morphogen.data.preparation import edges_of
from morphogen.density.groups import Groups
from morphogen.errors import DataError

BINS = 16  # of a number with many distinct values
FEW = 32  # distinct values up to which each is a level
OTHER = "(other)"
UNKNOWN = -1  # the level of a gap that is none


@dataclass(frozen=True)
class Variable:
    """levels: of a category its texts, without "(other)"; of a number of few values these, sorted.
    edges: of a number that is cut into bins. missing: whether a gap is a level, the last one. mark:
    the decimal mark of numbers written as text. whole: whether all values are whole numbers.
    """

    name: str
    levels: tuple[Any, ...] = ()
    edges: tuple[float, ...] = ()
    other: bool = False
    missing: bool = False
    mark: str = "."
    number: bool = False
    whole: bool = False

    @property
    def known(self) -> int:
        """Levels that are values."""
        return len(self.edges) - 1 if self.edges else len(self.levels) + self.other

    @property
    def size(self) -> int:
        """Levels, that of a gap included."""
        return self.known + self.missing

    @property
    def bits(self) -> int:
        """What it has in a row: nothing where it is constant, one where it has two levels."""
        return {1: 0, 2: 1}.get(self.size, self.size)

    def encode(self, cells: pd.Series) -> np.ndarray:
        """The level of each cell, `UNKNOWN` for a gap that is no level.

        DataError: a value that no level stands for.
        """
        codes = self._numbers(cells) if self.number else self._texts(cells)
        return np.where(codes == UNKNOWN, self.known if self.missing else UNKNOWN, codes)

    def _numbers(self, cells: pd.Series) -> np.ndarray:
        values = floats(cells, self.mark)
        if self.edges:
            codes = np.searchsorted(self.edges[1:-1], values, "right")
        else:
            own = np.asarray(self.levels, float)
            after = np.searchsorted(own, values).clip(1, max(1, len(own) - 1))
            nearest = np.abs(own[after - 1] - values) <= np.abs(own[after % len(own)] - values)
            codes = np.where(nearest, after - 1, after % len(own))
            strange = ~np.isnan(values) & ~np.isclose(own[codes], values, rtol=1e-6, atol=0)
            if strange.any() and not self.other:
                raise DataError(
                    f"column {self.name!r} has the value {values[strange][0]:g}: the training rows "
                    f"have only {', '.join(f'{v:g}' for v in self.levels[:10])}"
                )
            codes = np.where(strange, len(own), codes)
        if np.isinf(values).any():
            raise DataError(f"column {self.name!r} has an infinite value: leave such rows out")
        return np.where(np.isnan(values), UNKNOWN, codes)

    def excess(self, cells: pd.Series) -> np.ndarray:
        """What a number outside of all bins loses beside the log density of the outermost one:
        2 log(1 + its distance in widths of that bin), (rows,).
        """
        if not self.edges:
            return np.zeros(len(cells))
        values = np.nan_to_num(floats(cells, self.mark), nan=self.edges[0])
        low = (self.edges[0] - values) / (self.edges[1] - self.edges[0])
        high = (values - self.edges[-1]) / (self.edges[-1] - self.edges[-2])
        return np.asarray(2 * np.log1p(np.maximum(low, high).clip(0)))

    def _texts(self, cells: pd.Series) -> np.ndarray:
        codes = pd.Index(self.levels).get_indexer(np.asarray(text(cells), dtype=object))
        strange = (codes == -1) & cells.notna().to_numpy()
        if strange.any() and not self.other:
            raise DataError(
                f"column {self.name!r} has the value {cells[strange].iloc[0]!r}, which no training "
                "row has"
            )
        codes = np.where(strange, len(self.levels), codes)
        return np.where(cells.notna(), codes, UNKNOWN)

    def decode(self, codes: np.ndarray, draw: np.random.Generator | None = None) -> pd.Series:
        """Cells of these levels; of a bin a uniform draw, or without `draw` its middle."""
        if self.edges:
            edges = np.append(self.edges, np.nan)
            low = edges[codes.clip(max=self.known)]
            high = edges[(codes + 1).clip(max=self.known)]
            share = 0.5 if draw is None else draw.random(len(codes))
            values = low + (high - low) * share
            return pd.Series(np.floor(values) if self.whole else values, name=self.name)
        other = None if self.number else OTHER
        kinds = [*self.levels, *[other] * self.other, None]
        cells = [kinds[code] for code in codes]
        return pd.Series(cells, name=self.name, dtype=float if self.number else object)

    @cached_property
    def log_widths(self) -> np.ndarray:
        """What a level's log probability loses to become a log density, (size,)."""
        if not self.edges:
            return np.zeros(int(self.size))
        return np.append(np.log(np.diff(self.edges)), np.zeros(int(self.missing)))


@dataclass(frozen=True)
class Variables:
    """Those of a table. notes: what the user is told of columns that are not read."""

    columns: tuple[Variable, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def varying(self) -> tuple[Variable, ...]:
        """The columns that the network reads, one group each."""
        return tuple(column for column in self.columns if column.bits)

    @cached_property
    def groups(self) -> Groups:
        return Groups(tuple(column.bits for column in self.varying))

    def levels(self, frame: pd.DataFrame) -> np.ndarray:
        """(rows, groups), `UNKNOWN` where a gap is no level. Raises `DataError`."""
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise DataError(f"the table has the columns {sorted(set(twice))} more than once")
        absent = [column.name for column in self.columns if column.name not in frame]
        if absent:
            raise DataError(f"the table lacks the columns {absent}: add them")
        codes = [column.encode(frame[column.name]) for column in self.varying]
        return np.stack(codes, 1).astype(np.int64)

    def bits(self, levels: np.ndarray) -> np.ndarray:
        """(rows, bits) float32; zeros where the level is not known."""
        parts = [
            (codes[:, None] == (1 if column.bits == 1 else np.arange(column.bits)))
            for column, codes in zip(self.varying, levels.T, strict=True)
        ]
        return np.concatenate(parts, 1).astype(np.float32)

    def levels_of(self, bits: np.ndarray) -> np.ndarray:
        """The inverse of `bits`."""
        codes = []
        for group, column in enumerate(self.varying):
            own = bits[:, self.groups.slice(group)]
            codes.append(own[:, 0] if column.bits == 1 else own.argmax(1))
        return np.stack(codes, 1).astype(np.int64)

    def frame(self, levels: np.ndarray, draw: np.random.Generator | None = None) -> pd.DataFrame:
        """The table of such rows, with the constant columns."""
        places = {column.name: k for k, column in enumerate(self.varying)}
        none = np.zeros(len(levels), np.int64)
        series = [
            column.decode(levels[:, places[column.name]] if column.bits else none, draw)
            for column in self.columns
        ]
        return pd.concat(series, axis=1)

    def excess(self, frame: pd.DataFrame) -> np.ndarray:
        """Of whole rows, see `Variable.excess`, (rows,)."""
        return np.asarray(np.sum([column.excess(frame[column.name]) for column in self.varying], 0))

    def log_widths(self, levels: np.ndarray) -> np.ndarray:
        """(rows, groups), 0 where a level is not known."""
        each = [
            np.append(column.log_widths, 0.0)[codes]
            for column, codes in zip(self.varying, levels.T, strict=True)
        ]
        return np.stack(each, 1)


def fit_variables(frame: pd.DataFrame, bins: int = BINS) -> Variables:
    """From the training rows. DataError: no column that varies, or an infinite value."""
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"the table has the columns {sorted(set(map(str, twice)))} more than once")
    kinds = sort_columns(frame)
    columns = []
    left_out = []
    unread = (*kinds.hashed, *kinds.words, *kinds.dates)
    for name in frame.columns:
        if name in kinds.numbers:
            columns.append(_number(frame[name], kinds.marks.get(name, "."), bins))
        elif name in kinds.categories:
            columns.append(_category(frame[name]))
        elif name in unread:
            left_out.append(f"column {name!r} is free text or a date: left out")
        elif frame[name].notna().all() and len(set(text(frame[name]))) == 1:
            # it says nothing, and is in every sample
            columns.append(Variable(name, levels=(_plain(frame[name].iloc[0]),)))
    notes = [note for note in kinds.notes if not any(repr(n) in note for n in unread)]
    made = Variables(tuple(columns), (*notes, *left_out))
    if not made.varying:
        raise DataError("every column is constant, empty or text: there is nothing to learn")
    return made


def _number(cells: pd.Series, mark: str, bins: int) -> Variable:
    values = floats(cells, mark)
    known = values[~np.isnan(values)]
    if np.isinf(known).any():
        raise DataError(f"column {cells.name!r} has an infinite value: leave such rows out")
    distinct = np.unique(known)
    plain = Variable(
        str(cells.name),
        missing=len(known) < len(values),
        mark=mark,
        number=True,
        whole=bool((known == np.floor(known)).all()),
    )
    # values that hardly repeat are no levels, however few they are
    if len(distinct) <= max(2, min(FEW, len(known) // 3)):
        return replace(plain, levels=tuple(distinct.tolist()), other=len(distinct) > 2)
    edges = edges_of(known, bins)
    if plain.whole:
        # a value that fills a bin of its own has one
        values, counts = np.unique(known, return_counts=True)
        heavy = values[counts * bins >= len(known)]
        edges = np.union1d(edges, heavy[heavy < edges[-1]] + 1)
    # of whole numbers a bin reaches up to the next one
    last = edges[-1] + 1 if plain.whole else np.nextafter(edges[-1], np.inf)
    return replace(plain, edges=(*edges[:-1].tolist(), float(last)))


def _category(cells: pd.Series) -> Variable:
    present = cells[cells.notna()]
    counts = pd.Series(text(present), dtype=object).value_counts().sort_index()
    levels = counts.index[counts >= min(min_frequency(len(cells)), counts.max())]
    return Variable(str(cells.name), tuple(levels), other=True, missing=len(present) < len(cells))


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def as_frame(x: Any, names: Sequence[str] | None = None) -> pd.DataFrame:
    """A table as it is; an array with columns x0, x1, ..."""
    if isinstance(x, pd.DataFrame):
        return x.rename(columns=str).reset_index(drop=True)
    array = np.asarray(x)
    if array.ndim != 2 or (names is not None and array.shape[1] != len(names)):
        columns = "columns" if names is None else f"{len(names)} columns"
        raise DataError(f"x has shape {array.shape}: give a table or an array (rows, {columns})")
    return pd.DataFrame(array, columns=names or [f"x{k}" for k in range(array.shape[1])])
