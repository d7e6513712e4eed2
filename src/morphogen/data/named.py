"""The sets that are known by name. A set is one function (test_fraction, seed) -> Dataset and one
row of NAMED.
"""

import http.client
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import fetch_california_housing, fetch_openml, load_digits

from morphogen.data.cifar import read_cifar
from morphogen.data.dataset import Dataset
from morphogen.data.folders import cache, find, searched
from morphogen.data.from_frame import from_frame
from morphogen.data.idx import read_idx
from morphogen.data.split import split
from morphogen.errors import DataError

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ADULT_COLUMNS = (
    *(
        "age",
        "workclass",
        "fnlwgt",
        "education",
        "education-num",
        "marital-status",
        "occupation",
        "relationship",
    ),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
ADULT_TEST_ROWS = 16_281


def digits(test_fraction: float, seed: int) -> Dataset:
    """scikit-learn's 1,797 digits of 8x8 points."""
    x, y = load_digits(return_X_y=True)
    images = (x / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    labels = y.astype(np.int64)
    train, test = split(labels, test_fraction, seed, stratify=True)
    return Dataset(
        "digits", "classification", images[train], labels[train], images[test], labels[test], DIGITS
    )


def grey_images(
    name: str, openml: str, folder: str, classes: tuple[str, ...], flip: bool, *_: float
) -> Dataset:
    """MNIST and its likes: 60,000 + 10,000 grey images of 28x28, in the published split."""
    files = [
        f"{folder}/{part}-{kind}-ubyte.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    if paths := find(*files):
        x_train, y_train, x_test, y_test = (read_idx(path) for path in paths)
    else:
        x, y = _openml(name, openml)
        (x_train, x_test), (y_train, y_test) = np.split(x, [60_000]), np.split(y, [60_000])
    images = [np.divide(x.reshape(-1, 1, 28, 28), 255, dtype=np.float32) for x in (x_train, x_test)]
    labels = [y.astype(np.int64) for y in (y_train, y_test)]
    return Dataset(
        name, "classification", images[0], labels[0], images[1], labels[1], classes, flip=flip
    )


def cifar10(*_: float) -> Dataset:
    """50,000 + 10,000 colour images of 32x32, in the published split."""
    notes: tuple[str, ...] = ()
    if paths := find(*(f"cifar10_jpeg/cifar10_jpeg_{part}.npz" for part in ("train", "test"))):
        (x_train, y_train), (x_test, y_test) = (read_cifar(path) for path in paths)
        notes = (
            "CIFAR-10 (JPEG q75): a lossy copy; its scores are not comparable with published ones",
        )
    else:
        x, y = _openml("cifar10", "CIFAR_10")
        images = np.divide(x.reshape(-1, 3, 32, 32), 255, dtype=np.float32)
        labels = y.astype(np.int64)
        (x_train, x_test), (y_train, y_test) = (
            np.split(images, [50_000]),
            np.split(labels, [50_000]),
        )
    return Dataset(
        "cifar10",
        "classification",
        x_train,
        y_train,
        x_test,
        y_test,
        THINGS,
        flip=True,
        notes=notes,
    )


def adult(*_: float) -> Dataset:
    """Who earns over 50,000 $ (US census 1994): 32,561 + 16,281 rows, in the published split."""
    if paths := find("tabular/adult/adult.data.gz", "tabular/adult/adult.test.gz"):
        train, test = (_adult_file(path) for path in paths)
    else:
        # OpenML puts the test file first.
        frame = _fetch(
            "adult", lambda home: fetch_openml("adult", version=2, as_frame=True, data_home=home)
        ).frame
        frame = frame.set_axis(ADULT_COLUMNS, axis=1)
        test = frame.iloc[:ADULT_TEST_ROWS]
        train = frame.iloc[ADULT_TEST_ROWS:]
        if train["fnlwgt"].iloc[0] != 77_516:
            raise DataError(
                "OpenML's adult has another row order than expected: give MORPHOGEN_DATA a folder "
                "with it"
            )
    return from_frame(train, "income", test=test, name="adult")


def california_housing(test_fraction: float, seed: int) -> Dataset:
    """Median house value of 20,640 districts, in 100,000 $, with scikit-learn's eight features."""
    if paths := find("tabular/california_housing/housing.csv.gz"):
        frame = _districts(pd.read_csv(paths[0]))
    else:
        fetched = _fetch(
            "california-housing",
            lambda home: fetch_california_housing(data_home=home, as_frame=True),
        )
        frame = fetched.frame
    made = from_frame(
        frame, "MedHouseVal", test_fraction=test_fraction, seed=seed, name="california-housing"
    )
    return replace(made, notes=(*made.notes, "target: the median house value in 100,000 $"))


NAMED: dict[str, Callable[[float, int], Dataset]] = {
    "digits": digits,
    "mnist": partial(grey_images, "mnist", "mnist_784", "mnist", DIGITS, False),
    "fashion-mnist": partial(
        grey_images, "fashion-mnist", "Fashion-MNIST", "fashion_mnist", CLOTHES, True
    ),
    "cifar10": cifar10,
    "adult": adult,
    "california-housing": california_housing,
}


def _adult_file(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(
        path, names=ADULT_COLUMNS, skipinitialspace=True, na_values="?", comment="|"
    )
    # the test file ends its labels with a full stop
    return frame.assign(income=frame["income"].str.rstrip("."))


def _districts(raw: pd.DataFrame) -> pd.DataFrame:
    households = raw["households"]
    return pd.DataFrame(
        {
            "MedInc": raw["median_income"],
            "HouseAge": raw["housing_median_age"],
            "AveRooms": raw["total_rooms"] / households,
            "AveBedrms": raw["total_bedrooms"] / households,
            "Population": raw["population"],
            "AveOccup": raw["population"] / households,
            "Latitude": raw["latitude"],
            "Longitude": raw["longitude"],
            "MedHouseVal": raw["median_house_value"] / 100_000,
        }
    )


def _openml(name: str, title: str) -> tuple[np.ndarray, np.ndarray]:
    """OpenML's images as (n, values) and labels (n,), training rows first."""
    fetched = _fetch(
        name, lambda home: fetch_openml(title, version=1, as_frame=False, data_home=home)
    )
    return fetched.data, fetched.target


def _fetch(name: str, download: Callable[[str], Any]) -> Any:
    try:
        return download(str(cache() / "scikit-learn"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        folders = ", ".join(repr(str(folder)) for folder in searched())
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name!r} is not in {folders}, and scikit-learn could not download it ({reason}): "
            "name a folder that holds it in MORPHOGEN_DATA"
        ) from error
