"""Fit a table's preparation: the constants of each column, from the training rows.

    number    x -> clip((x - mean) / scale, -4, 4)                                  the standardised
    value
              x -> clip((x - b[t-1]) / (b[t] - b[t-1]), 0, 1),  t = 1..bins         the
              piecewise-linear encoding
              x -> 1 where x was missing                                            if training saw
              a missing value
    category  one-hot, a missing cell being a level; rare and unknown levels share one column
    hashed    four hexadecimal digits of CRC-32, each one-hot
    words     log(1 + count) of the words and pairs of words by CRC-32, standardised
    date      days passed, year, month, day, weekday and hour, each as a number; those that come
              round also as sine and cosine, so that December is beside January without bins

Source: Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep
Learning", 2022, eq. 1. Differs: the first and the last bin are constant outside the training range,
and z stands beside the bins.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from morphogen import record
from morphogen.data import apply_preparation
from morphogen.data.apply_preparation import PERIODS, calendar, counted, floats, moments
from morphogen.data.columns import EMPTY, Columns, min_frequency, sort_columns
from morphogen.errors import DataError

CLIP = 4.0  # standard deviations
MAX_COLUMNS = 256  # one-hot columns of one category, "other" included
BINS = {1_000: 16, 200: 8}  # pieces of a number from so many rows on; fewer rows have none
FEW = 2_000  # rows below which a long text has fewer columns
MOST_NUMBERS = 100_000_000  # in the training matrix (400 MB), which bins may not exceed
QUANTILES = 100_000  # values of a column that its median and the borders of its bins come from
WORDS = (64, 256)  # columns of a text with few rows, with more
_COUNTED = 20_000  # rows that the means and spreads of words come from


@dataclass(frozen=True)
class Number:
    """`median` replaces a missing value; `edges` are the bins' borders (none: no bins); `missing`:
    has an indicator; `mark`: the decimal mark where it is written as text.
    """

    name: str
    median: float
    mean: float
    scale: float
    clip: float
    edges: tuple[float, ...]
    missing: bool
    mark: str = "."


@dataclass(frozen=True)
class Category:
    """`levels` have a column each; `other`: a last column stands for rare and unknown ones."""

    name: str
    levels: tuple[str, ...]
    other: bool


@dataclass(frozen=True)
class Hashed:
    """A text column with too many levels."""

    name: str


@dataclass(frozen=True)
class Words:
    """A text column that is read word by word; mean and scale of each code's log count."""

    name: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    clip: float


@dataclass(frozen=True)
class Date:
    """A column of dates; `parts` are numbers named "days", "year", "month", "day", "weekday",
    "hour". dayfirst: 1/2/2020 is in February.
    """

    name: str
    dayfirst: bool
    parts: tuple[Number, ...]


