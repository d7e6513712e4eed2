"""What a table's network learns from: folds of several models, weighed out of fold."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import Ridge
from torch import nn

from morphogen.data.apply_preparation import encoded
from morphogen.data.dataset import Dataset, from_arrays
from morphogen.data.preparation import fit_preparation
from morphogen.data.split import folds
from morphogen.fitting.between import between
from morphogen.fitting.checkpoint import load_lesson, save_lesson
from morphogen.fitting.distillation import distil
from morphogen.fitting.fit import fit
from morphogen.fitting.members import Members, Training, train_members
from morphogen.fitting.problem import Settings
from morphogen.fitting.scaling import Scaling
from morphogen.fitting.teacher import (
    KINDS,
    PENALTIES,
    Rows,
    cross_entropy,
    out_of_fold_loss,
    teach,
    weigh,
)
from morphogen.layers.feature_selection import is_selection


def wine() -> Dataset:
    x, y = load_wine(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return from_arrays(x[::2], y[::2], x[1::2], y[1::2])


def diabetes() -> Dataset:
    x, y = load_diabetes(return_X_y=True)
    return from_arrays(x[::2] * 20, y[::2], x[1::2] * 20, y[1::2], task="regression")


def rows_of(dataset: Dataset) -> Rows:
    regression = dataset.task == "regression"
    y = Scaling.of(dataset).standardised(dataset.y_train) if regression else dataset.y_train
    count = 1 if regression else len(dataset.classes)
    columns = np.arange(dataset.x_train.shape[1])
    return Rows(dataset.x_train, y, count, regression, columns, np.ones(len(y), np.float32))


def test_members_are_plain_networks_side_by_side() -> None:
    members = Members(3, (5, 7, 7, 2), 0.2, seed=0).eval()
    x = torch.randn(11, 5)
    out = members(x)
    assert out.shape == (3, 11, 2)
    for number in range(3):
        assert torch.allclose(members.member(number)(x), out[number], atol=1e-6)


def test_a_member_learns_as_if_it_were_alone() -> None:
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    halves = [(np.arange(30), np.arange(30, 60)), (np.arange(30, 60), np.arange(30))]
    how = Training(epochs=5, dropout=0.0)
    both = Members(2, (4, 8, 3), 0.0, seed=0)
    alone = Members(2, (4, 8, 3), 0.0, seed=0)
    for mine, theirs in zip(alone.parameters(), both.parameters(), strict=True):
        mine.data = theirs.data[:1].clone()
    train_members(both, x, y, torch.ones(60), halves, cross_entropy, how, seed=0)
    train_members(alone, x, y, torch.ones(60), halves[:1], cross_entropy, how, seed=0)
    assert torch.allclose(both(x)[0], alone(x)[0], atol=1e-5)


def test_a_member_keeps_its_best_epoch() -> None:
    x, y = torch.randn(40, 6), torch.randint(2, (40,))  # labels that say nothing: it overfits
    fold = [(np.arange(30), np.arange(30, 40))]
    few = Members(1, (6, 32, 2), 0.0, seed=0)
    many = Members(1, (6, 32, 2), 0.0, seed=0)
    how = {"rate": 0.02, "decay": 0.0, "dropout": 0.0, "patience": 1000}
    train_members(few, x, y, torch.ones(40), fold, cross_entropy, Training(epochs=1, **how), seed=0)
    train_members(
        many, x, y, torch.ones(40), fold, cross_entropy, Training(epochs=200, **how), seed=0
    )
    held = [float(cross_entropy(m(x[30:]), y[None, 30:]).mean()) for m in (few, many)]
    assert held[1] < 1.0  # 200 epochs end far above log 2 where the last one is kept


@pytest.mark.parametrize("make", [wine, diabetes])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_judged_by_models_that_have_not_seen_them(make, kind: str) -> None:
    dataset = make()
    rows = rows_of(dataset)
    part = KINDS[kind](rows, folds(dataset, 3, 0), 0, lambda: False)
    assert part.out_of_fold.shape == (len(rows.x), rows.outputs)
    assert np.isfinite(part.out_of_fold).all()
    seen = out_of_fold_loss(part.predict(rows.x), rows)
    assert seen < out_of_fold_loss(part.out_of_fold, rows)


def test_out_of_fold_is_what_scikit_learn_says() -> None:
    dataset = diabetes()
    rows = rows_of(dataset)
    parts = folds(dataset, 3, 0)
    said = KINDS["linear"](rows, parts, 0, lambda: False).out_of_fold
    inside, held = parts[1]
    ridges = [Ridge(c).fit(rows.x[inside], rows.y[inside]).predict(rows.x[held]) for c in PENALTIES]
    gaps = [np.abs(ridge.reshape(-1, 1) - said[held]).max() for ridge in ridges]
    assert min(gaps) < 1e-5


def test_weights_add_up_to_one_and_find_the_better() -> None:
    draw = np.random.default_rng(0)
    y = draw.integers(2, size=2000)
    rows = Rows(np.zeros((2000, 1), np.float32), y, 2, False, np.arange(1), np.ones(2000))
    good = np.full((2000, 2), 0.1)
    good[np.arange(2000), np.where(draw.random(2000) < 0.9, y, 1 - y)] = 0.9
    weights = weigh([good, np.full((2000, 2), 0.5)], rows)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > 0.9
    numbers = replace(rows, y=y[:, None].astype(float), outputs=1, regression=True)
    weights = weigh([y[:, None] + 0.01, draw.normal(size=(2000, 1))], numbers)
    assert weights == pytest.approx([1, 0], abs=0.02)


def test_the_teacher_is_at_least_as_good_as_its_parts_out_of_fold() -> None:
    dataset = diabetes()
    rows = rows_of(dataset)
    taught = teach(rows, folds(dataset, 3, 0), 0)
    best = min(out_of_fold_loss(part.out_of_fold, rows) for part in taught.parts.values())
    assert out_of_fold_loss(taught.out_of_fold, rows) <= best * 1.001


def test_weights_of_rows_count_as_copies_of_them() -> None:
    dataset = diabetes()
    rows = rows_of(dataset)
    weight = np.where(np.arange(len(rows.x)) % 3, 1, 4).astype(np.float32)
    heavy = replace(rows, weight=weight)
    inside, held = np.arange(150), np.arange(150, len(rows.x))
    said = KINDS["linear"](heavy, [(inside, held)], 0, lambda: False).out_of_fold
    copies = np.repeat(inside, weight[:150].astype(int))
    ridges = [Ridge(c).fit(rows.x[copies], rows.y[copies]).predict(rows.x[held]) for c in PENALTIES]
    assert min(np.abs(r.reshape(-1, 1) - said[held]).max() for r in ridges) < 1e-4


def test_time_that_is_over_leaves_one_kind() -> None:
    dataset = wine()
    taught = teach(rows_of(dataset), folds(dataset, 3, 0), 0, stopped=lambda: True)
    assert [*taught.weights] == ["linear"]


def test_rows_of_numbers_lie_between_their_parents() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    points = between(x, None, 500, 0)
    assert points.shape == (500, 4)
    assert (points >= x.min(0) - 1e-6).all()
    assert (points <= x.max(0) + 1e-6).all()
    assert np.isin(points[::2], x).mean() < 0.1  # of one parent twice
    assert np.isin(points[1::2], x).all()
    assert np.array_equal(points, between(x, None, 500, 0))


def mixed(rows: int = 400) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "size": draw.gamma(0.3, size=rows),  # a few are cut off
            "age": np.where(draw.random(rows) < 0.2, np.nan, draw.normal(size=rows)),
            "rooms": draw.integers(1, 5, rows).astype(float) + 0.5,
            "town": draw.choice(["Ulm", "Bonn", "Kiel"], rows),
            "when": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 900, rows), "D"),
            "text": draw.choice(["a long text", "another one", "no text at all"], rows),
        }
    )


def test_a_row_that_is_made_is_one_that_a_table_can_have() -> None:
    """Its numbers are in the bins of their values, it has one town, and a gap or none."""
    frame = mixed()
    prepare = fit_preparation(frame)
    x = prepare(frame)
    assert sum(size for size, _ in prepare.blocks) == x.shape[1] == len(prepare.names)
    points = between(x, prepare, 3000, 0)
    start = 0
    for size, number in prepare.blocks:
        block, theirs = points[:, start : start + size], x[:, start : start + size]
        known = {row.tobytes() for row in theirs}
        new = np.array([row.tobytes() not in known for row in block])
        if number is not None and number.name != "rooms":
            assert 0.2 < new.mean() <= 0.5
            assert len(number.edges) > 2
            value = block[new, 0].astype(np.float64) * number.scale + number.mean
            again = encoded(value, asdict(number))
            np.testing.assert_allclose(block[new], again, atol=2e-3)
        else:
            assert not new.any()
        start += size


def test_probabilities_are_probabilities() -> None:
    lesson = distil(wine(), 0)
    assert lesson is not None
    for said in (lesson.targets, lesson.y):
        assert said.min() >= 0
        assert said.sum(1) == pytest.approx(np.ones(len(said)), abs=1e-5)
    assert "%" in lesson.note


def test_images_few_rows_and_a_great_many_have_no_teacher(monkeypatch) -> None:
    images = from_arrays(np.zeros((40, 1, 8, 8)), np.arange(40) % 2)
    assert distil(images, 0) is None
    few = from_arrays(np.random.default_rng(0).normal(size=(10, 2)), np.arange(10) % 2)
    assert distil(few, 0) is None
    monkeypatch.setattr("morphogen.fitting.distillation.MOST_ROWS", 50)
    assert distil(wine(), 0) is None


def test_a_lesson_is_kept_for_the_run_that_goes_on(tmp_path) -> None:
    dataset = wine()
    lesson = distil(dataset, 0)
    assert lesson is not None
    save_lesson(lesson, tmp_path, dataset, Settings())
    again = load_lesson(tmp_path, dataset, Settings(seconds=3.0))
    assert again is not None
    assert np.array_equal(again.targets, lesson.targets)
    assert np.array_equal(again.x, lesson.x)
    assert again.weights == lesson.weights
    assert load_lesson(tmp_path, dataset, Settings(seed=1)) is None


def test_a_network_that_learns_from_a_teacher_is_plain_and_good() -> None:
    dataset = wine()
    fitted = fit(dataset, Settings())
    layers = [layer for layer in fitted.plain if not is_selection(layer)]
    assert {type(layer) for layer in layers} <= {nn.Linear, nn.ReLU}
    x = torch.as_tensor(dataset.x_test)
    wrong = (fitted.plain(x).argmax(1).numpy() != dataset.y_test).mean()
    assert wrong < 0.06


def test_a_teacher_may_be_declined() -> None:
    fitted = fit(wine(), Settings(distillation=False))
    assert fitted.distillation is None
