"""Rows of zeros and ones for density estimation, by name: `binary_set("mushrooms")`.

Train, valid and test parts as published (Larochelle and Murray 2011; Lowd and Davis 2010), from
`density_binary/` of the data folder: npz files with "dim" and, of each part, the rows packed by
`np.packbits(axis=1)`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from morphogen.data.folders import find, searched
from morphogen.errors import DataError

BinaryName = Literal[
    "accidents",
    "adult-binary",
    "baudio",
    "bbc",
    "bnetflix",
    "connect4",
    "dna",
    "dna-nade",
    "jester",
    "moviereview",
    "mushrooms",
    "nips",
    "nltcs",
    "ocr-letters",
    "plants",
    "pumsb-star",
    "voting",
]
BINARY_SETS: tuple[str, ...] = get_args(BinaryName)


@dataclass(frozen=True)
class BinarySet:
    """Each (rows, bits) of uint8."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def binary_set(name: BinaryName) -> BinarySet:
    """Raises `DataError` for an unknown name, or where the data folder does not have the file."""
    if name not in BINARY_SETS:
        raise DataError(f"name={name!r}: unknown; choose one of {', '.join(BINARY_SETS)}")
    file = f"density_binary/{name.removesuffix('-binary').replace('-', '_')}.npz"
    paths = find(file)
    if not paths:
        folders = ", ".join(repr(str(folder)) for folder in searched())
        raise DataError(
            f"{name}: there is no {file} in {folders}; set MORPHOGEN_DATA to its folder"
        )
    packed = np.load(paths[0], allow_pickle=False)
    bits = int(packed["dim"])
    parts = (np.unpackbits(packed[part], axis=1)[:, :bits] for part in ("train", "valid", "test"))
    return BinarySet(*parts)
