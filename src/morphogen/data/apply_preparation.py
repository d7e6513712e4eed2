"""A table's columns as the matrix that the network reads; the fitted constants come from
`preparation.json`.
"""

import json
import re
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

BLOCK = 2**17  # cells that are read at a time, so that what comes of them stays in the cache
DIGITS = r"(?:\d+|\d{1,3}(?:[GROUP]\d{2,3})*[GROUP]\d{3})?(?:[MARK]\d*)?(?:[eE][+-]?\d+)?"
GROUPS = {".": ",'’ \u00a0\u202f", ",": ".'’ \u00a0\u202f"}  # what may part thousands, by mark
WRITTEN = {
    mark: re.compile(DIGITS.replace("GROUP", re.escape(parts)).replace("MARK", re.escape(mark)))
    for mark, parts in GROUPS.items()
}
CURRENCY = re.compile(
    r"(?:\b(?:US|CA|AU|NZ|HK))?[$€£¥₹₽₩₺₫₴฿]"
    r"|\b(?:USD|EUR|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|kr|zł|Kč|Rs)\b"
)
CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp]\.?[Mm]\.?)?")
PERIODS = {"month": 12, "day": 31, "weekday": 7, "hour": 24}


def prepare(frame: pd.DataFrame, constants: dict[str, Any] | None = None) -> np.ndarray:
    """(rows, features) float32; the columns are found by name. A cell that cannot be read as its
    column's kind is a gap (`unread` lists them). A missing column: ValueError.
    """
    constants = constants or stored()
    columns = [(read, column) for kind, read in KINDS.items() for column in constants[kind]]
    if absent := [column["name"] for _, column in columns if column["name"] not in frame]:
        raise ValueError(f"the table lacks the columns {absent}: add them")
    cells = [frame[column["name"]] for _, column in columns]
    step = max(1, BLOCK // len(columns))
    x = np.empty((0, 0), np.float32)
    for start in range(0, max(1, len(frame)), step):
        rows = slice(start, start + step)
        made = [
            read(c.iloc[rows], column) for c, (read, column) in zip(cells, columns, strict=True)
        ]
        block = np.hstack(made)
        if not start:
            x = np.empty((len(frame), block.shape[1]), np.float32)
        x[rows] = block
    return x


def unread(
    frame: pd.DataFrame, constants: dict[str, Any] | None = None
) -> dict[str, tuple[int, str]]:
    """For each column of numbers or dates with cells that are neither readable nor empty: how many
    they are, and one of them.
    """
    constants = constants or stored()
    stray: dict[str, tuple[int, str]] = {}
    for column in (*constants["numbers"], *constants["dates"]):
        cells = frame[column["name"]]
        if cells.dtype.kind not in "iufbmM":
            values = moments(cells, column) if "parts" in column else floats(cells, column["mark"])
            wrong = cells[np.isnan(values) & cells.notna().to_numpy()]
            if len(wrong):
                stray[column["name"]] = (len(wrong), str(wrong.iloc[0]))
    return stray


def stored() -> dict[str, Any]:
    """What `preparation.json`, beside this file, holds."""
    path = Path(__file__).with_name("preparation.json")
    constants: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return constants


def number(cells: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """The standardised value, how far it has come through each bin (0 to 1), and whether it was
    missing.
    """
    return encoded(floats(cells, column["mark"]), column)


def encoded(x: np.ndarray, column: dict[str, Any]) -> np.ndarray:
    """`number` of values with NaN for the missing ones."""
    missing = np.isnan(x)
    if missing.any():
        x = np.where(missing, column["median"], x)
    edges = column["edges"]
    bins = max(0, len(edges) - 1)
    made = np.empty((1 + bins + column["missing"], len(x)), np.float32)
    z = (x - column["mean"]) / column["scale"]
    made[0] = np.clip(z, -column["clip"], column["clip"], out=z)
    for place, (low, high) in enumerate(pairwise(edges), 1):
        share = (x - low) / (high - low)
        made[place] = np.clip(share, 0, 1, out=share)
    if column["missing"]:
        made[-1] = missing
    return made.T


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
    codes, levels = pd.factorize(text(cells))
    crc = np.array([zlib.crc32(level.encode()) for level in levels], dtype=np.int64)
    digits = (crc[codes][:, None] >> np.array([0, 4, 8, 12])) & 15
    return np.asarray(digits[:, :, None] == np.arange(16)).reshape(-1, 64)


def words(cells: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """The words and pairs of words of each text, counted by their CRC-32 and standardised."""
    mean = np.asarray(column["mean"])
    z = (counted(cells, len(mean)) - mean) / np.asarray(column["scale"])
    return np.asarray(np.clip(z, -column["clip"], column["clip"]))


def counted(cells: pd.Series, size: int) -> np.ndarray:
    """log(1 + how many words and pairs of words of a text have each of `size` codes)."""
    counts = np.zeros((len(cells), size))
    for row, cell in enumerate(text(cells)):
        single = re.findall(r"\w+", cell.lower())
        grams = [*single, *(" ".join(pair) for pair in pairwise(single))]
        np.add.at(counts[row], [zlib.crc32(gram.encode()) % size for gram in grams], 1)
    return np.log1p(counts)


def date(cells: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """Each part of the date as a number; parts that come round also as sine and cosine."""
    parts = calendar(moments(cells, column))
    made = [np.empty((len(cells), 0))]
    for part in column["parts"]:
        values = parts[part["name"]]
        made.append(encoded(values, part))
        if part["name"] in PERIODS:
            angle = 2 * np.pi * np.nan_to_num(values) / PERIODS[part["name"]]
            known = ~np.isnan(values)
            made.append(np.stack([np.sin(angle) * known, np.cos(angle) * known], axis=1))
    return np.hstack(made)


def calendar(days: np.ndarray) -> dict[str, np.ndarray]:
    """Days since 1970, and the year, month, day, weekday (Monday: 0) and hour; NaN where
    unknown.
    """
    at = pd.DatetimeIndex((np.nan_to_num(days) * 86400).round().astype("datetime64[s]"))
    hour = at.hour + at.minute / 60
    parts = {"year": at.year, "month": at.month, "day": at.day, "weekday": at.weekday, "hour": hour}
    known = {name: np.where(np.isnan(days), np.nan, part) for name, part in parts.items()}
    return {"days": days} | known


def moments(cells: pd.Series, column: dict[str, Any]) -> np.ndarray:
    """Days since 1970 (in UTC) as float64, with NaN where there is no date."""
    if cells.dtype.kind != "M":
        codes, levels = pd.factorize(text(cells))
        clocks = ["1970-01-01 " + level if CLOCK.fullmatch(level) else level for level in levels]
        given = pd.Series(clocks, dtype=object)
        read = pd.to_datetime(given, format="mixed", errors="coerce", utc=True)
        if column["dayfirst"]:
            # not where the year comes first, which pandas would read as year, day, month
            turned = ~given.str.match(r"\d{4}").to_numpy(bool)
            read[turned] = pd.to_datetime(
                given[turned], format="mixed", dayfirst=True, errors="coerce", utc=True
            )
        cells = read.iloc[codes]
    at = pd.DatetimeIndex(cells)
    at = at if at.tz is None else at.tz_convert(None)
    seconds = at.to_numpy().astype("datetime64[ms]").astype(np.int64) / 1000
    return np.where(at.isna(), np.nan, seconds / 86400)


def floats(cells: pd.Series, mark: str = ".") -> np.ndarray:
    """Cells as float64 with NaN for missing ones and for text that is no number; mark: the decimal
    mark of numbers that are written as text.
    """
    if cells.dtype.kind in "iufb":
        return np.asarray(cells.to_numpy(np.float64, na_value=np.nan))
    if cells.dtype.kind == "m":
        return np.asarray(cells.dt.total_seconds(), np.float64)
    if not isinstance(cells.dtype, pd.CategoricalDtype):
        numbers = pd.to_numeric(cells.astype(object), errors="coerce").astype(float)
        if mark == "." and not (numbers.isna() & cells.notna()).any():
            return np.asarray(numbers)
    codes, levels = pd.factorize(text(cells))
    return np.asarray(np.array([*(written(level, mark) for level in levels), np.nan])[codes])


def written(cell: str, mark: str) -> float:
    """A number as people write it: "1,234.50", "1.234,5", "€ 5", "12 %", "(300)"; NaN for any other
    text.
    """
    bare = CURRENCY.sub("", cell).strip().replace("−", "-")
    negative = bare.startswith("(") and bare.endswith(")")
    bare = bare[1:-1].strip() if negative else bare
    share = bare.endswith("%")
    bare = bare.removesuffix("%").strip()
    if bare[:1] in ("+", "-"):
        negative = negative or bare[0] == "-"
        bare = bare[1:].strip()
    if not bare[:2].strip(mark)[:1].isdigit() or not WRITTEN[mark].fullmatch(bare):
        return np.nan
    plain = bare.translate({ord(sign): None for sign in GROUPS[mark]}).replace(mark, ".")
    value = float(plain) / (100 if share else 1)
    return -value if negative else value


def text(cells: pd.Series) -> np.ndarray:
    """Cells as stripped text; whole floats read like integers, since one gap turns a file's
    integers into floats.
    """

    def read(cell: Any) -> str:
        return f"{cell:.0f}" if isinstance(cell, float) and cell.is_integer() else str(cell).strip()

    # numbers, text and categories are read once a level; True and 1 would be one level of objects
    once = cells.dtype != object
    codes, levels = pd.factorize(cells) if once else (np.arange(len(cells)), cells.to_numpy())
    gone = codes < 0 if once else cells.isna().to_numpy()
    names = np.array([*(read(level) for level in levels.astype(object)), "(missing)"], object)
    return np.asarray(names[np.where(gone, -1, codes)])


def readable(frame: pd.DataFrame, constants: dict[str, Any]) -> pd.DataFrame:
    """New rows as `prepare` takes them, whatever a part of a file was read as: a category that was
    read as text is found under the level that training saw, and so are true and false.
    """
    frame = frame.copy()
    for column in constants["numbers"]:
        name = column["name"]
        if name in frame and frame[name].dtype.kind not in "iufbmM":
            # one text in a column, and its "True" is no longer read as True
            frame[name] = frame[name].astype(object).replace({"True": 1, "False": 0})
    for column in constants["categories"]:
        if column["name"] in frame:
            frame[column["name"]] = as_levels(frame[column["name"]], column["levels"])
    return frame


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


KINDS = {"numbers": number, "categories": category, "hashed": hashed, "words": words, "dates": date}
