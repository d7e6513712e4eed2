"""A column of a DataFrame as texts, and back: `cells_of`, `series_of`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from morphogen.errors import DataError

Text = str | None
"""A cell; None is one that is missing."""

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float32", "float64")
_TEXTS = ("object", "str")
DTYPES = ("bool", *_INTEGERS, *_FLOATS, *_TEXTS)


def dtype_of(frame: pd.DataFrame, number: int) -> str:
    """What the column is called that `series_of` builds. Raises `DataError` for other types."""
    dtype = str(frame.dtypes.iloc[number])
    if dtype not in DTYPES:
        raise DataError(
            f"column {str(frame.columns[number])!r} is of type {dtype}: only {', '.join(DTYPES)} "
            "are coded; make it text by .astype(str)"
        )
    return dtype


def cells_of(frame: pd.DataFrame, number: int) -> list[Text]:
    """The texts of a column. Raises `DataError` for a cell that is neither text nor missing where
    the column's type promises no numbers.
    """
    dtype = dtype_of(frame, number)
    series = frame.iloc[:, number]
    if dtype not in _TEXTS:
        missing = series.isna().tolist()
        texts = map(repr if dtype == "float64" else str, _plain(series))
        return [None if gap else text for gap, text in zip(missing, texts, strict=True)]
    cells: list[Any] = series.tolist()
    if set(map(type, cells)) == {str}:
        return cells
    for row, cell in enumerate(cells):
        if type(cell) is str:
            continue
        if not pd.api.types.is_scalar(cell) or not pd.isna(cell):
            name = str(frame.columns[number])
            raise DataError(
                f"column {name!r} has {cell!r} in row {row}, a {type(cell).__name__} among texts: "
                "make it text by .astype(str)"
            )
        cells[row] = None
    return cells


def _plain(series: pd.Series) -> Sequence[Any]:
    """As Python's own numbers; a float32 as it is, whose text is shorter."""
    if str(series.dtype) == "float32":
        return list(series.to_numpy())
    return list(series.tolist())


def series_of(texts: Sequence[Text], dtype: str) -> pd.Series:
    """The column that `cells_of` was given; what is missing in an "object" column is None."""
    if dtype not in DTYPES:
        raise DataError(f"dtype={dtype!r}: no column of this type was packed; the file is damaged")
    if dtype in _TEXTS:
        return pd.Series(list(texts), dtype=dtype)
    read = _READ.get(dtype, float)
    cells = [read("nan" if text is None else text) for text in texts]
    return pd.Series(np.array(cells, dtype=dtype))


_READ: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(_INTEGERS, int),
    "bool": lambda text: text == "True",
}


def distinct_of(cells: Sequence[Text]) -> tuple[np.ndarray, list[Text]]:
    """(number of each cell, the distinct cells in the order in which they are met)."""
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    codes, distinct = pd.factorize(array, use_na_sentinel=False)
    return codes, [None if cell is None or cell != cell else cell for cell in distinct]
