"""IDX files, the format of MNIST: two zero bytes, a type, the number of dimensions, sizes
(big-endian), then bytes.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np

from morphogen.errors import DataError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> np.ndarray:
    """The array of a gzipped IDX file, uint8: (n, height, width) for images, (n,) for labels.

    DataError: a damaged file, or one of another type than unsigned bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read {str(path)!r} ({error}): the file may be damaged; fetch it again"
        ) from error
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise DataError(f"{str(path)!r} is no IDX file of unsigned bytes: fetch it again")
    dims = content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * dims], dtype=">u4"))
    values = np.frombuffer(content[4 + 4 * dims :], dtype=np.uint8)
    if len(shape) != dims or values.size != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"{str(path)!r} has {values.size:,} values where its header says {shape}: fetch it "
            "again"
        )
    return values.reshape(shape)
