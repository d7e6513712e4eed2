"""Sets known by name: where they are looked for, and that the real ones read right."""

import urllib.error
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.utils import Bunch

from morphogen.data import named
from morphogen.data.cifar import read_cifar
from morphogen.data.load import load_data
from morphogen.data.named import NAMED
from morphogen.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not in {SHARED}")
    monkeypatch.setenv("MORPHOGEN_DATA", str(SHARED))
    return SHARED


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache and no data folder."""
    monkeypatch.delenv("MORPHOGEN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_digits() -> None:
    data = load_data("digits")
    assert (data.x_train.shape, data.x_test.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert data.classes == tuple("0123456789")
    assert np.bincount(data.y_test).min() >= 34
    assert data.fingerprint != load_data("digits", seed=1).fingerprint


@pytest.mark.parametrize(
    ("name", "mean", "flip"), [("mnist", 0.1307, False), ("fashion-mnist", 0.2860, True)]
)
def test_grey_images(shared: Path, name: str, mean: float, flip: bool) -> None:
    data = load_data(name)
    assert (data.x_train.shape, data.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert data.x_train.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-4)
    assert (data.flip, len(data.classes), len(data.y_train)) == (flip, 10, 60_000)


def test_cifar10_test_part(shared: Path) -> None:
    path = shared / "cifar10_jpeg" / "cifar10_jpeg_test.npz"
    images, labels = read_cifar(path)
    assert images.shape == (10_000, 3, 32, 32)
    assert images[:100].max() <= 1
    assert labels[:4].tolist() == [3, 8, 8, 0]  # cat, ship, ship, airplane
    assert tuple(np.load(path)["classes"]) == named.THINGS


def test_cifar10_says_that_it_is_lossy(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = np.zeros((2, 3, 32, 32), np.float32), np.array([0, 1])
    monkeypatch.setattr(named, "read_cifar", lambda path: part)
    data = load_data("cifar10")
    assert data.flip
    assert data.notes[0].startswith("CIFAR-10 (JPEG q75)")


def test_adult(shared: Path) -> None:
    data = load_data("adult")
    assert (len(data.x_train), len(data.x_test)) == (32_561, 16_281)
    assert data.classes == ("<=50K", ">50K")
    assert data.y_train.mean() == pytest.approx(0.2408, abs=1e-4)
    assert data.prepare is not None
    assert {"sex=Male", "workclass=(missing)"} <= set(data.prepare.names)
    # 92 % are zeros; the tail has bins all the same
    assert sum(name.startswith("capital-gain[") for name in data.prepare.names) >= 8
    assert np.isfinite(data.x_train).all()


def test_california_housing(shared: Path) -> None:
    data = load_data("california-housing")
    assert (len(data.x_train), len(data.x_test)) == (16_512, 4_128)
    assert data.task == "regression"
    assert data.y_train.max() == pytest.approx(5.00001)
    assert data.prepare is not None
    assert data.prepare.columns[0] == "MedInc"
    assert "AveBedrms?" in data.prepare.names


def test_the_cache_has_the_same_layout(nowhere: Path) -> None:
    folder = nowhere / "morphogen" / "tabular" / "california_housing"
    folder.mkdir(parents=True)
    places = ["longitude", "latitude", "housing_median_age", "total_rooms", "total_bedrooms"]
    values = np.random.default_rng(0).integers(1, 100, (50, 9))
    frame = pd.DataFrame(
        values, columns=[*places, "population", "households", "median_income", "median_house_value"]
    )
    frame.to_csv(folder / "housing.csv.gz", index=False)
    assert len(load_data("california-housing").x_train) == 40


@pytest.mark.parametrize("name", [name for name in NAMED if name != "digits"])
def test_a_failed_download_says_what_was_tried(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(named, "fetch_openml", fail)
    monkeypatch.setattr(named, "fetch_california_housing", fail)
    with pytest.raises(
        DataError, match=f"'{name}' is not in '{nowhere}/morphogen', .*no network.*MORPHOGEN_DATA"
    ):
        load_data(name)


def test_openml_images(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array(["3", "5"] * 35_000, dtype=object)
    fetched = Bunch(data=np.full((70_000, 784), 255, np.uint8), target=labels)
    monkeypatch.setattr(named, "fetch_openml", lambda *_, **__: fetched)
    data = load_data("mnist")
    assert (data.x_train.shape, data.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert (data.x_train.max(), data.y_test[:2].tolist()) == (1, [3, 5])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "fashion_mnist",
            {},
            "no data set 'fashion_mnist': did you mean 'fashion-mnist'.*digits, mnist, .*adult",
        ),
        ("nonsense", {}, "no data set 'nonsense': the names are digits, mnist"),
        ("no/such/file.csv", {"target": "y"}, "there is no file 'no/such/file.csv'"),
        ("digits", {"target": "y"}, "'digits' has its own target and test part"),
        ("digits", {"task": "regression"}, "'digits' is a classification set"),
        ("digits", {"test_fraction": -1.0}, "test_fraction=-1.0 is out of range"),
    ],
)
def test_faults(source: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source, **options)


def test_a_data_folder_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHOGEN_DATA", "/no/such/folder")
    with pytest.raises(DataError, match="MORPHOGEN_DATA='/no/such/folder' is no folder"):
        load_data("mnist")
