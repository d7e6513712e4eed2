"""A CSV file as a table of texts and the way it was written, and back: `read_csv`, `write_csv`.

The way is found by trial: where one of those here writes the same bytes, `exact` says so. Otherwise
the cells are kept and quotes may change.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from morphogen.errors import DataError

Quoting = Literal["none", "minimal", "all", "texts"]
_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Way:
    """header, body: which cells are in quotes; "minimal": those that need them, "texts": those that
    are no numbers. end: what follows
    the last row. exact: whether the file comes back byte by byte.
    """

    encoding: str = "utf-8"
    delimiter: str = ","
    line: str = "\n"
    header: Quoting = "none"
    body: Quoting = "none"
    end: str = "\n"
    exact: bool = True

    def to_json(self) -> dict[str, Any]:
        """What differs from the usual way."""
        usual = asdict(Way())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def way_of(described: Mapping[str, Any]) -> Way:
    """From `to_json`. Raises `DataError` for a way that is none of these."""
    way = Way(**described)
    known = (
        way.encoding in ("utf-8", "latin-1")
        and way.delimiter in [*_DELIMITERS]
        and way.line in ("\n", "\r\n")
        and {way.header, way.body} <= {*_QUOTES}
        and not way.end.strip("\r\n")
    )
    if not known:
        raise DataError(f"the packed file was written as {described}: none of the known ways")
    return way


def read_csv(path: Path) -> tuple[pd.DataFrame, Way]:
    """(texts, way). Raises `DataError` for a file that is absent, or no table."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8")
        way = Way()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        way = Way(encoding="latin-1")
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    way = replace(way, delimiter=delimiter, line="\r\n" if first.endswith("\r") else "\n")
    rows = _rows(path, text, delimiter)
    if len(rows) < 2:
        raise DataError(f"{path} has a first line of names and no rows: none to pack")
    return _frame(path, rows), _way(way, rows, text)


def write_csv(frame: pd.DataFrame, way: Way) -> bytes:
    """The bytes of the file."""
    rows = zip(*(frame.iloc[:, k].tolist() for k in range(frame.shape[1])), strict=True)
    return _text(way, [*map(str, frame.columns)], rows).encode(way.encoding)


def _rows(path: Path, text: str, delimiter: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is no CSV: {error}") from error
    while rows and not rows[-1]:
        rows.pop()
    # what the reader says of an empty line, which in a table of one column is a cell
    return [row or [""] for row in rows] if rows and len(rows[0]) == 1 else rows


def _frame(path: Path, rows: Sequence[Sequence[str]]) -> pd.DataFrame:
    names = rows[0]
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"{path}: row {number} has {len(row)} cells, the first {len(names)}: give every "
                "row as many"
            )
    columns = zip(*rows[1:], strict=True)
    frame = pd.DataFrame({k: list(cells) for k, cells in enumerate(columns)}, dtype=object)
    frame.columns = pd.Index(names)
    return frame


def _way(way: Way, rows: Sequence[Sequence[str]], text: str) -> Way:
    """The way in which `text` was written, header and body each by themselves."""
    # what follows the last row: line ends and nothing else
    end = text[len(text.rstrip("\r\n")) :]
    way = replace(way, end=end)
    for header in _QUOTES:
        if text.startswith(_lines(way, header, rows[:1])):
            way = replace(way, header=header)
            break
    for body in _QUOTES:
        found = replace(way, body=body)
        if _text(found, rows[0], rows[1:]) == text:
            return found
    # whatever is in a cell, this can be read again
    return replace(way, header="all", body="all", exact=False)


def _text(way: Way, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    whole = _lines(way, way.header, [names]) + _lines(way, way.body, rows)
    return whole[: -len(way.line)] + way.end


def _lines(way: Way, quoting: Quoting, rows: Iterable[Sequence[str]]) -> str:
    return _QUOTES[quoting](way, rows)


def _by_writer(quoting: Literal[0, 1]) -> Callable[[Way, Iterable[Sequence[str]]], str]:
    def write(way: Way, rows: Iterable[Sequence[str]]) -> str:
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=way.delimiter, lineterminator=way.line, quoting=quoting)
        writer.writerows(rows)
        return out.getvalue()

    return write


def _texts_quoted(way: Way, rows: Iterable[Sequence[str]]) -> str:
    known: dict[str, str] = {}

    def cell(text: str) -> str:
        if text not in known:
            known[text] = text if _bare(text) else '"' + text.replace('"', '""') + '"'
        return known[text]

    return "".join(way.delimiter.join(map(cell, row)) + way.line for row in rows)


def _bare(text: str) -> bool:
    """Whether R writes it without quotes."""
    if text in ("", "NA", "TRUE", "FALSE"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


_QUOTES: Mapping[Quoting, Callable[[Way, Iterable[Sequence[str]]], str]] = {
    "none": lambda way, rows: "".join(way.delimiter.join(row) + way.line for row in rows),
    "minimal": _by_writer(csv.QUOTE_MINIMAL),
    "all": _by_writer(csv.QUOTE_ALL),
    "texts": _texts_quoted,
}
