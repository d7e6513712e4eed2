"""Scikit-learn's answers to the same data: one multi-layer perceptron, a grid of twelve, gradient
boosting.
"""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor

from morphogen.data.dataset import Dataset
from morphogen.record import TableRow

# 12 configurations
GRID = {
    "hidden_layer_sizes": [(32,), (100,), (32, 32), (100, 100), (256,), (256, 256)],
    "alpha": [1e-4, 1e-2],
}


def baselines(dataset: Dataset, seed: int) -> Iterator[TableRow]:
    """One row each, in order of cost, as soon as it is known. Trained on the whole training part,
    images flattened.
    """
    regression = dataset.task == "regression"
    x, x_test = (part.reshape(len(part), -1) for part in (dataset.x_train, dataset.x_test))
    # in float64 until it is centred: far from 0, float32 has lost what is to be predicted
    whole = dataset.y_train.astype(np.float64) if regression else dataset.y_train
    mean, scale = (whole.mean(), whole.std() or 1.0) if regression else (0, 1)
    y = (whole - mean) / scale if regression else whole

    def score(model: Any) -> float | None:
        if not len(x_test):
            return None
        predicted = model.predict(x_test)
        if regression:
            return float(
                np.sqrt(
                    np.mean((predicted.astype(np.float64) * scale + mean - dataset.y_test) ** 2)
                )
            )
        return float(np.mean(predicted == dataset.y_test))

    mlp = (MLPRegressor if regression else MLPClassifier)(
        random_state=seed % 2**32, early_stopping=len(x) > 10_000
    )
    grid = GridSearchCV(mlp, GRID, cv=3)
    boosting = (HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier)(
        random_state=seed % 2**32
    )
    for name, model in (
        ("MLP(100)", mlp),
        ("gradient boosting", boosting),
        ("best of 12 MLPs", grid),
    ):
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        seconds = time.perf_counter() - began
        best = getattr(model, "best_estimator_", model)
        parameters = (
            sum(w.size for w in (*best.coefs_, *best.intercepts_))
            if hasattr(best, "coefs_")
            else None
        )
        note = str(model.best_params_) if hasattr(model, "best_params_") else "scikit-learn"
        yield TableRow(name, score(model), parameters, seconds, note)
