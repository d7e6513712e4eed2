"""IDX and CIFAR files, whole and damaged."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphogen.data.cifar import read_cifar
from morphogen.data.idx import read_idx
from morphogen.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "i.gz").write_bytes(gzip.compress(idx(images), mtime=0))
    np.testing.assert_array_equal(read_idx(tmp_path / "i.gz"), images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "the file may be damaged; fetch it again"),
        (gzip.compress(b"no idx", mtime=0), "is no IDX file of unsigned bytes"),
        (
            gzip.compress(idx(np.zeros((2, 3), np.uint8))[:-1], mtime=0),
            r"has 5 values where its header says \(2, 3\)",
        ),
        (gzip.compress(b"\0\0\x08\x03\0\0\0\x01", mtime=0), "has 0 values where its header says"),
    ],
    ids=["no gzip", "no idx", "one value short", "cut header"],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "i.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "i.gz")


def test_cifar(tmp_path: Path) -> None:
    red = io.BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(red, "jpeg")
    content = np.frombuffer(red.getvalue() * 2, np.uint8)
    offset = np.array([0, 1, 2]) * len(red.getvalue())
    np.savez(tmp_path / "c.npz", jpeg=content, offset=offset, label=np.array([3, 4], np.uint8))
    images, labels = read_cifar(tmp_path / "c.npz")
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)), [1, 0, 0], atol=0.02)
    assert labels.tolist() == [3, 4]
    np.savez(tmp_path / "c.npz", jpeg=content[5:], offset=offset, label=np.array([3, 4], np.uint8))
    with pytest.raises(DataError, match="the file may be damaged; fetch it again"):
        read_cifar(tmp_path / "c.npz")
