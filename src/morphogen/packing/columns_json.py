"""`Columns` as JSON that is short, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

from morphogen.errors import DataError
from morphogen.packing.bins import Bins
from morphogen.packing.columns import Column, Columns
from morphogen.packing.formats import MOST_DIGITS, Format
from morphogen.packing.reference import Reference

_PARTS: Mapping[str, Any] = {"format": Format, "reference": Reference, "bins": Bins}
_ASCENDING = ("values", "singles", "lows")


def to_json(columns: Columns) -> list[Any]:
    """A list a column; what is as usual is left out, ascending numbers are their differences."""
    return [_short(column, Column("", "object")) for column in columns.columns]


def from_json(value: Sequence[Any]) -> Columns:
    """Raises `DataError` for what `to_json` did not write."""
    return Columns(tuple(_column(part) for part in value))


def _short(value: Any, usual: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(value):
        own = getattr(value, field.name)
        if own == getattr(usual, field.name):
            continue
        if field.name in _PARTS:
            found[field.name] = _short(own, getattr(usual, field.name))
        elif field.name in _ASCENDING:
            found[field.name] = [b - a for a, b in zip((0, *own), own, strict=False)]
        else:
            found[field.name] = list(own) if isinstance(own, tuple) else own
    return found


def _column(value: Mapping[str, Any]) -> Column:
    given = dict(value)
    for name, kind in _PARTS.items():
        usual = Format("levels") if name == "format" else kind()
        given[name] = _long(usual, given.get(name, {}))
    column = _long(Column("", "object"), given)
    assert isinstance(column, Column)
    _check(column)
    return column


def _long(usual: Any, value: Mapping[str, Any]) -> Any:
    given = {field.name: getattr(usual, field.name) for field in fields(usual)}
    for name, own in value.items():
        if name not in given:
            raise DataError(f"the packed file has a column with {name!r}: it is none of ours")
        if not isinstance(own, list if isinstance(given[name], tuple) else type(given[name])):
            raise DataError(f"the packed file has {name} as {type(own).__name__}: it is damaged")
        if isinstance(own, list):
            own = tuple(accumulate(own) if name in _ASCENDING else own)
        given[name] = own
    return type(usual)(**given)


def _check(column: Column) -> None:
    """Numbers are numbers, and lists fit each other."""
    bins = column.bins
    names = ("singles", "lows", "steps", "sizes", "values", "counts")
    numbers = [number for name in names for number in getattr(bins, name)]
    numbers += [*column.reference.columns, *column.reference.weights]
    if any(type(number) is not int for number in numbers):
        raise DataError("the packed file has a column whose numbers are none: it is damaged")
    if any(
        text is not None and type(text) is not str for text in (*column.odd, *column.format.texts)
    ):
        raise DataError("the packed file has a column whose texts are none: it is damaged")
    if any(number < 1 for number in (*bins.steps, *bins.sizes, *bins.counts)):
        raise DataError("the packed file has a bin whose size is below 1: it is damaged")
    grids = not bins.counts and len({len(bins.lows), len(bins.steps), len(bins.sizes)}) == 1
    listed = sum(bins.sizes) == len(bins.values) == len(bins.counts)
    if not grids and not (bins.counts and listed):
        raise DataError("the packed file has bins that do not fit each other: it is damaged")
    if not 0 <= column.format.least <= column.format.decimals <= MOST_DIGITS:
        raise DataError(
            f"the packed file has numbers of {column.format.decimals} decimals: too many"
        )
    if len(column.reference.columns) != len(column.reference.weights):
        raise DataError("the packed file has a reference that fits no columns: it is damaged")