@dataclass(frozen=True)
class Preparation:
    """The constants that turn a table's columns into x; `preparation(frame)` applies them.

    `notes` says which columns were dropped or hashed and why.
    """

    numbers: tuple[Number, ...]
    categories: tuple[Category, ...]
    hashed: tuple[Hashed, ...]
    notes: tuple[str, ...] = ()
    words: tuple[Words, ...] = ()
    dates: tuple[Date, ...] = ()

    def __call__(self, frame: pd.DataFrame) -> np.ndarray:
        """(rows, features) float32; further columns of the frame are ignored, and a cell that
        cannot be read is a gap (see `unread`).

        DataError: a column is absent.
        """
        try:
            return apply_preparation.prepare(frame, asdict(self))
        except ValueError as error:
            raise DataError(str(error)) from error

    def unread(self, frame: pd.DataFrame) -> dict[str, tuple[int, str]]:
        """For each column with cells that are neither readable nor empty: how many, and one."""
        return apply_preparation.unread(frame, asdict(self))

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that are read."""
        kinds = (self.numbers, self.categories, self.hashed, self.words, self.dates)
        return tuple(column.name for kind in kinds for column in kind)

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each column of the result, such as "age", "age[25..31]", "age?", "sex=Male",
        "sex=(other)".
        """
        return tuple(name for names, _ in self._named() for name in names)

    @property
    def blocks(self) -> tuple[tuple[int, Number | None], ...]:
        """For each column of the table, in the order of the result: how many columns it has there,
        and what it is as a number.
        """
        return tuple((len(names), number) for names, number in self._named())

    def _named(self) -> Iterator[tuple[list[str], Number | None]]:
        """For each column of the table the names of its columns of the result; see `blocks`."""
        for number in self.numbers:
            yield _number_names(number, number.name), number
        for category in self.categories:
            levels = [f"{category.name}={level}" for level in category.levels]
            yield levels + [f"{category.name}=(other)"] * category.other, None
        for column in self.hashed:
            yield [f"{column.name}#{i}" for i in range(64)], None
        for text in self.words:
            yield [f"{text.name}#{i}" for i in range(len(text.mean))], None
        for date in self.dates:
            names: list[str] = []
            for part in date.parts:
                name = f"{date.name}.{part.name}"
                names += _number_names(part, name)
                names += [f"{name} sin", f"{name} cos"] if part.name in PERIODS else []
            yield names, None

    @property
    def bins(self) -> tuple[bool, ...]:
        """For each column of the result whether it is a bin of a number."""
        binned: list[bool] = []
        for number in self.numbers:
            binned += _number_bins(number)
        of_dates: list[bool] = []
        for date in self.dates:
            for part in date.parts:
                of_dates += _number_bins(part)
                of_dates += [False, False] if part.name in PERIODS else []
        between = len(self.names) - len(binned) - len(of_dates)
        return (*binned, *[False] * between, *of_dates)

    def to_json(self) -> str:
        """The text of `preparation.json`."""
        return record.to_json(self)

    @staticmethod
    def from_json(text: str) -> "Preparation":
        """The inverse of `to_json`. Raises `DataError` where the text is something else."""
        try:
            return record.from_json(Preparation, text)
        except ValueError as error:
            raise DataError(f"this is no preparation.json ({error})") from error


def source(preparation: Preparation) -> str:
    """Python source of `prepare(frame) -> x`, which needs numpy, pandas and `preparation.json`
    beside its file.
    """
    sizes = (
        f"{len(preparation.columns)} columns of the table become {len(preparation.names)} numbers"
    )
    return f"# {sizes}.\n{inspect.getsource(apply_preparation)}"


