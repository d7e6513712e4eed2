"""Read a table from a file: text with any delimiter and encoding, Parquet, Feather, JSON lines,
Excel; also compressed.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow

from morphogen.data.text_table import read_text
from morphogen.errors import DataError

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".dat", ".data")
PLAIN_ENDINGS = (".parquet", ".feather", ".jsonl", ".ndjson", ".xlsx")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def read_table(path: Path, numbers: bool = False) -> pd.DataFrame:
    """The table with its column names as text; empty cells and "?" are missing. numbers: where a
    text's first line has numbers alone, it is a row and no header. What the user should be told is
    in `attrs["notes"]`.

    DataError: no such file, another ending, two columns of one name, or content that is not what
    the ending says.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}: check the path")
    ending = table_ending(path)
    if ending is None:
        known = ", ".join((*TEXT_ENDINGS, *PLAIN_ENDINGS))
        raise DataError(
            f"cannot read {path.name!r}: give a file that ends in {known}, also followed by "
            f"{', '.join(PACKED)}"
        )
    try:
        content, inner = _unpacked(path, ending)
        frame = read_text(content, numbers) if inner in TEXT_ENDINGS else _READERS[inner](content)
    except DataError as error:
        raise DataError(f"{str(path)!r} {error}") from error
    except pd.errors.EmptyDataError as error:
        raise DataError(
            f"{str(path)!r} is an empty table: give a file with a header and rows"
        ) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot read {str(path)!r} as {ending} ({reason}): the file may be damaged"
        ) from error
    names = pd.Index([str(name).strip() for name in frame.columns])
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise DataError(f"{str(path)!r} has two columns {twice!r}: rename one")
    return frame.set_axis(names, axis=1).reset_index(drop=True)


def table_ending(path: Path) -> str | None:
    """The ending of a file that can be read, such as ".csv.gz" or ".zip"; None for another."""
    name = path.name.lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    inner = name.removesuffix(packed)
    for ending in (*TEXT_ENDINGS, *PLAIN_ENDINGS):
        if inner.endswith(ending):
            return ending + packed
    # a zip says itself what it holds
    return packed if packed == ".zip" else None


def _unpacked(path: Path, ending: str) -> tuple[bytes, str]:
    """(content, ending without what is packed)."""
    packed = next((known for known in PACKED if ending.endswith(known)), "")
    inner = ending.removesuffix(packed)
    if packed == ".zip":
        return _from_zip(path, inner)
    content = _UNPACK[packed](path)
    return content, inner


def _from_zip(path: Path, inner: str) -> tuple[bytes, str]:
    with zipfile.ZipFile(path) as archive:
        members = [
            member
            for member in archive.namelist()
            if not member.endswith("/") and not member.startswith("__MACOSX")
        ]
        if len(members) != 1:
            raise DataError(f"holds {len(members)} files: give an archive with a single table")
        kind = table_ending(Path(members[0])) or inner
        if kind not in (*TEXT_ENDINGS, *PLAIN_ENDINGS):
            raise DataError(f"holds {members[0]!r}, which is no table that can be read")
        return archive.read(members[0]), kind


def _zstandard(path: Path) -> bytes:
    with pyarrow.input_stream(str(path), compression="zstd") as stream:
        return bytes(stream.read())


def _read_bytes(opened: Callable[[Path], io.IOBase]) -> Callable[[Path], bytes]:
    def read(path: Path) -> bytes:
        with opened(path) as file:
            return bytes(file.read())

    return read


_UNPACK: dict[str, Callable[[Path], bytes]] = {
    "": Path.read_bytes,
    ".gz": _read_bytes(gzip.open),
    ".bz2": _read_bytes(bz2.open),
    ".xz": _read_bytes(lzma.open),
    ".zst": _zstandard,
}


def _json_lines(content: bytes) -> pd.DataFrame:
    frame = pd.read_json(io.BytesIO(content), lines=True, convert_dates=False)
    if nested := [name for name in frame if frame[name].map(type).isin((list, dict)).any()]:
        raise DataError(
            f"has lists or objects in column {nested[0]!r}: give a column for each of their values"
        )
    return frame


def _excel(content: bytes) -> pd.DataFrame:
    try:
        sheet = pd.read_excel(io.BytesIO(content), header=None, engine="openpyxl", na_values=["?"])
    except ImportError as error:
        raise DataError(
            "is an Excel file, for which openpyxl is needed: pip install 'morphogen[excel]', or "
            "save it as CSV"
        ) from error
    sheet = sheet.dropna(how="all")
    if len(sheet) < 1:
        raise pd.errors.EmptyDataError
    names = [f"column {i + 1}" if pd.isna(name) else name for i, name in enumerate(sheet.iloc[0])]
    return sheet.iloc[1:].set_axis(names, axis=1).infer_objects()


_READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".parquet": lambda content: pd.read_parquet(io.BytesIO(content)),
    ".feather": lambda content: pd.read_feather(io.BytesIO(content)),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".xlsx": _excel,
}
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    pyarrow.ArrowException,
)
