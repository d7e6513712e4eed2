"""The file of a packed table: `write_container`, `read_container`.

    8 bytes   magic and version
    12 bytes  sizes of header, words and texts, little-endian
    header    JSON, compressed
    words     of the ANS stack, 32 bits each
    texts     columns that go along as they are, compressed
    32 bytes  SHA-256 of the table's cells
    32 bytes  SHA-256 of all before

Whatever a file says is checked against its size and the limits here before memory is asked for.
"""

import hashlib
import json
import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from morphogen.errors import DataError

MAGIC = b"mrphpk\x00\x01"
MOST_HEADER = 1 << 26  # bytes, once expanded
MOST_TEXTS = 1 << 30
_SIZES = struct.Struct("<III")
_DIGEST = 32
_GAIN = 10_000  # by how much LZMA can shorten, and more
# its window is all the memory that expanding takes
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 24}]


@dataclass(frozen=True)
class Container:
    """header: JSON. words: uint32. texts: JSON. digest: of the cells. sizes: bytes of header, words
    and texts in the file.
    """

    header: Any
    words: np.ndarray
    texts: Any
    digest: bytes
    sizes: tuple[int, int, int] = (0, 0, 0)


def write_container(content: Container) -> bytes:
    """The whole file."""
    texts = _squeezed(content.texts) if content.texts else b""
    parts = [_squeezed(content.header), content.words.astype("<u4").tobytes(), texts]
    sizes = _SIZES.pack(*map(len, parts))
    whole = b"".join([MAGIC, sizes, *parts, content.digest])
    return whole + hashlib.sha256(whole).digest()


def read_container(data: bytes) -> Container:
    """Raises `DataError` for what is no such file, or a damaged one."""
    if data[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise DataError("the file is not one that `morphogen pack` wrote")
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise DataError("the packed file is damaged or cut off: get it anew from where it came")
    if data[: len(MAGIC)] != MAGIC:
        raise DataError(f"the packed file has version {data[len(MAGIC) - 1]}: update morphogen")
    start = len(MAGIC) + _SIZES.size
    body = data[start : -2 * _DIGEST]
    sizes = _SIZES.unpack(data[len(MAGIC) : start]) if len(data) > start else (0, 0, 0)
    if sum(sizes) != len(body) or sizes[1] % 4:
        raise DataError(f"the packed file says that its parts have {sizes} bytes: it is damaged")
    edges = np.cumsum([0, *sizes])
    header, words, texts = (body[a:b] for a, b in pairwise(edges))
    return Container(
        _expanded(header, MOST_HEADER),
        np.frombuffer(words, dtype="<u4").astype(np.uint32),
        _expanded(texts, MOST_TEXTS) if texts else [],
        data[-2 * _DIGEST : -_DIGEST],
        sizes,
    )


def digest_of(columns: Sequence[tuple[str, str, Sequence[str | None]]]) -> bytes:
    """SHA-256 of (name, dtype, cells) of every column."""
    found = hashlib.sha256()
    for column in columns:
        found.update(json.dumps(column).encode() + b"\n")
    return found.digest()


def _squeezed(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    raw = text.encode("utf-8", "surrogatepass")
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=_FILTERS)


def _expanded(data: bytes, most: int) -> Any:
    limit = min(most, _GAIN * len(data))
    machine = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        raw = machine.decompress(data, limit)
        if not machine.eof:
            raise DataError(f"a part of the packed file is no LZMA, or has over {limit} bytes")
        return json.loads(raw.decode("utf-8", "surrogatepass"))
    except (lzma.LZMAError, ValueError, RecursionError) as error:
        raise DataError(f"a part of the packed file cannot be read: {error}") from error