def default_bins(rows: int, columns: int) -> int:
    """Pieces of a number where the user has not said: none for few rows, nor where the bins of
    `columns` numbers would be more than the rows; fewer where the matrix would become too large.
    """
    most = next((bins for least, bins in BINS.items() if rows >= least), 0)
    if most == 0 or columns == 0:
        return 0
    bins = min(most, rows // columns, MOST_NUMBERS // (rows * columns) - 1)
    return bins if bins >= 2 else 0


def fit_preparation(
    frame: pd.DataFrame, bins: int | None = None, forced: Mapping[str, str] = EMPTY
) -> Preparation:
    """Fit on the training rows of the feature columns; `bins` is the number of pieces of a number,
    0 for none, None for `default_bins`. forced: see `sort_columns`.

    DataError: no column that can be used.
    """
    if bins is not None and bins < 0:
        raise DataError(f"bins={bins} is negative: give 0 for none, or a number of pieces")
    columns = sort_columns(frame, forced)
    if bins is None:
        parts = len(columns.numbers) + (1 + len(PERIODS)) * len(columns.dates)
        bins = default_bins(len(frame), parts)
    marks = columns.marks
    return Preparation(
        tuple(
            _number(name, floats(frame[name], marks.get(name, ".")), bins, marks.get(name, "."))
            for name in columns.numbers
        ),
        tuple(_category(frame[name]) for name in columns.categories),
        tuple(Hashed(name) for name in columns.hashed),
        columns.notes,
        tuple(_words(frame[name]) for name in columns.words),
        tuple(_date(frame[name], columns, bins) for name in columns.dates),
    )


def numbers_of(x: np.ndarray) -> Preparation:
    """Fit on an array of numbers without gaps, (n, features), that are all meant as numbers. Its
    columns are x0, x1, ...
    """
    bins = default_bins(*x.shape)
    columns = enumerate(np.asarray(x, np.float64).T)
    return Preparation(tuple(_number(f"x{i}", values, bins) for i, values in columns), (), ())


def _number(name: str, x: np.ndarray, bins: int, mark: str = ".") -> Number:
    """The constants of a column's values, NaN being the missing ones."""
    gaps = np.isnan(x)
    missing = bool(gaps.any())
    present = x[~gaps] if missing else x
    if len(present) > QUANTILES:
        present = present[np.random.default_rng(0).integers(0, len(present), QUANTILES)]
    ordered = np.sort(present)
    median = float(np.median(ordered))
    filled = np.where(gaps, median, x) if missing else x
    mean = float(filled.mean())
    edges = edges_of(ordered, bins)
    return Number(
        name,
        median=median,
        mean=mean,
        scale=_scale(filled, mean),
        clip=CLIP,
        edges=tuple(edges.tolist()),
        missing=missing,
        mark=mark,
    )


def _scale(x: np.ndarray, mean: float) -> float:
    """The standard deviation, 1 where rounding is all there is of it."""
    variance = float(x.var())
    smallest = np.finfo(np.float64).eps
    rounding = len(x) * smallest * variance + (len(x) * mean * smallest) ** 2
    return 1.0 if variance <= rounding else variance**0.5


def edges_of(values: np.ndarray, bins: int) -> np.ndarray:
    """At most about bins + 1 borders, all of them values that occur, strictly increasing; empty for
    no bins.

    Where one value fills several quantiles (capital-gain: 92 % zeros) the places that this frees go
    to quantiles of the distinct values, so that the tail has bins too.
    """
    distinct = np.unique(values)
    if bins == 0 or distinct.size <= 2:
        return np.empty(0)
    if distinct.size <= bins + 1:
        return distinct
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1), method="inverted_cdf"))
    free = np.linspace(0, 1, bins + 3 - edges.size)[1:-1]
    return np.union1d(edges, np.quantile(distinct, free, method="inverted_cdf"))


def _category(cells: pd.Series) -> Category:
    """The levels that are frequent enough, the most frequent ones where they are too many."""
    counts = pd.Series(apply_preparation.text(cells), dtype=object).value_counts().sort_index()
    kept = counts >= min_frequency(len(cells))
    if kept.sum() + 1 > MAX_COLUMNS:
        commonest = np.argsort(counts.to_numpy(), kind="stable")[-(MAX_COLUMNS - 1) :]
        kept &= np.isin(np.arange(len(counts)), commonest)
    return Category(str(cells.name), tuple(counts.index[kept]), other=not kept.all())


def _words(cells: pd.Series) -> Words:
    size = WORDS[len(cells) >= FEW]
    some = cells
    if len(cells) > _COUNTED:
        some = cells.iloc[np.random.default_rng(0).integers(0, len(cells), _COUNTED)]
    counts = counted(some, size)
    mean = counts.mean(0)
    scale = counts.std(0)
    scale[scale == 0] = 1
    return Words(str(cells.name), tuple(mean.tolist()), tuple(scale.tolist()), CLIP)


def _date(cells: pd.Series, columns: Columns, bins: int) -> Date:
    name = str(cells.name)
    dayfirst = columns.dayfirst[name]
    parts = []
    for part, values in calendar(moments(cells, {"dayfirst": dayfirst})).items():
        known = values[~np.isnan(values)]
        if part == "days":
            parts.append(_number(part, values, bins))
        elif known.min() < known.max():
            # whether there is a date at all is said once
            parts.append(replace(_number(part, values, bins), missing=False))
    return Date(name, dayfirst, tuple(parts))


def _number_bins(number: Number) -> list[bool]:
    """For each of `_number_names` whether it is a bin."""
    return [False, *[True] * len(list(pairwise(number.edges))), *[False] * number.missing]


def _number_names(number: Number, name: str) -> list[str]:
    bins = [f"{name}[{low:g}..{high:g}]" for low, high in pairwise(number.edges)]
    return [name, *bins, *([f"{name}?"] if number.missing else [])]
