"""A table's columns as variables of a density, and back: `fit_variables(frame)`.

    number     of few distinct values: these are its levels; two of them are one bit
               of many: cut at quantiles into bins; log p(x) = log p(bin) - log(width of the bin)
    category   its levels, and "(other)" for rare ones and those seen later
    date       a number, in days

A gap is a level of its own where training rows have some; in later rows it is a value not known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from morphogen.data.apply_preparation import floats, moments, text, unread
from morphogen.data.columns import min_frequency, sort_columns
from morphogen.data.preparation import edges_of
from morphogen.density.groups import Groups
from morphogen.errors import DataError

BINS = 16  # of a number with many distinct values
FEW = 32  # distinct values up to which each is a level
OTHER = "(other)"
UNKNOWN = -1  # the level of a gap that is none


Kind = Literal["number", "integer", "boolean", "duration", "date"]


def _booleans(values: pd.Series) -> pd.Series:
    whole = values.notna().all()
    return values.astype(bool) if whole else values.map({0.0: False, 1.0: True}).astype(object)


CELLS: Mapping[Kind, Callable[[pd.Series], pd.Series]] = {
    "number": lambda values: values,
    "integer": lambda values: values.astype("int64" if values.notna().all() else "Int64"),
    "boolean": _booleans,
    "duration": lambda values: pd.to_timedelta(values, unit="s"),
    "date": lambda values: pd.to_datetime(values, unit="D").dt.round("s"),
}
"""Values as cells of each kind."""


@dataclass(frozen=True)
class Variable:
    """levels: of a category its texts, without "(other)"; of a number of few values these, sorted.
    edges: of a number that is cut into bins. missing: whether a gap is a level, the last one. mark:
    the decimal mark of numbers written as text. whole: whether all values are whole numbers.
    kind: what cells are made of values. dayfirst: of dates, see `data.columns`.
    """

    name: str
    levels: tuple[Any, ...] = ()
    edges: tuple[float, ...] = ()
    other: bool = False
    missing: bool = False
    mark: str = "."
    number: bool = False
    whole: bool = False
    kind: Kind = "number"
    dayfirst: bool = False

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
        values = self.values(cells)
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

    def values(self, cells: pd.Series) -> np.ndarray:
        """Cells of numbers or dates as float64, NaN where there is none."""
        if self.kind == "date":
            return moments(cells, {"dayfirst": self.dayfirst})
        return floats(cells, self.mark)

    def strange(self, cells: pd.Series) -> str | None:
        """What is said of cells that are neither readable nor empty, or that a constant column does
        not have.
        """
        if self.number and self.bits:
            dated = self.kind == "date"
            number = {"name": self.name, "mark": self.mark}
            date = {"name": self.name, "dayfirst": self.dayfirst, "parts": ()}
            constants = {"numbers": [number][dated:], "dates": [date] * dated}
            wrong = unread(cells.to_frame(self.name), constants).get(self.name)
            said = f"cannot be read as a {'date' if dated else 'number'}: taken as gaps"
        elif not self.bits and len(self.levels) == 1:
            wrong = _others(cells, self.levels[0])
            said = f"differ from {self.levels[0]!r}, which all training rows have: not scored"
        else:
            return None
        if not wrong:
            return None
        count, first = wrong
        return f"column {self.name!r}: {count} cells, such as {first!r}, {said}"

    def excess(self, cells: pd.Series) -> np.ndarray:
        """What a number outside of all bins loses beside the log density of the outermost one:
        2 log(1 + its distance in widths of that bin), (rows,).
        """
        if not self.edges:
            return np.zeros(len(cells))
        values = np.nan_to_num(self.values(cells), nan=self.edges[0])
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
            return self._cells(np.floor(values) if self.whole else values)
        other = None if self.number else OTHER
        kinds = [*self.levels, *[other] * self.other, None]
        cells = [kinds[code] for code in codes]
        if self.number:
            return self._cells(np.array(cells, dtype=float))
        return pd.Series(cells, name=self.name, dtype=object)

    def _cells(self, values: np.ndarray) -> pd.Series:
        """Numbers as the column has them."""
        return CELLS[self.kind](pd.Series(values, name=self.name))

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
        self.check(frame)
        if not len(frame):
            return np.zeros((0, len(self.varying)), np.int64)
        codes = [column.encode(frame[column.name]) for column in self.varying]
        return np.stack(codes, 1).astype(np.int64)

    def check(self, frame: pd.DataFrame) -> None:
        """Raise `DataError` where a table lacks columns, or has some twice."""
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise DataError(f"the table has the columns {sorted(set(twice))} more than once")
        absent = [column.name for column in self.columns if column.name not in frame]
        if absent:
            raise DataError(f"the table lacks the columns {absent}: add them")

    def strange(self, frame: pd.DataFrame) -> tuple[str, ...]:
        """What is said of cells that are read as gaps, or not at all."""
        each = (column.strange(frame[column.name]) for column in self.columns)
        return tuple(said for said in each if said)

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
    unread = (*kinds.hashed, *kinds.words)
    for name in frame.columns:
        if name in kinds.numbers:
            plain = Variable(str(name), mark=kinds.marks.get(name, "."), kind=_kind(frame[name]))
            columns.append(_number(frame[name], plain, bins))
        elif name in kinds.dates:
            plain = Variable(str(name), kind="date", dayfirst=kinds.dayfirst.get(name, False))
            columns.append(_number(frame[name], plain, bins))
        elif name in kinds.categories:
            columns.append(_category(frame[name]))
        elif name in unread:
            left_out.append(f"column {name!r} is free text: left out")
        elif frame[name].notna().all() and len(set(text(frame[name]))) == 1:
            # it says nothing, and is in every sample
            columns.append(Variable(name, levels=(_plain(frame[name].iloc[0]),)))
    other = (*unread, *kinds.dates)
    notes = [note for note in kinds.notes if not any(repr(n) in note for n in other)]
    made = Variables(tuple(columns))
    made = replace(made, notes=(*notes, *left_out, *made.strange(frame)))
    if not made.varying:
        raise DataError("every column is constant, empty or text: there is nothing to learn")
    return made


def _kind(cells: pd.Series) -> Kind:
    """By the type of a column of numbers."""
    kinds: Mapping[str, Kind] = {"b": "boolean", "m": "duration", "i": "integer", "u": "integer"}
    return kinds.get(cells.dtype.kind, "number")


def _number(cells: pd.Series, plain: Variable, bins: int) -> Variable:
    """plain: what is known of the column before its values are looked at."""
    values = plain.values(cells)
    known = values[~np.isnan(values)]
    if np.isinf(known).any():
        raise DataError(f"column {cells.name!r} has an infinite value: leave such rows out")
    distinct = np.unique(known)
    plain = replace(
        plain,
        missing=len(known) < len(values),
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


def _others(cells: pd.Series, level: Any) -> tuple[int, str] | None:
    """How many cells are neither this value nor empty, and the first."""
    other = [value for value in cells.dropna().unique() if _plain(value) != level]
    return (int(cells.isin(other).sum()), str(other[0])) if other else None


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def as_frame(x: Any, names: Sequence[str] | None = None) -> pd.DataFrame:
    """A table as it is; an array with columns x0, x1, ..."""
    if isinstance(x, pd.DataFrame):
        several = isinstance(x.columns, pd.MultiIndex)
        own = [" ".join(map(str, name)) if several else str(name) for name in x.columns]
        return x.set_axis(own, axis=1).reset_index(drop=True)
    array = np.asarray(x)
    if array.dtype == object:
        odd = [cell for cell in array.flat if not pd.api.types.is_scalar(cell)]
        if odd:
            raise TypeError(f"x has a {type(odd[0]).__name__}: argument must be string or number")
    if array.ndim != 2 or (names is not None and array.shape[1] != len(names)):
        columns = "columns" if names is None else f"{len(names)} columns"
        raise DataError(f"x has shape {array.shape}: give a table or an array (rows, {columns})")
    return pd.DataFrame(array, columns=names or [f"x{k}" for k in range(array.shape[1])])
