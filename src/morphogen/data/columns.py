"""What each column of a table is: a number, a category, a date, a text to hash by its words or as a
whole, or nothing that a network should read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pandas as pd

from morphogen.data.apply_preparation import CLOCK, moments, text, written
from morphogen.errors import DataError

MAX_LEVELS = 1_000  # distinct texts beyond which a column is hashed
# share of distinct texts above which a column names rows and says nothing about the next row
IDENTIFIER = 0.9
READABLE = 0.9  # share of a text column's cells that must read as numbers, or as dates, to be such
LONG = 3  # words a cell, on average, from which a text is read word by word
_CHECKED = 2**22  # cells that are looked through for infinite ones at a time
_LOOKED_AT = 1_000  # distinct texts that decide whether the others are worth reading as numbers
DATE = re.compile(
    r"\d{4}-\d{1,2}(-\d{1,2})?([T ].*)?|\d{1,2}([./-])\d{1,2}\3\d{2,4}([ ,].*)?"
    r"|\d{4}[/.]\d{1,2}[/.]\d{1,2}( .*)?|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}( .*)?"
    r"|[A-Za-z]{3,9} \d{1,2},? \d{4}( .*)?"
)
DAY_AND_MONTH = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2\d{2,4}")
# what people write for a value that they do not have
GAPS = frozenset(
    "unknown|n/a|na|n.a.|#n/a|nan|none|null|nil|missing|not available|not known|not applicable|"
    "undefined|unbekannt|k.a.|inconnu|desconocido|tbd|nd|n.d.|-|--|–|.|?|*".split("|")
)
EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Columns:
    """Column names by kind, in the table's order; `notes` says in a line each what was left out or
    read otherwise than it stands there. marks: the decimal mark of numbers that are written as
    text. dayfirst: whether 1/2/2020 is in February, of the dates.
    """

    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    dayfirst: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kind:
    """One of the kinds of `Columns` or "dropped", and what to tell the user or ""."""

    name: str
    note: str = ""
    mark: str = "."
    dayfirst: bool = False


def sort_columns(frame: pd.DataFrame, forced: Mapping[str, str] = EMPTY) -> Columns:
    """Decide the kind of each feature column from the training rows. forced: "numbers",
    "categories" or "dates" of the columns whose kind the user has said.

    DataError: a table none of whose columns can be used, or a forced kind that no cell can be read
    as.
    """
    table = dict(frame.items())
    texts = {
        name: _levels(cells)
        for name, cells in table.items()
        if name in forced or not (is_number(cells) or _is_date(cells))
    }
    votes = {name: _readable(counts) for name, counts in texts.items()}
    usual = _usual_mark(votes)
    kinds: dict[str, _Kind] = {}
    for name, cells in table.items():
        if name in forced:
            kinds[name] = _forced(cells, forced[name], texts[name], votes[name], usual)
        elif name in texts:
            kinds[name] = _text_kind(cells, texts[name], votes[name], usual)
        else:
            kinds[name] = _date_kind(cells) if _is_date(cells) else _number_kind(cells)
    numbered = [name for name, kind in kinds.items() if kind == IDENTIFIER_KIND]
    if all(kind.name == "dropped" for kind in kinds.values()):
        # the only column may well be what the target depends on
        kinds |= dict.fromkeys(numbered, _Kind("numbers"))
    return _sorted(kinds)


def _sorted(kinds: Mapping[str, _Kind]) -> Columns:
    by_kind: dict[str, list[str]] = {}
    notes = []
    for name, kind in kinds.items():
        by_kind.setdefault(kind.name, []).append(name)
        notes += [f"column {name!r} {kind.note}"] if kind.note else []
    dropped = by_kind.pop("dropped", [])
    if len(dropped) == len(kinds):
        raise DataError(
            f"no feature column can be used: {'; '.join(notes) or 'the table has none'}"
        )
    return Columns(
        **{kind: tuple(names) for kind, names in by_kind.items()},
        notes=tuple(notes),
        marks={name: kind.mark for name, kind in kinds.items() if kind.mark != "."},
        dayfirst={name: kind.dayfirst for name, kind in kinds.items() if kind.name == "dates"},
    )


def check_finite(frame: pd.DataFrame) -> None:
    """DataError that names the first column with an infinite value."""
    floating = [name for name, kind in frame.dtypes.items() if kind.kind == "f"]
    some = max(1, _CHECKED // max(1, len(frame)))
    for start in range(0, len(floating), some):
        part = frame[floating[start : start + some]]
        infinite = np.isinf(part.to_numpy(np.float64, na_value=np.nan)).sum(axis=0)
        if infinite.any():
            place = int(infinite.argmax())
            raise DataError(
                f"column {part.columns[place]!r} has {infinite[place]:,} infinite value(s): "
                "replace them with numbers, or leave them empty"
            )


def is_number(cells: pd.Series) -> bool:
    """True for integers, floats, booleans and durations, also for booleans with gaps (which pandas
    reads as objects).
    """
    if isinstance(cells.dtype, pd.CategoricalDtype):
        return False
    if cells.dtype.kind in "iufbm":
        return True
    return cells.dtype == object and pd.api.types.infer_dtype(cells, skipna=True) in {
        "boolean",
        "decimal",
        "empty",
    }


def as_numbers(cells: pd.Series) -> tuple[pd.Series, str]:
    """(numbers, note) of a text column that reads as numbers; any other as it is and ""."""
    if is_number(cells) or isinstance(cells.dtype, pd.CategoricalDtype) or _is_date(cells):
        return cells, ""
    counts = _levels(cells)
    votes = _readable(counts)
    mark = _usual_mark({"": votes})
    if not _mostly(votes[mark], counts):
        return cells, ""
    values = np.array([*(written(level, mark) for level in counts.index), np.nan])
    places = pd.Index(counts.index, dtype=object).get_indexer(text(cells))
    return pd.Series(values[places], cells.index, name=cells.name), _number_note(counts, mark)


def day_first(cells: pd.Series) -> bool:
    """Whether 1/2/2020 is in February, by all cells of a column of dates."""
    return not _is_date(cells) and _day_first(_levels(cells))


def min_frequency(rows: int) -> int:
    """Rows that a category needs for a column of its own: 0.1 % and at least 2, so that "other" is
    seen in training.
    """
    return max(2, -(-rows // 1000))


def _is_date(cells: pd.Series) -> bool:
    return str(cells.dtype.kind) == "M"


def _levels(cells: pd.Series) -> pd.Series:
    """How often each text occurs; missing cells are left out."""
    counts = pd.Series(text(cells), dtype=object).value_counts()
    return counts.drop(["(missing)", ""], errors="ignore")


def _readable(counts: pd.Series) -> dict[str, int]:
    """Cells that read as numbers, by decimal mark; 0 where the commonest texts say that it is no
    column of numbers.
    """
    first = counts.iloc[:_LOOKED_AT]
    votes = {mark: _readable_by(first, mark) for mark in ".,"}
    if len(first) < len(counts) and max(votes.values()) >= first.sum() / 2:
        votes = {mark: _readable_by(counts, mark) for mark in ".,"}
    return votes


def _readable_by(counts: pd.Series, mark: str) -> int:
    numbers = [not np.isnan(written(level, mark)) for level in counts.index]
    return int(counts[np.array(numbers, bool)].sum())


def _usual_mark(votes: Mapping[str, dict[str, int]]) -> str:
    """The mark that reads more in more columns: "1,234" alone does not say which it is."""
    comma = sum(vote[","] > vote["."] for vote in votes.values())
    point = sum(vote["."] > vote[","] for vote in votes.values())
    return "," if comma > point else "."


def _mostly(readable: int, counts: pd.Series) -> bool:
    """Whether so many cells are enough, words for a gap aside."""
    gaps = counts[[level.casefold() in GAPS for level in counts.index]].sum()
    return bool(readable > 0 and readable >= READABLE * (counts.sum() - gaps))


def _number_note(counts: pd.Series, mark: str) -> str:
    stray = [level for level in counts.index if np.isnan(written(level, mark))]
    sample = next(level for level in counts.index if not np.isnan(written(level, mark)))
    rest = counts[stray].sum()
    gaps = f", {rest:,} other cell(s) such as {stray[0]!r} as gaps" if stray else ""
    return f"holds numbers written as text, such as {sample!r}: read as numbers{gaps}"


IDENTIFIER_KIND = _Kind(
    "dropped",
    "numbers the rows: dropped as an identifier (name it as numeric to keep it)",
)
_CONSTANT = _Kind("dropped", "has one value only: dropped")
_EMPTY = _Kind("dropped", "has no value in any training row: dropped")


def _number_kind(cells: pd.Series) -> _Kind:
    gaps = cells.isna().to_numpy()
    if gaps.all():
        return _EMPTY
    if not gaps.any() and cells.min() == cells.max():
        return _CONSTANT
    return IDENTIFIER_KIND if _numbers_the_rows(cells) else _Kind("numbers")


def _numbers_the_rows(cells: pd.Series) -> bool:
    """Integers that never repeat and leave few gaps, as the training rows of a numbered table do:
    in a sorted file they would give the target away. A grid of equal steps above 1 is none.
    """
    rows = len(cells)
    if cells.dtype.kind not in "iu" or rows < 50 or cells.max() - cells.min() >= 2 * rows:
        return False
    return not cells.isna().any() and int(np.diff(np.sort(cells.to_numpy())).min()) == 1


def _text_kind(cells: pd.Series, counts: pd.Series, votes: dict[str, int], usual: str) -> _Kind:
    rows = len(cells)
    if counts.empty:
        return _EMPTY
    if len(counts) == 1 and counts.sum() == rows:
        return _CONSTANT
    categorical = isinstance(cells.dtype, pd.CategoricalDtype)
    mark = _mark(votes, usual)
    if not categorical and _mostly(votes[mark], counts) and _numbers_in(counts, mark) > 1:
        return _Kind("numbers", _number_note(counts, mark), mark=mark)
    if not categorical and _mostly(_dates_in(counts), counts):
        return _date_kind(cells, counts)
    frequent = counts[counts >= min_frequency(rows)].sum() + rows - counts.sum()
    if categorical or (len(counts) <= MAX_LEVELS and frequent >= 0.5 * rows):
        return _Kind("categories") if len(counts) <= MAX_LEVELS else _hashed_kind(counts)
    length = sum(len(level.split()) * count for level, count in counts.items()) / counts.sum()
    if length >= LONG:
        note = f"holds texts of {length:.0f} words on average: hashed by their words and pairs"
        return _Kind("words", note)
    if len(counts) > IDENTIFIER * rows:
        note = f"has {len(counts):,} distinct texts in {rows:,} rows: dropped as an identifier"
        return _Kind("dropped", note + _stray(counts, mark))
    return _hashed_kind(counts, _stray(counts, mark))


def _hashed_kind(counts: pd.Series, stray: str = "") -> _Kind:
    note = f"has {len(counts):,} distinct texts: hashed into 64 columns{stray}"
    return _Kind("hashed", note)


def _mark(votes: dict[str, int], usual: str) -> str:
    other = "." if usual == "," else ","
    return other if votes[other] > votes[usual] else usual


def _numbers_in(counts: pd.Series, mark: str) -> int:
    """How many different numbers there are, up to 2."""
    seen: set[float] = set()
    for level in counts.index:
        value = written(level, mark)
        if not np.isnan(value):
            seen.add(value)
        if len(seen) > 1:
            break
    return len(seen)


def _stray(counts: pd.Series, mark: str) -> str:
    """Some typing errors make a column of numbers text: say so, or the user will not know why it is
    not used.
    """
    wrong = counts[[bool(np.isnan(written(level, mark))) for level in counts.index]]
    if not 0 < wrong.sum() < 0.5 * counts.sum():
        return ""
    return f" (most cells are numbers, but {wrong.index[0]!r} is not)"


def _dates_in(counts: pd.Series) -> int:
    shaped = [bool(DATE.fullmatch(level) or CLOCK.fullmatch(level)) for level in counts.index]
    dates = counts[np.array(shaped, bool)]
    if not _mostly(int(dates.sum()), counts):
        return 0
    column = {"dayfirst": _day_first(counts)}
    known = ~np.isnan(moments(pd.Series(dates.index, dtype=object), column))
    return int(dates[known].sum())


def _day_first(counts: pd.Series) -> bool:
    """Whether 1/2/2020 is in February: where a first number is above 12; else with points."""
    pairs = [match for level in counts.index if (match := DAY_AND_MONTH.match(level))]
    if any(int(match[1]) > 12 for match in pairs):
        return True
    if any(int(match[3]) > 12 for match in pairs):
        return False
    return any(match[2] == "." for match in pairs)


def _date_kind(cells: pd.Series, counts: pd.Series | None = None) -> _Kind:
    if cells.isna().all():
        return _EMPTY
    if cells.nunique(dropna=False) == 1:
        return _CONSTANT
    note = "holds dates: read as days passed and parts of the calendar"
    dayfirst = counts is not None and _day_first(counts)
    if counts is not None and any(DAY_AND_MONTH.match(level) for level in counts.index):
        note += f", the {'day' if dayfirst else 'month'} being the first number"
    return _Kind("dates", note, dayfirst=dayfirst)


def _forced(
    cells: pd.Series, kind: str, counts: pd.Series, votes: dict[str, int], usual: str
) -> _Kind:
    """The kind that the user has said."""
    if counts.empty:
        return _EMPTY
    if kind == "categories":
        return _Kind(kind) if len(counts) <= MAX_LEVELS else _hashed_kind(counts)
    if kind == "numbers":
        if is_number(cells):
            return _Kind(kind)
        mark = _mark(votes, usual)
        if not votes[mark]:
            raise DataError(
                f"numeric: no cell of column {cells.name!r} reads as a number (such as "
                f"{counts.index[0]!r}): leave it out of numeric"
            )
        return _Kind(kind, _number_note(counts, mark), mark=mark)
    if np.isnan(moments(cells, {"dayfirst": _day_first(counts)})).all():
        raise DataError(
            f"date: no cell of column {cells.name!r} reads as a date (such as "
            f"{counts.index[0]!r}): leave it out of date"
        )
    return _date_kind(cells, counts)
