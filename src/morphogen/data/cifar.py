"""CIFAR-10 kept as JPEG: an npz with `jpeg` (all pictures' bytes in a row), `offset` (n + 1) and
`label`.
"""

import io
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from morphogen.errors import DataError


def read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 3, 32, 32) float32 in [0, 1], labels (n,) int64). DataError: a damaged file."""
    try:
        with np.load(path) as stored:
            content = stored["jpeg"].tobytes()
            offset = stored["offset"]
            label = stored["label"]
        images = np.empty((len(label), 3, 32, 32), dtype=np.float32)
        for i, (start, end) in enumerate(pairwise(offset)):
            images[i] = np.asarray(Image.open(io.BytesIO(content[start:end]))).transpose(2, 0, 1)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, UnidentifiedImageError) as error:
        raise DataError(
            f"cannot read {str(path)!r} ({error}): the file may be damaged; fetch it again"
        ) from error
    return np.divide(images, 255, out=images), label.astype(np.int64)
