"""A table's columns as the matrix that the network reads; the fitted constants come from
`preparation.json`.
"""

import json
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def prepare(frame: pd.DataFrame, constants: dict[str, Any] | None = None) -> np.ndarray:
    """(rows, features) float32; the columns are found by name. A missing column or text for a
    number: ValueError.
    """
    if constants is None:
        constants = json.loads(
            Path(__file__).with_name("preparation.json").read_text(encoding="utf-8")
        )
    kinds = {"numbers": number, "categories": category, "hashed": hashed}
    columns = [(read, column) for kind, read in kinds.items() for column in constants[kind]]
    if absent := [column["name"] for _, column in columns if column["name"] not in frame]:
        raise ValueError(f"the table lacks the columns {absent}: add them")
    return np.hstack([read(frame[column["name"]], column) for read, column in columns]).astype(
        np.float32
    )


def number(cells: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """The standardised value, how far it has come through each bin (0 to 1), and whether it was
    missing.
    """
    x = floats(cells)
    missing = np.isnan(x)
    x = np.where(missing, column["median"], x)
    z = np.clip((x - column["mean"]) / column["scale"], -column["clip"], column["clip"])
    edges = column["edges"]
    bins = [np.clip((x - low) / (high - low), 0, 1) for low, high in pairwise(edges)]
    return np.stack([z, *bins, *([missing] if column["missing"] else [])], axis=1)


def category(cells: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """One-hot over the levels; rare and unknown ones share a last column, or are all zeros where
    there is none.
    """
    level = np.asarray(pd.Index(column["levels"], dtype=object).get_indexer(text(cells)))[:, None]
    return np.hstack(
        [level == np.arange(len(column["levels"])), *([level < 0] if column["other"] else [])]
    )


def hashed(cells: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """Four hexadecimal digits of the text's CRC-32, each one-hot: 64 columns tell 65,536 codes
    apart.
    """
    code = np.array([zlib.crc32(cell.encode()) for cell in text(cells)], dtype=np.int64)
    digits = (code[:, None] >> np.array([0, 4, 8, 12])) & 15
    return np.asarray(digits[:, :, None] == np.arange(16)).reshape(-1, 64)


def floats(cells: pd.Series) -> np.ndarray:
    """Cells as float64 with NaN for missing ones."""
    numbers, wrong = as_numbers(cells)
    if wrong.any():
        raise ValueError(
            f"column {cells.name!r} holds {cells[wrong].iloc[0]!r}, which is not a number"
        )
    return np.asarray(numbers)


def as_numbers(cells: pd.Series) -> tuple[pd.Series, pd.Series]:
    """(cells as float64, which of them hold something that is no number and became NaN)."""
    numbers = pd.to_numeric(cells.astype(object), errors="coerce").astype(float)
    return numbers, numbers.isna() & cells.notna()


def text(cells: pd.Series) -> np.ndarray:
    """Cells as stripped text; whole floats read like integers, since one gap turns a file's
    integers into floats.
    """

    def read(cell: Any) -> str:
        return f"{cell:.0f}" if isinstance(cell, float) and cell.is_integer() else str(cell).strip()

    cells = cells.astype(object)
    return np.array(
        ["(missing)" if gone else read(c) for c, gone in zip(cells, cells.isna(), strict=True)],
        object,
    )


def readable(
    frame: pd.DataFrame, constants: dict[str, Any]
) -> tuple[pd.DataFrame, dict[str, tuple[int, str]]]:
    """New rows as `prepare` takes them: text where training saw numbers is a gap, and a category
    that was read as text is found under the level that training saw.

    Returns with it how many cells of a column were such text, and the first of them.
    """
    frame = frame.copy()
    present = set(frame.columns)
    strays = {}
    for column in constants["numbers"]:
        name = column["name"]
        if name not in present or frame[name].dtype.kind in "iufb":
            continue
        # one text in a column, and its "True" is no longer read as True
        cells = frame[name].astype(object).replace({"True": True, "False": False})
        frame[name], wrong = as_numbers(cells)
        if wrong.any():
            strays[name] = (int(wrong.sum()), str(cells[wrong].iloc[0]))
    for column in constants["categories"]:
        if column["name"] in present:
            frame[column["name"]] = as_levels(frame[column["name"]], column["levels"])
    return frame, strays


def as_levels(cells: pd.Series, levels: list[str]) -> pd.Series:
    """Text such as "3.0" or "03" as the whole number that training saw it as, where it did."""
    known = set(levels)
    meant = {}
    for cell in cells.dropna().unique():
        if isinstance(cell, str) and cell.strip() not in known:
            try:
                whole = f"{float(cell):.0f}" if float(cell).is_integer() else ""
            except ValueError:
                continue
            if whole in known:
                meant[cell] = whole
    return cells.replace(meant) if meant else cells
