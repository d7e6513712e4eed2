"""A folder of images, a subfolder a class."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from morphogen.data.dataset import Dataset
from morphogen.data.split import split
from morphogen.data.target import rare_note
from morphogen.errors import DataError

ENDINGS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)
LARGEST = 64  # points a side, beyond which images are made smaller
TRAIN, TEST = "train", "test"


def read_image_folder(folder: Path, test_fraction: float, seed: int) -> Dataset:
    """All images as float32 (n, channels, height, width) in [0, 1], of one size: the commonest one,
    made smaller where a side is over 64 points. One channel where all are grey, else three.

    Where the subfolders are "train" and "test", each with a subfolder a class, that is the split;
    else `test_fraction` of each class is set aside. DataError: fewer than two classes, or a file
    that is no image.
    """
    parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
    given = parts == [TEST, TRAIN]
    files = _labelled(folder / TRAIN if given else folder)
    more = _labelled(folder / TEST) if given else []
    classes = tuple(sorted({label for _, label in files}))
    if len(classes) < 2:
        raise DataError(
            f"{str(folder)!r} has images of {len(classes)} class(es): give a folder with a "
            "subfolder of images for each class, at least two"
        )
    if unknown := sorted({label for _, label in more} - set(classes)):
        raise DataError(f"class {unknown[0]!r} of {str(folder)!r} is in the test part only")
    images, notes = _read([path for path, _ in (*files, *more)])
    y = np.array([classes.index(label) for _, label in (*files, *more)], np.int64)
    if given:
        train, test = np.arange(len(files)), np.arange(len(files), len(y))
    else:
        train, test = split(y, test_fraction, seed, stratify=True)
    return Dataset(
        folder.resolve().name or "images",
        "classification",
        images[train],
        y[train],
        images[test],
        y[test],
        classes,
        notes=notes + rare_note(y[train], classes, "class"),
    )


def _labelled(folder: Path) -> list[tuple[Path, str]]:
    """(image, class) of each file in the subfolders, in a fixed order."""
    return [
        (path, sub.name)
        for sub in sorted(folder.iterdir())
        if sub.is_dir()
        for path in sorted(sub.rglob("*"))
        if path.suffix.lower() in ENDINGS
    ]


def _read(paths: list[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    sizes: Counter[tuple[int, int]] = Counter()
    grey = True
    for path in paths:
        with _opened(path) as image:
            sizes[image.size] += 1
            grey = grey and image.mode in ("1", "L", "I;16")
    commonest = sizes.most_common(1)[0][0]
    shrink = min(1.0, LARGEST / max(commonest))
    size = (max(1, round(commonest[0] * shrink)), max(1, round(commonest[1] * shrink)))
    channels = 1 if grey else 3
    images = np.empty((len(paths), channels, size[1], size[0]), np.float32)
    for place, path in enumerate(paths):
        with _opened(path) as image:
            try:
                points = image.convert("L" if grey else "RGB").resize(size)
            except OSError as error:
                raise _damaged(path, error) from error
            images[place] = (
                np.asarray(points).reshape(size[1], size[0], channels).transpose(2, 0, 1)
            )
    notes: tuple[str, ...] = ()
    if set(sizes) != {size}:
        notes = (f"images of {len(sizes)} size(s) are resized to {size[0]} x {size[1]} points",)
    return np.divide(images, 255, out=images), notes


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"cannot read {str(path)!r} ({reason}): remove the file or fetch it again")
