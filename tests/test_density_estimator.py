"""`Density` on tables: levels and bins go there and back, densities add up, gaps are filled, bad
input is refused; and the search resizes by the engine.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from morphogen import DataError, Grow, RunError, Shrink, freeze, resize, trace, widths
from morphogen.cli.app import app
from morphogen.deadline import Deadline
from morphogen.density.conditional import fill
from morphogen.density.darn import Darn, DarnShape
from morphogen.density.estimator import Density
from morphogen.density.files import load, save
from morphogen.density.gradient_estimators import step_of
from morphogen.density.groups import Groups
from morphogen.density.learn import Training, optimizer_for
from morphogen.density.likelihood import exact
from morphogen.density.local import Local, Window
from morphogen.density.mixture import Mixture
from morphogen.density.run import describe, run
from morphogen.density.search import Step, change, search, width_of, with_layer
from morphogen.density.variables import UNKNOWN, as_frame, fit_variables
from morphogen.edit import checkpoint
from morphogen.random_state import random_kept
from morphogen.report.density import density_html, said_by_units
from test_density import MIXED, all_rows, chain, scrambled


def table(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    a = draw.normal(size=rows)
    town = draw.choice(["Aachen", "Bonn", "Celle"], rows, p=[0.5, 0.3, 0.2])
    return pd.DataFrame(
        {
            "a": a,
            "town": town,
            "b": 2 * a + 3 * (town == "Aachen") + 0.3 * draw.normal(size=rows),
            "kids": np.where(draw.random(rows) < 0.1, np.nan, draw.integers(0, 4, rows)),
            "flag": (a > 0).astype(int),
            "year": 2020,
            "big": draw.integers(0, 10_000, rows),
        }
    )


@pytest.fixture(scope="module")
def fitted() -> Density:
    return Density(rate=2e-3, patience=5, samples=50).fit(table())


# ---- variables


def test_levels_go_there_and_back() -> None:
    frame = table()
    variables = fit_variables(frame)
    levels = variables.levels(frame)
    assert (levels != UNKNOWN).all()
    assert (variables.levels_of(variables.bits(levels)) == levels).all()
    again = variables.frame(levels, np.random.default_rng(0))
    assert list(again.columns) == list(frame.columns)
    for name in ("town", "kids", "flag", "year"):
        pd.testing.assert_series_equal(
            again[name].astype(object), frame[name].astype(object), check_dtype=False
        )
    # of a bin it is another value of the same bin, and whole where all were
    assert (variables.levels(again) == levels).all()
    assert (again["big"] == again["big"].round()).all()


def test_a_bin_is_as_dense_as_it_is_narrow() -> None:
    """The density of a number integrates to one."""
    frame = pd.DataFrame({"x": np.random.default_rng(0).exponential(size=2000)})
    (column,) = fit_variables(frame).varying
    share = np.bincount(column.encode(frame["x"]), minlength=column.size) / len(frame)
    density = np.exp(np.log(share) - column.log_widths)
    widths_ = np.diff(column.edges)
    assert float((density * widths_).sum()) == pytest.approx(1)


def test_binary_columns_are_bits() -> None:
    x = chain(50).numpy()
    variables = fit_variables(as_frame(x))
    assert variables.groups.sizes == (1,) * 8
    assert (variables.bits(variables.levels(as_frame(x))) == x).all()


# ---- the estimator


def test_it_says_how_likely_rows_are(fitted: Density) -> None:
    rows = table(200, seed=1)
    usual = fitted.score_samples(rows)
    shuffled = rows.assign(b=np.random.default_rng(2).permutation(rows["b"]))
    assert usual.mean() > fitted.score_samples(shuffled).mean() + 1
    assert fitted.score(rows) == pytest.approx(usual.mean(), abs=0.05)
    assert np.allclose(fitted.anomaly(rows), -usual / np.log(2), atol=0.5)
    log_prob, error = fitted.score_samples(rows, return_error=True)
    assert log_prob.shape == error.shape == (200,)
    assert np.isfinite(log_prob).all()
    # what the columns cost is the whole, without what the widths of bins take off
    assert list(fitted.column_bits(rows).columns) == ["a", "town", "b", "kids", "flag", "big"]


def test_samples_look_like_rows(fitted: Density) -> None:
    rows = fitted.sample(500, random_state=1)
    assert list(rows.columns) == list(table().columns)
    assert (rows["year"] == 2020).all()
    assert set(rows["town"]) <= {"Aachen", "Bonn", "Celle", "(other)"}
    assert ((rows["a"] > 0) == rows["flag"]).mean() > 0.9
    pd.testing.assert_frame_equal(rows, fitted.sample(500, random_state=1))


def test_gaps_are_filled_by_what_the_row_says(fitted: Density) -> None:
    rows = table(100, seed=3)
    gaps = rows.copy()
    gaps.loc[::2, "flag"] = np.nan
    gaps.loc[1, "b"] = np.nan
    filled, chance = fitted.impute(gaps, return_uncertainty=True)
    assert filled.notna().all().all()
    assert (filled.loc[::2, "flag"] == rows.loc[::2, "flag"]).mean() > 0.9
    assert chance.loc[::2, "flag"].between(0.3, 1).all()
    assert chance["town"].isna().all()
    known = rows["kids"].notna()
    assert (filled.loc[known, "kids"] == rows.loc[known, "kids"]).all()


def test_a_gap_that_training_had_not_is_summed_over(fitted: Density) -> None:
    rows = table(20, seed=4)
    some = rows.assign(flag=np.nan)
    log_prob, error = fitted.score_samples(some, return_error=True)
    term, of_term = fitted.score_samples(rows, return_error=True)
    # the sum is at least one of its terms
    assert (log_prob + 4 * error >= term - 4 * of_term - 0.5).all()


def test_a_category_that_is_new_is_unlikely_and_no_error(fitted: Density) -> None:
    rows = table(5, seed=5)
    new = rows.assign(town="Ulm")
    assert (fitted.score_samples(new) < fitted.score_samples(rows)).all()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"a": [1.0]}), "n_samples=1"),
        (pd.DataFrame({"a": [1.0] * 20}), "one value only"),
        (pd.DataFrame({"a": [np.nan] * 20}), "no feature column"),
        (pd.DataFrame([[0, 1]] * 20, columns=["a", "a"]), "more than once"),
        (pd.DataFrame({"a": [np.inf, *range(40)]}), "infinite"),
        (np.zeros(20), "Expected 2D array"),
    ],
)
def test_bad_tables_are_refused(frame, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Density().fit(frame)


def test_bad_rows_are_refused(fitted: Density) -> None:
    rows = table(5)
    with pytest.raises(DataError, match="lacks the columns"):
        fitted.score_samples(rows.drop(columns="town"))
    with pytest.raises(DataError, match=r"'flag' has the value 2"):
        fitted.score_samples(rows.assign(flag=2))


def test_it_is_an_estimator(fitted: Density) -> None:
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    assert not hasattr(again, "model_")


def test_the_same_seed_finds_the_same() -> None:
    torch.manual_seed(1)
    rows = chain(60).numpy()
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        found.append(Density(rate=2e-3, patience=2, samples=20).fit(rows))
        assert torch.equal(torch.get_rng_state(), before)
    losses = [[(step.what, step.loss) for step in density.steps_] for density in found]
    assert losses[0] == losses[1]
    for ours, theirs in zip(*(density.model_.parameters() for density in found), strict=True):
        assert torch.equal(ours, theirs)


# ---- gaps, exactly


def test_gaps_follow_the_distribution() -> None:
    torch.manual_seed(1)
    shape = DarnShape((3, 2), 4, "made", visible_hidden=(6,), skips=True)
    model = scrambled(Darn(MIXED, shape))
    rows = all_rows(MIXED)
    log_prob = torch.as_tensor(exact(model, rows).log_prob)
    row = rows[7:8]
    fits = (rows[:, 0] == row[0, 0]) & (rows[:, 4] == row[0, 4])
    share = log_prob[fits].softmax(0)
    known = torch.tensor([[True, False, True, False, False]])
    (filled,) = fill(model, row, known, 20_000)
    assert torch.allclose(filled.means, share @ rows[fits], atol=0.05)
    assert filled.log_prob == pytest.approx(float(log_prob[fits].logsumexp(0)), abs=0.05)


# ---- the resize engine


@pytest.mark.parametrize("groups", [MIXED, Groups.of_bits(6)], ids=["mixed", "bits"])
def test_bits_leave_and_come_by_the_resize_engine(groups: Groups) -> None:
    torch.manual_seed(0)
    model = scrambled(Darn(groups, DarnShape((3, 4), 5, skips=True)))
    x = model.sample(8)
    before = copy.deepcopy(model)
    optimizer = optimizer_for(model, Training())
    step_of("half", model)(model, x).backward()
    optimizer.step()
    resize(model, [Shrink(width_of(0), (1,))], example=x, optimizers=[optimizer])
    assert model.units == (2, 4)
    live = {id(p) for p in model.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == live
    kept = [0, 2]
    weight = before.decoder(1).head.weight
    assert model.decoder(1).head.weight.shape == weight[kept][:, kept].shape
    step_of("half", model)(model, x).backward()
    optimizer.step()
    # probabilities still add up to one
    if groups is MIXED:
        assert float(np.exp(exact(model, all_rows(groups)).log_prob).sum()) == pytest.approx(1)


def picture() -> Darn:
    shape = DarnShape(
        (3,), 6, "local", decoder_hidden=0, local=(Local(4, 2, 1, 2),), window=Window(3, 4, 3, 2)
    )
    return Darn(Groups.of_bits(12), shape)


KINDS = {
    "categories": lambda: Darn(MIXED, DarnShape((3, 4), 5, skips=True)),
    "made": lambda: Darn(MIXED, DarnShape((3,), 5, "made", visible_hidden=(8,))),
    "nade": lambda: Darn(MIXED, DarnShape((3,), 0, "nade", visible_hidden=(8,))),
    "autoregressive": lambda: Darn(MIXED, DarnShape((3,), 5, encoder="autoregressive")),
    "local": picture,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resized_network_is_saved_loaded_frozen_and_undone(kind: str, tmp_path) -> None:
    """All that the library offers holds for every head."""
    with random_kept(0):
        model = KINDS[kind]().eval()
        x = model.sample(8)
        optimizer = optimizer_for(model, Training())
        step_of("half", model)(model, x).backward()
        optimizer.step()
        before = copy.deepcopy(model.state_dict())
        plain, _ = freeze(copy.deepcopy(model), x)
        assert torch.equal(plain(x), model(x))
        done = resize(model, [Grow(width_of(0), 2)], example=x, optimizers=[optimizer])
        assert model.units[0] == 5
        value = model(x)
        path = checkpoint.save(model, tmp_path / "c", optimizers=[optimizer])

        def build() -> tuple[Darn, torch.optim.Optimizer]:
            again = KINDS[kind]()
            return again, optimizer_for(again, Training())

        again, _ = checkpoint.load(path, build)
        assert again.units == model.units
        assert torch.equal(again.eval()(x), value)
        done.undo()
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_new_bits_say_next_to_nothing() -> None:
    torch.manual_seed(0)
    model = scrambled(Darn(MIXED, DarnShape((3,), 5)))
    x = all_rows(MIXED)
    before = exact(model, x).log_prob
    change(model, (Grow(width_of(0), 2),), x, seed=0)
    assert model.units == (5,)
    assert exact(model, x).log_prob == pytest.approx(before, abs=0.05)


def test_every_width_of_it_is_known() -> None:
    model = Darn(Groups.of_bits(6), DarnShape((3, 4), 5, skips=True)).eval()
    known = widths(trace(model, torch.zeros(4, 6)))
    free = {name for name, width in known.items() if width.fixed is None}
    assert {width_of(0), width_of(1)} <= free
    assert sum(width.size for name, width in known.items() if name in free) == 3 + 4 + 4 * 5


def test_a_search_finds_bits_where_rows_have_a_cause() -> None:
    """Two kinds of rows, each of independent bits: one bit says which."""
    torch.manual_seed(0)
    kind = (torch.rand(1200, 1) < 0.5).float()
    rows = (torch.rand(1200, 12) < 0.1 + 0.8 * kind).float()
    how = Training(rate=2e-3, patience=4, falls=1)
    found = search(rows[:1000], rows[1000:], Groups.of_bits(12), how)
    assert found.loss == min(step.loss for step in found.steps)
    ones = rows[1000:].sum(1)
    of_kind = [ones * np.log(p) + (12 - ones) * np.log(1 - p) for p in (0.1, 0.9)]
    truth = -float((torch.logaddexp(*of_kind) - np.log(2)).mean())
    assert found.loss < truth + 0.15
    assert any(step.bits for step in found.steps)


def test_a_layer_comes_above_without_a_change() -> None:
    torch.manual_seed(0)
    model = scrambled(Darn(MIXED, DarnShape((3,), 5)))
    x = all_rows(MIXED)
    above = with_layer(model.float(), 2, seed=0)
    assert above.units == (3, 2)
    before, after = (exact(one, x.float()).log_prob for one in (model, above))
    assert after == pytest.approx(before, abs=0.05)
    # and it grows as any does
    change(above, (Grow(width_of(1), 2), Shrink(width_of(0), (1,))), x.float(), seed=0)
    assert above.units == (2, 4)
    assert float(np.exp(exact(above, x.float()).log_prob).sum()) == pytest.approx(1, abs=1e-4)


class Left(Exception):
    pass


def test_a_search_that_was_stopped_ends_as_one_that_was_not(tmp_path) -> None:
    torch.manual_seed(0)
    kind = (torch.rand(300, 1) < 0.5).float()
    rows = (torch.rand(300, 8) < 0.1 + 0.8 * kind).float()
    how = Training(rate=3e-3, patience=2, falls=1, epochs=12)
    given = (rows[:200], rows[200:], Groups.of_bits(8), how)
    whole = search(*given)

    def leave(step: Step) -> None:
        raise Left

    for _ in range(3):  # stopped after each of the first trainings
        with pytest.raises(Left):
            search(*given, say=leave, kept=tmp_path)
        assert (tmp_path / "000").exists()
    ended = search(*given, kept=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(whole.steps)
    again = search(*given, kept=tmp_path)
    for one in (ended, again):
        assert one.loss == whole.loss
        assert [replace(step, seconds=0.0) for step in one.steps] == [
            replace(step, seconds=0.0) for step in whole.steps
        ]
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.model.parameters(), whole.model.parameters(), strict=True)
        )
    with pytest.raises(RunError, match="other rows or settings"):
        search(rows[1:201], *given[1:], kept=tmp_path)


def test_orders_and_weight_noise_are_kept_in_the_file(tmp_path) -> None:
    rows = table(80)
    density = Density(orders=2, weight_noise=True, seconds=0.3, samples=20).fit(rows)
    assert len(density.mixture_.models) == 2
    save(density, tmp_path / "d.safetensors")
    again = load(tmp_path / "d.safetensors")
    assert np.array_equal(again.score_samples(rows), density.score_samples(rows))
    assert again.sample(5, random_state=1).equals(density.sample(5, random_state=1))
    assert again.impute(rows.iloc[:5]).equals(density.impute(rows.iloc[:5]))


def test_units_are_said_in_words() -> None:
    assert "collapsed" in said_by_units([0.0, 0.001])
    assert said_by_units([0.5, 0.001]) == (
        "1 of 2 say something, 0.50 bits together; 1 say nothing and could leave"
    )


def kinds(rows: int = 120) -> pd.DataFrame:
    """A column of every kind."""
    draw = np.random.default_rng(1)
    day = pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 700, rows), unit="D")
    return pd.DataFrame(
        {
            "float": draw.normal(size=rows),
            "integer": draw.integers(0, 5, rows),
            "many": draw.integers(0, 10_000, rows),
            "gaps": pd.array(np.where(draw.random(rows) < 0.2, None, 3), dtype="Int64"),
            "flag": draw.random(rows) < 0.5,
            "wait": pd.to_timedelta(draw.integers(0, 9, rows), unit="min"),
            "day": day,
            "written": day.strftime("%d/%m/%Y"),
            "town": draw.choice(["A", "B"], rows),
        }
    )


def test_cells_come_back_as_they_were() -> None:
    frame = kinds()
    variables = fit_variables(frame)
    assert not variables.notes
    again = variables.frame(variables.levels(frame))
    for name in ("integer", "flag", "wait", "town", "many", "float", "day"):
        assert again[name].dtype.kind == frame[name].dtype.kind, name
    for name in ("integer", "flag", "wait", "town", "gaps"):
        assert again[name].tolist() == frame[name].tolist(), name
    # a day is within its bin
    assert (again["day"] - frame["day"]).abs().max() < pd.Timedelta("100D")
    read = pd.to_datetime(frame["written"], format="%d/%m/%Y")
    assert (again["written"] - read).abs().max() < pd.Timedelta("100D")
    assert set(variables.frame(variables.levels(frame[:9])).dtypes) <= {
        *again.dtypes,
        np.dtype("O"),
    }


def test_imputed_cells_have_their_kind() -> None:
    frame = kinds()
    density = Density(seconds=0.1, samples=20).fit(frame)
    rows = frame.iloc[:6].copy()
    rows["flag"] = rows["flag"].astype(object)
    rows.loc[rows.index[2], ["flag", "day", "town"]] = None
    full = density.impute(rows)
    assert full["flag"].dtype == bool
    assert full["day"].dtype.kind == "M"
    assert full.notna().drop(columns="gaps").all().all()
    assert density.sample(5)["flag"].dtype == bool


def test_what_cannot_be_read_is_said(fitted: Density) -> None:
    rows = table(5)
    odd = rows.assign(a=[*rows["a"].astype(object)[:4], "abc"], year=[2020, 2020, 2021, 2020, 2020])
    with pytest.warns(UserWarning, match="1 cells, such as 'abc', cannot be read as a number"):
        fitted.score_samples(odd)
    with pytest.warns(UserWarning, match="'2021', differ from 2020"):
        fitted.score_samples(odd)
    training = table(60)
    training["a"] = [*training["a"].astype(object)[:59], "abc"]
    assert any("'abc'" in note for note in fit_variables(training).notes)


def test_columns_of_several_levels_have_one_name() -> None:
    frame = kinds()[["float", "town"]]
    frame.columns = pd.MultiIndex.from_tuples([("x", "float"), ("x", "town")])
    density = Density(seconds=0.1, samples=20).fit(frame)
    assert list(density.sample(2).columns) == ["x float", "x town"]
    assert density.impute(frame[:2]).columns.equals(frame.columns)


@parametrize_with_checks([Density(seconds=0.01, samples=2)])
def test_scikit_learn_s_own_checks(estimator, check) -> None:
    check(estimator)


# ---- the command


def test_a_run_goes_on_where_it_was_left(tmp_path, monkeypatch) -> None:
    rows = table(120)
    rows.to_csv(tmp_path / "shop.csv", index=False)
    out = tmp_path / "run"

    def leave(step: Step) -> str:
        raise KeyboardInterrupt

    given = {"until": Deadline.after(60), "out": out, "quiet": True}
    with monkeypatch.context() as patched:
        patched.setattr("morphogen.density.run._line", leave)
        with pytest.raises(KeyboardInterrupt) as left:
            run(str(tmp_path / "shop.csv"), **given)
    assert left.value.kept
    with pytest.raises(RunError):  # the folder is not empty
        run(str(tmp_path / "shop.csv"), **given)
    density, _ = run(str(tmp_path / "shop.csv"), **given, resume=True)
    assert len(density.steps_) > 1
    assert not (out / "search").exists()
    with pytest.raises(RunError, match="done"):
        run(str(tmp_path / "shop.csv"), **given, resume=True)


def test_the_command_writes_a_density_that_can_be_loaded(tmp_path, capsys) -> None:
    rows = table(300)
    rows.to_csv(tmp_path / "shop.csv", index=False)
    command = ["fit", str(tmp_path / "shop.csv"), "--task", "density", "--time-limit", "60"]
    with pytest.raises(SystemExit) as end:
        app([*command, "--out", str(tmp_path / "run"), "-q"])
    assert end.value.code in (0, None)
    assert capsys.readouterr().out.strip() == str(tmp_path / "run")
    density = load(tmp_path / "run" / "density.safetensors")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert np.isfinite(density.score(rows))
    assert metrics["length"] < metrics["independent"]
    assert {name for name, *_ in metrics["columns"]} <= set(rows.columns)
    assert len(pd.read_csv(tmp_path / "run" / "samples.csv")) == 1000
    page = (tmp_path / "run" / "report.html").read_text()
    assert "A row costs" in page
    assert "town" in page


def test_a_saved_density_is_the_same(fitted: Density, tmp_path) -> None:
    save(fitted, tmp_path / "d.safetensors")
    again = load(tmp_path / "d.safetensors")
    assert again.get_params() == fitted.get_params()
    assert again.variables_ == fitted.variables_
    rows = table(30, seed=7)
    assert np.array_equal(again.score_samples(rows), fitted.score_samples(rows))


def test_a_grown_density_is_loaded_by_its_ledger(tmp_path) -> None:
    density = Density()
    x = chain(40).numpy()
    density.variables_ = fit_variables(as_frame(x))
    density.columns_ = tuple(f"x{k}" for k in range(8))
    density.steps_ = ()
    density.ledger_ = (Shrink(width_of(0), (1,)), Grow(width_of(0), 3))
    model = Darn(density.variables_.groups, DarnShape((3,), 5))
    change(model, density.ledger_, torch.as_tensor(x), seed=3)
    density.model_ = model.eval()
    density.mixture_ = Mixture.of(density.model_)
    save(density, tmp_path / "d.safetensors")
    again = load(tmp_path / "d.safetensors")
    assert again.model_.units == (5,)
    assert np.array_equal(again.score_samples(x), density.score_samples(x))


@pytest.mark.parametrize("options", [["--target", "a"], ["--budget", "100"], ["--no-control"]])
def test_options_that_a_density_does_not_know_are_refused(options, tmp_path, capsys) -> None:
    table(50).to_csv(tmp_path / "shop.csv", index=False)
    with pytest.raises(RunError, match=options[0]):
        app(
            ["fit", str(tmp_path / "shop.csv"), "--task", "density", *options],
            standalone_mode=False,
        )


# ---- what rows may be


def test_a_number_that_training_had_not_is_unlikely(fitted: Density) -> None:
    rows = table(3, seed=8)
    usual = fitted.score_samples(rows)
    far = fitted.score_samples(rows.assign(a=1e6))
    farther = fitted.score_samples(rows.assign(a=1e9))
    assert (farther < far).all()
    assert (far < usual - 5).all()
    assert (
        fitted.score_samples(rows.assign(kids=9)) < fitted.score_samples(rows.assign(kids=1))
    ).all()
    with pytest.raises(DataError, match="infinite"):
        fitted.score_samples(rows.assign(a=np.inf))


def test_values_that_hardly_repeat_are_no_levels() -> None:
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=30)})
    (column,) = fit_variables(frame).varying
    assert column.edges
    column.encode(pd.Series([0.123, -7.0]))


def test_a_level_is_found_in_another_precision() -> None:
    frame = pd.DataFrame({"x": np.tile([0.1, 0.2, 0.3], 20)})
    (column,) = fit_variables(frame).varying
    assert column.encode(frame["x"].astype(np.float32)).tolist() == [0, 1, 2] * 20


def test_an_index_and_names_stay(fitted: Density) -> None:
    rows = table(4, seed=9).set_index(pd.Index([100, 101, 102, 103]))
    gaps = rows.assign(flag=np.nan, year=np.nan)
    filled, chance = fitted.impute(gaps, return_uncertainty=True)
    assert filled.index.equals(rows.index)
    assert chance.index.equals(rows.index)
    assert filled.notna().all().all() or rows["kids"].isna().any()
    assert (filled["year"] == 2020).all()
    bits = fitted.column_bits(gaps)
    assert bits.index.equals(rows.index)
    assert bits["flag"].isna().all()


def test_small_units_have_a_page_of_finite_bars(fitted: Density) -> None:
    rows = table(200).assign(a=lambda frame: frame["a"] * 1e-6)
    density = Density(rate=2e-3, patience=2, samples=20).fit(rows)
    report = describe(density, rows, rows.head(50), "shop [/x]")
    assert all(0 <= cost <= 20 for _, cost, _ in report.columns)
    assert all(0 <= alone <= 20 for _, _, alone in report.columns)
    assert report.length < report.independent
    assert "shop [/x]" in density_html(report)


@pytest.mark.parametrize(
    "options", [{"valid_fraction": 1.0}, {"valid_fraction": 0}, {"samples": 0}]
)
def test_settings_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(options))):
        Density(**options).fit(table(50))
