"""Fit a table's preparation with scikit-learn, then keep only its constants.

    number    x -> clip((x - mean) / scale, -4, 4)                                  the standardised
    value
              x -> clip((x - b[t-1]) / (b[t] - b[t-1]), 0, 1),  t = 1..bins         the
              piecewise-linear encoding
              x -> 1 where x was missing                                            if training saw
              a missing value
    category  one-hot, a missing cell being a level; rare and unknown levels share one column
    hashed    four hexadecimal digits of CRC-32, each one-hot

Source: Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep
Learning", 2022, eq. 1. Differs: the first and the last bin are constant outside the training range,
and z stands beside the bins.
"""

import inspect
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    OneHotEncoder,
    SplineTransformer,
    StandardScaler,
)

from morphogen import record
from morphogen.data import apply_preparation
from morphogen.data.columns import Columns, min_frequency, sort_columns
from morphogen.errors import DataError

CLIP = 4.0  # standard deviations
MAX_COLUMNS = 256  # one-hot columns of one category, "other" included


@dataclass(frozen=True)
class Number:
    """`median` replaces a missing value; `edges` are the bins' borders (none: no bins); `missing`:
    has an indicator.
    """

    name: str
    median: float
    mean: float
    scale: float
    clip: float
    edges: tuple[float, ...]
    missing: bool


@dataclass(frozen=True)
class Category:
    """`levels` have a column each; `other`: a last column stands for rare and unknown ones."""

    name: str
    levels: tuple[str, ...]
    other: bool


@dataclass(frozen=True)
class Hashed:
    """A text column with too many levels."""

    name: str


@dataclass(frozen=True)
class Preparation:
    """The constants that turn a table's columns into x; `preparation(frame)` applies them.

    `notes` says which columns were dropped or hashed and why.
    """

    numbers: tuple[Number, ...]
    categories: tuple[Category, ...]
    hashed: tuple[Hashed, ...]
    notes: tuple[str, ...] = ()

    def __call__(self, frame: pd.DataFrame) -> np.ndarray:
        """(rows, features) float32; further columns of the frame are ignored.

        DataError: a column is absent or holds text where training saw numbers.
        """
        try:
            return apply_preparation.prepare(frame, asdict(self))
        except ValueError as error:
            raise DataError(str(error)) from error

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that are read."""
        kinds = (self.numbers, self.categories, self.hashed)
        return tuple(column.name for kind in kinds for column in kind)

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each column of the result, such as "age", "age[25..31]", "age?", "sex=Male",
        "sex=(other)".
        """
        names: list[str] = []
        for number in self.numbers:
            names += [
                number.name,
                *(f"{number.name}[{low:g}..{high:g}]" for low, high in pairwise(number.edges)),
            ]
            names += [f"{number.name}?"] if number.missing else []
        for category in self.categories:
            names += [f"{category.name}={level}" for level in category.levels]
            names += [f"{category.name}=(other)"] if category.other else []
        return (*names, *(f"{text.name}#{i}" for text in self.hashed for i in range(64)))

    @property
    def bins(self) -> tuple[bool, ...]:
        """For each column of the result whether it is a bin of a number."""
        binned: list[bool] = []
        for number in self.numbers:
            binned += [False, *[True] * max(0, len(number.edges) - 1), *[False] * number.missing]
        return (*binned, *[False] * (len(self.names) - len(binned)))

    def to_json(self) -> str:
        """The text of `preparation.json`."""
        return record.to_json(self)

    @staticmethod
    def from_json(text: str) -> "Preparation":
        """The inverse of `to_json`. Raises `DataError` where the text is something else."""
        try:
            return record.from_json(Preparation, text)
        except ValueError as error:
            raise DataError(f"this is no preparation.json ({error})") from error


def source(preparation: Preparation) -> str:
    """Python source of `prepare(frame) -> x`, which needs numpy, pandas and `preparation.json`
    beside its file.
    """
    sizes = (
        f"{len(preparation.columns)} columns of the table become {len(preparation.names)} numbers"
    )
    return f"# {sizes}.\n{inspect.getsource(apply_preparation)}"


def fit_preparation(frame: pd.DataFrame, bins: int = 8) -> Preparation:
    """Fit on the training rows of the feature columns; `bins` is the number of pieces of a number,
    0 for none.

    DataError: a column without values, or no column that can be used.
    """
    if bins < 0:
        raise DataError(f"bins={bins} is negative: give 0 for none, or a number of pieces")
    columns = sort_columns(frame)
    return _constants(pipeline(frame, columns, bins).fit(frame), columns)


