"""The scikit-learn face."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from morphogen.data.preparation import numbers_of
from morphogen.fitting import estimator
from morphogen.fitting.encoding import encoder
from morphogen.fitting.estimator import MorphogenClassifier, MorphogenRegressor

warnings.filterwarnings("ignore", module="sklearn")


def expected_to_fail(estimator) -> dict[str, str]:
    """As for scikit-learn's own perceptrons, and what the loss has to read first."""
    repeated = "rows that are held out and batches depend on how many rows there are"
    return {"check_sample_weight_equivalence_on_dense_data": repeated}


@parametrize_with_checks(
    # without a teacher, which takes seconds each time and is asked in the tests below
    [
        MorphogenClassifier(random_state=0, distillation=False),
        MorphogenRegressor(random_state=0, distillation=False),
    ],
    expected_failed_checks=expected_to_fail,
)
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
    assert not any("morphogen" in type(m).__module__ for m in network.modules())
    with torch.no_grad():
        seen = network(torch.as_tensor(x, dtype=torch.float32))[:, 0].numpy()
    np.testing.assert_allclose(seen, model.predict(x), rtol=1e-2)
    assert not network.training


@pytest.mark.parametrize("rows", [50, 400, 2000])
def test_an_array_is_prepared_in_the_network_as_a_table_is_outside(rows: int) -> None:
    draw = np.random.default_rng(0)
    x = np.stack([draw.normal(size=rows), draw.gamma(0.3, size=rows), np.arange(rows) % 2], 1)
    prepare = numbers_of(x)
    frame = pd.DataFrame(x, columns=list(prepare.columns))
    with torch.no_grad():
        inside = encoder(prepare)(torch.as_tensor(x)).float()
    np.testing.assert_array_equal(inside, prepare(frame))


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


def frame(rows: int = 240) -> tuple[pd.DataFrame, np.ndarray]:
    draw = np.random.default_rng(0)
    town = draw.choice(["Ulm", "Bonn", "Rom"], rows)
    amount = draw.exponential(1000, rows)
    days = pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, rows), unit="D")
    table = pd.DataFrame(
        {
            "town": pd.Series(town).mask(draw.random(rows) < 0.1),
            "amount": [f"{value:,.2f}" for value in amount],
            "day": days,
            "size": pd.Series(draw.normal(size=rows)).mask(draw.random(rows) < 0.1),
        }
    )
    return table, np.where((town == "Ulm") | (amount > 1500), "yes", "no")


def test_a_table_with_gaps_text_and_dates() -> None:
    x, y = frame()
    model = MorphogenClassifier(random_state=0).fit(x, y)
    assert model.score(x, y) > 0.8
    assert model.prepare_ is not None
    with torch.no_grad():
        logits = model.to_torch()(torch.as_tensor(model.prepare_(x))).numpy()
    np.testing.assert_array_equal(model.classes_[logits.argmax(1)], model.predict(x))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(x.rename(columns={"town": "city"}))


def given(monkeypatch: pytest.MonkeyPatch) -> list:
    """The data sets that `fit` is given."""
    seen = []
    real = estimator.fit

    def spy(data, settings, **options):
        seen.append(data)
        return real(data, settings, **options)

    monkeypatch.setattr(estimator, "fit", spy)
    return seen


def test_what_is_given_of_the_rows_reaches_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = given(monkeypatch)
    x, y = frame()
    weight = np.arange(240) % 4 + 1.0
    groups = [f"user {i % 30}" for i in range(240)]
    model = MorphogenClassifier(seconds=2, random_state=0, class_weight="balanced")
    model.fit(x, y, weight, groups=groups)
    total = np.bincount(seen[0].y_train, weights=seen[0].weight)
    assert seen[0].weight.mean() == pytest.approx(1)
    assert seen[0].weight[y == "no"][0] / seen[0].weight[y == "no"][4] == pytest.approx(
        weight[y == "no"][0] / weight[y == "no"][4]
    )
    assert len(total) == 2
    assert len(np.unique(seen[0].groups)) == 30
    MorphogenRegressor(seconds=2, random_state=0).fit(
        x[:200], weight[:200], validation_data=(x[200:], weight[200:])
    )
    assert seen[1].held.tolist() == list(range(200, 240))
    assert len(seen[1].x_train) == 240


def test_what_does_not_fit_is_said() -> None:
    x, y = frame()
    with pytest.raises(ValueError, match="groups has 3 values; X has 240 rows"):
        MorphogenClassifier().fit(x, y, groups=[1, 2, 3])
    with pytest.raises(ValueError, match="validation_data has the class 'maybe'"):
        MorphogenClassifier().fit(x, y, validation_data=(x[:2], ["maybe", "no"]))
    with pytest.raises(ValueError, match="must not be negative"):
        MorphogenClassifier().fit(x, y, -np.ones(240))


def test_progress_is_shown_or_logged(
    capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = load_diabetes(return_X_y=True)
    with caplog.at_level("INFO", logger="morphogen"):
        MorphogenRegressor(seconds=1, random_state=0, logging=True).fit(x[:80], y[:80])
    assert "validation loss" in caplog.text
    assert capsys.readouterr().out == ""
    MorphogenRegressor(seconds=1, random_state=0, verbose=True).fit(x[:80], y[:80])
    assert capsys.readouterr().out != ""
