"""What a user may say about the columns and rows of a table: `Choices`."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from morphogen.data.apply_preparation import floats, moments, text
from morphogen.data.columns import day_first, is_number
from morphogen.errors import DataError

BALANCED = "balanced"


@dataclass(frozen=True)
class Choices:
    """drop: columns that are no features; keep: the only ones that are. categorical, numeric, date:
    columns of that kind, whatever their values suggest. group: a column whose values are never
    parted by a split. time: a column that sorts the rows; later ones are held out and tested on.
    weights: a column with the weight of each row in the loss. class_weight: "balanced" where each
    class is to count alike.

    `group` and `weights` are no features; `time` is one, unless it is in `drop`.
    """

    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    date: tuple[str, ...] = ()
    group: str | None = None
    time: str | None = None
    weights: str | None = None
    class_weight: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default == ():
                names = (value,) if isinstance(value, str) else tuple(map(str, value or ()))
                object.__setattr__(self, field.name, names)
        if self.class_weight not in (None, BALANCED):
            raise DataError(
                f"class_weight={self.class_weight!r} is unknown: give {BALANCED!r}, or leave it out"
            )
        if self.group is not None and self.time is not None:
            raise DataError(
                f"group={self.group} and time={self.time} cannot be kept apart at once: give one"
            )

    @property
    def kinds(self) -> dict[str, str]:
        """The kind that `sort_columns` is to take, by column. DataError: two of one column."""
        kinds: dict[str, str] = {}
        given = {"categories": self.categorical, "numbers": self.numeric, "dates": self.date}
        for kind, names in given.items():
            for name in names:
                if name in kinds:
                    raise DataError(
                        f"column {name!r} is given as two of categorical, numeric and date: give "
                        "one"
                    )
                kinds[name] = kind
        return kinds

    def features(self, frame: pd.DataFrame, targets: Iterable[str]) -> list[str]:
        """The columns to learn from. DataError: a name that the table lacks, or no column left."""
        for field in fields(self):
            if field.name != "class_weight":
                value = getattr(self, field.name)
                for name in (value,) if isinstance(value, str) else value or ():
                    require(frame, name, field.name)
        apart = {*targets, *self.drop, self.group, self.weights}
        if wrong := [name for name in (*self.keep, *self.kinds) if name in apart]:
            raise DataError(
                f"column {wrong[0]!r} is to be a feature and is dropped, or is the target, the "
                "group or the weights: give it one part"
            )
        names = [name for name in frame.columns if name not in apart]
        names = [name for name in names if not self.keep or name in self.keep]
        if not names:
            raise DataError("no column is left to learn from: drop fewer columns or keep more")
        return names


def require(frame: pd.DataFrame, column: str, argument: str, name: str = "the table") -> None:
    """DataError where a column is absent, with the one that was likely meant."""
    if column not in frame:
        raise DataError(
            f"{name} has no column {column!r}, given as {argument}: {suggestion(frame, column)}it "
            f"has {listed(frame)}"
        )


def suggestion(frame: pd.DataFrame, column: str) -> str:
    """ "did you mean 'y'? " for "Y", or "" where nothing is like it."""
    folded = {str(name).casefold(): str(name) for name in frame.columns}
    close = difflib.get_close_matches(column.casefold(), folded, n=1)
    return f"did you mean {folded[close[0]]!r}? " if close else ""


def listed(frame: pd.DataFrame, most: int = 30) -> str:
    """The names of the columns, the first ones where they are many."""
    names = [repr(name) for name in frame.columns]
    more = f", and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def group_codes(cells: pd.Series) -> np.ndarray:
    """(n,) int64, one code a value; missing ones are a group. DataError: one group only."""
    codes, levels = pd.factorize(text(cells))
    if len(levels) < 2:
        raise DataError(
            f"group={cells.name}: the column has one value only ({levels[0]!r}): give one with "
            "several"
        )
    return np.asarray(codes, np.int64)


def times(cells: pd.Series) -> np.ndarray:
    """(n,) float64 that sorts the rows: numbers, or days of dates. DataError: a cell that is
    neither.
    """
    values = floats(cells) if is_number(cells) else moments(cells, {"dayfirst": day_first(cells)})
    if np.isnan(values).any():
        wrong = cells[np.isnan(values)].iloc[0]
        raise DataError(
            f"time={cells.name}: {wrong!r} is neither a number nor a date: give a column in which "
            "every row has one"
        )
    return values


def row_weights(cells: pd.Series) -> np.ndarray:
    """(n,) float64. DataError: a cell that is no number above 0, or 0."""
    values = floats(cells)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any() or not values.sum() > 0:
        sample = cells[wrong].iloc[0] if wrong.any() else 0
        raise DataError(
            f"weights={cells.name}: {sample} cannot be a row's weight: give numbers that are "
            "not negative and not all 0"
        )
    return values


def loss_weights(
    given: np.ndarray | None, y: np.ndarray, class_weight: str | None
) -> np.ndarray | None:
    """The training rows' weights, of mean 1, from those given and the classes' shares; None where
    neither is asked for.
    """
    if given is None and class_weight is None:
        return None
    weight = np.ones(len(y)) if given is None else given.astype(np.float64)
    if class_weight is not None:
        total = np.bincount(y, weights=weight)
        weight = weight / np.maximum(total, np.finfo(np.float64).tiny)[y]
    return np.asarray(weight / weight.mean())