def pipeline(frame: pd.DataFrame, columns: Columns, bins: int) -> ColumnTransformer:
    """The unfitted scikit-learn transformer that `Preparation` must equal."""
    parts = [(name, _number(frame[name], bins)) for name in columns.numbers]
    parts += [(name, _category(len(frame))) for name in columns.categories]
    parts += [(name, FunctionTransformer(_hash)) for name in columns.hashed]
    # Numbered, since scikit-learn refuses names such as "a__b" and numpy cuts a zero character off
    # the end of one.
    at = {name: place for place, name in enumerate(frame.columns)}
    return ColumnTransformer(
        [(str(i), part, [at[name]]) for i, (name, part) in enumerate(parts)], sparse_threshold=0
    )


def _number(cells: pd.Series, bins: int) -> Pipeline:
    x = apply_preparation.floats(cells)
    edges = _edges(x[~np.isnan(x)], bins)
    value = [("z", Pipeline([("scale", StandardScaler()), ("clip", FunctionTransformer(_clip))]))]
    if edges.size:
        hats = SplineTransformer(degree=1, knots=edges[:, None], extrapolation="constant")
        value += [("bins", Pipeline([("hats", hats), ("ramps", FunctionTransformer(_ramps))]))]
    parts = [
        (
            "value",
            Pipeline(
                [("impute", SimpleImputer(strategy="median")), ("encode", FeatureUnion(value))]
            ),
        )
    ]
    if np.isnan(x).any():
        parts += [("missing", MissingIndicator(error_on_new=False))]
    return Pipeline([("floats", FunctionTransformer(_floats)), ("parts", FeatureUnion(parts))])


def _category(rows: int) -> Pipeline:
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        min_frequency=min_frequency(rows),
        max_categories=MAX_COLUMNS,
        sparse_output=False,
    )
    return Pipeline([("text", FunctionTransformer(_text)), ("encode", encoder)])


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """At most about bins + 1 borders, all of them values that occur, strictly increasing; empty for
    no bins.

    Where one value fills several quantiles (capital-gain: 92 % zeros) the places that this frees go
    to quantiles of the distinct values, so that the tail has bins too.
    """
    distinct = np.unique(values)
    if bins == 0 or distinct.size <= 2:
        return np.empty(0)
    if distinct.size <= bins + 1:
        return distinct
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1), method="inverted_cdf"))
    free = np.linspace(0, 1, bins + 3 - edges.size)[1:-1]
    return np.union1d(edges, np.quantile(distinct, free, method="inverted_cdf"))


def _floats(frame: pd.DataFrame) -> np.ndarray:
    return apply_preparation.floats(frame.iloc[:, 0])[:, None]


def _text(frame: pd.DataFrame) -> np.ndarray:
    return apply_preparation.text(frame.iloc[:, 0])[:, None]


def _hash(frame: pd.DataFrame) -> np.ndarray:
    return apply_preparation.hashed(frame.iloc[:, 0], {})


def _clip(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(z, -CLIP, CLIP))


def _ramps(hats: np.ndarray) -> np.ndarray:
    """The hats from the t-th on add up to the t-th bin's clip((x - b[t-1]) / (b[t] - b[t-1]), 0,
    1).
    """
    return np.asarray(hats[:, ::-1].cumsum(axis=1)[:, -2::-1])


def _constants(fitted: ColumnTransformer, columns: Columns) -> Preparation:
    names = (*columns.numbers, *columns.categories, *columns.hashed)
    part = dict(
        zip(names, (transformer for _, transformer, _ in fitted.transformers_), strict=False)
    )
    return Preparation(
        tuple(_number_constants(name, part[name]) for name in columns.numbers),
        tuple(_category_constants(name, part[name]) for name in columns.categories),
        tuple(Hashed(name) for name in columns.hashed),
        columns.notes,
    )


def _number_constants(name: str, fitted: Pipeline) -> Number:
    parts = dict(fitted["parts"].transformer_list)
    value = dict(parts["value"]["encode"].transformer_list)
    scaler = value["z"]["scale"]
    edges = value["bins"]["hats"].knots[:, 0] if "bins" in value else ()
    return Number(
        name,
        median=float(parts["value"]["impute"].statistics_[0]),
        mean=float(scaler.mean_[0]),
        scale=float(scaler.scale_[0]),
        clip=CLIP,
        edges=tuple(float(edge) for edge in edges),
        missing="missing" in parts,
    )


def _category_constants(name: str, fitted: Pipeline) -> Category:
    encoder = fitted["encode"]
    rare = encoder.infrequent_categories_[0]
    pooled = set() if rare is None else set(rare)
    return Category(
        name, tuple(str(c) for c in encoder.categories_[0] if c not in pooled), other=bool(pooled)
    )
