"""A table as text: its encoding, comment lines, delimiter and header are found out."""

import csv
import io
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from morphogen.errors import DataError

USUAL = ",;\t|"  # delimiters in the order in which they are preferred where two would do
UNUSUAL = "^~: "
COMMENTS = ("#", "%", "//")
_SAMPLE = 50  # lines that say how a file is written
_REGULAR = 0.9  # share of these lines that must have as many cells as the header
# with their byte order marks, the longer ones first: that of UTF-32 begins as that of UTF-16
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def read_text(content: bytes, numbers: bool = False) -> pd.DataFrame:
    """The table; empty cells and "?" are missing. numbers: a first line of numbers alone is a row.

    DataError: two columns of one name. ValueError: no text, or rows longer than the header.
    """
    text, notes = _decoded(content)
    del content
    if "\0" in text[:4096]:
        raise ValueError("it is not text")
    text, skipped = _without_comments(text)
    notes += [f"{skipped:,} comment line(s) left out"] if skipped else []
    lines = _first_lines(text)
    delimiter = delimiter_of(lines)
    header = next(csv.reader(lines[:1], delimiter=delimiter, skipinitialspace=True), [])
    _refuse_twice(header)
    first = None if numbers and all(map(_numeric, header)) else 0
    frame = pd.read_csv(
        io.StringIO(text),
        sep=r"\s+" if delimiter == " " else delimiter,
        header=first,
        skipinitialspace=True,
        na_values=["?"],
        low_memory=False,
    )
    if not frame.index.equals(pd.RangeIndex(len(frame))):  # pandas has shifted the columns by one
        raise ValueError("its rows have more cells than its header")
    frame.attrs["notes"] = tuple(notes)
    return frame


@dataclass(frozen=True)
class TextForm:
    """How a text is written. columns: their names, made up where it has none. header: its first
    line, comments aside, names them. comment: the sign that its comment lines begin with, or "".
    """

    columns: tuple[str, ...]
    delimiter: str
    header: bool
    comment: str


def form_of(beginning: bytes) -> TextForm:
    """How a text is written that begins so, for reading the rest in parts; numbers alone are no
    header.

    DataError: two columns of one name. ValueError: no text.
    """
    text, _ = _decoded(beginning)
    if "\0" in text:
        raise ValueError("it is not text")
    start = text.lstrip()
    comment = next((sign for sign in COMMENTS if start.startswith(sign)), "")
    below = [line for line in text.splitlines() if comment and line.lstrip().startswith(comment)]
    lines = _first_lines(_without_comments(text)[0])
    delimiter = delimiter_of(lines)
    first = next(csv.reader(lines[:1], delimiter=delimiter, skipinitialspace=True), [])
    first = lines[0].split() if delimiter == " " and lines else first
    _refuse_twice(first)
    named = any(line.lstrip().removeprefix(comment).lstrip() == lines[0] for line in below)
    if named or not all(map(_numeric, first)):
        columns = tuple(name.strip() for name in first)
    else:
        columns = tuple(str(number) for number in range(len(first)))
    header = not named and not all(map(_numeric, first))
    return TextForm(columns, delimiter, header, comment)


def _decoded(content: bytes) -> tuple[str, list[str]]:
    """(text, what to tell): by the byte order mark, else UTF-8, else what Windows writes."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding), []
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError:
        pass
    try:
        return content.decode("cp1252"), ["the file is not UTF-8: read as cp1252"]
    except UnicodeDecodeError:
        return content.decode("latin-1"), ["the file is not UTF-8: read as latin-1"]


def _first_lines(text: str) -> list[str]:
    lines: list[str] = []
    for line in io.StringIO(text):
        if line.strip():
            lines.append(line.rstrip("\r\n"))
        if len(lines) == _SAMPLE:
            break
    return lines


def _without_comments(text: str) -> tuple[str, int]:
    """(text, lines left out): where the file begins with a comment, all lines like it go, but for a
    last one that names the columns.
    """
    start = text.lstrip()
    sign = next((sign for sign in COMMENTS if start.startswith(sign)), None)
    if sign is None:
        return text, 0
    lines = text.splitlines(keepends=True)
    plain = [line for line in lines if not line.lstrip().startswith(sign)]
    ahead = 0
    while ahead < len(lines) and (
        not lines[ahead].strip() or lines[ahead].lstrip().startswith(sign)
    ):
        ahead += 1
    last = lines[ahead - 1].lstrip().removeprefix(sign).lstrip()
    if _names(last, plain[:1]):
        plain = [last, *plain]
    return "".join(plain), len(lines) - len(plain)


def _names(line: str, below: list[str]) -> bool:
    """Whether a comment names the columns of the row below: as many cells, none of them a number,
    where the row has one.
    """
    if not below:
        return False
    for delimiter in (*USUAL, " "):
        names, cells = (
            [cell.strip() for cell in row.strip().split(delimiter)] for row in (line, below[0])
        )
        if len(names) == len(cells) > 1 and all(names):
            return any(map(_numeric, cells)) and not any(map(_numeric, names))
    return False


def delimiter_of(lines: list[str]) -> str:
    """The usual sign that parts most lines into as many cells as the header, and into the most;
    else an unusual one; else the one that the header has the most of.
    """
    header = lines[0] if lines else ""
    for signs in (USUAL, UNUSUAL):
        cells = {sign: _cells(lines, sign) for sign in signs}
        if max(cells.values()) > 1:
            return max(signs, key=lambda sign: cells[sign])
    return max(USUAL, key=header.count)


def _cells(lines: list[str], delimiter: str) -> int:
    """Cells of the header where nearly all lines have as many, else 0."""
    if delimiter == " ":
        counts = [len(line.split()) for line in lines]
    else:
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        counts = [len(row) for row in rows]
    if not counts or Counter(counts)[counts[0]] < _REGULAR * len(counts):
        return 0
    return counts[0]


def _refuse_twice(header: list[str]) -> None:
    """pandas would call the second "a" "a.1"."""
    counts = Counter(name.strip() for name in header if name.strip())
    for name, count in counts.items():
        if count > 1 and not _numeric(name):
            raise DataError(f"has {count} columns {name!r}: rename all but one")


def _numeric(cell: str) -> bool:
    """A number, or nothing."""
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True
