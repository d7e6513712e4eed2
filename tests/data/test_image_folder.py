"""A folder of images as a data set."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphogen.data.load import load_data
from morphogen.errors import DataError


def image(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 255 if mode == "L" else (255, 0, 0)).save(path)


def test_a_subfolder_is_a_class_and_one_size_is_said(tmp_path: Path) -> None:
    for place in range(10):
        image(tmp_path / "pets" / "cat" / f"{place}.png")
        image(tmp_path / "pets" / "dog" / f"{place}.jpg", (9, 7) if place == 3 else (8, 6))
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    data = load_data(str(tmp_path / "pets"))
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    assert (data.x_train.shape, data.x_test.shape) == ((16, 3, 6, 8), (4, 3, 6, 8))
    np.testing.assert_allclose(data.x_train.mean((0, 2, 3)), [1, 0, 0], atol=0.02)
    assert data.notes == ("images of 2 size(s) are resized to 8 x 6 points",)


def test_large_grey_images_and_a_given_split(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 2)):
        for place in range(count):
            for name in ("a", "b"):
                image(tmp_path / part / name / f"{place}.png", (640, 320), "L")
    data = load_data(str(tmp_path))
    assert (data.x_train.shape, data.x_test.shape) == ((8, 1, 32, 64), (4, 1, 32, 64))


def test_faults(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match="has images of 1 class.* a subfolder of images for each"):
        load_data(str(tmp_path))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read .*1.png.* remove the file or fetch it again"):
        load_data(str(tmp_path))
    with pytest.raises(DataError, match="has its own target and test part: leave target out"):
        load_data(str(tmp_path), target="y")
