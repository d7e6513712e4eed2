"""The scikit-learn face."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from morphogen.fitting.estimator import MorphogenClassifier, MorphogenRegressor

warnings.filterwarnings("ignore", module="sklearn")


@parametrize_with_checks([MorphogenClassifier(random_state=0), MorphogenRegressor(random_state=0)])
def test_scikit_learn_s_own_checks(estimator, check) -> None:
    check(estimator)


def test_classifier_in_a_pipeline_and_cross_validation() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    labels = np.array(["bad", "good"])[y]
    pipeline = make_pipeline(MinMaxScaler(), MorphogenClassifier(random_state=0))
    assert cross_val_score(pipeline, x, labels, cv=2).mean() > 0.93
    model = pipeline.fit(x, labels)[-1]
    assert model.classes_.tolist() == ["bad", "good"]
    assert model.structure_[-1].units == 2
    assert model.history_[-1].round == model.n_iter_
    np.testing.assert_allclose(pipeline.predict_proba(x).sum(1), 1)


def test_to_torch_takes_the_columns_as_given() -> None:
    x, y = load_diabetes(return_X_y=True)
    x = x * [1, 100, 1e4, 1, 1, 1, 1, 1, 1, 10] + 5
    model = MorphogenRegressor(random_state=0).fit(x, y)
    assert model.score(x, y) > 0.3
    network = model.to_torch()
    assert all(type(m).__module__.startswith("torch.nn") for m in network.modules())
    with torch.no_grad():
        seen = network(torch.as_tensor(x, dtype=torch.float32))[:, 0].numpy()
    np.testing.assert_allclose(seen, model.predict(x), rtol=1e-2)
    assert not network.training


def test_the_same_seed_gives_the_same_predictions() -> None:
    x, y = load_diabetes(return_X_y=True)
    a, b = (
        MorphogenRegressor(random_state=1, seconds=60).fit(x[:100], y[:100]).predict(x)
        for _ in range(2)
    )
    assert np.array_equal(a, b)


def test_an_unfitted_estimator_says_so() -> None:
    with pytest.raises(Exception, match="not fitted"):
        MorphogenClassifier().to_torch()
