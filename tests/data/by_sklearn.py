"""The slow obvious version of a table's preparation: one scikit-learn pipeline a column."""

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

from morphogen.data import apply_preparation
from morphogen.data.columns import Columns, min_frequency
from morphogen.data.preparation import CLIP, MAX_COLUMNS, edges_of


def pipeline(frame: pd.DataFrame, columns: Columns, bins: int) -> ColumnTransformer:
    """The unfitted transformer that `Preparation` must equal."""
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
    edges = edges_of(x[~np.isnan(x)], bins)
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
