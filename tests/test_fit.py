"""The main job on small data: resumed equals uninterrupted, budget, time, faults."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from morphogen import DataError, Grow, MorphogenError, RunError
from morphogen.data.dataset import Dataset, from_arrays
from morphogen.data.load import load_data
from morphogen.edit.apply import count_parameters
from morphogen.fitting.checkpoint import CHECKPOINT
from morphogen.fitting.control import compressed, scratch
from morphogen.fitting.fit import fit, search
from morphogen.fitting.problem import Problem, Settings
from morphogen.fitting.recipe import Recipe, recipe_for
from morphogen.fitting.schedule import Phase, shrink_and_perturb
from morphogen.policies import POLICIES
from morphogen.policies.policy import Memory, Observation, Proposal
from morphogen.record import Layer, Report
from morphogen.training.train import predict
from problems import problem


def table(regression: bool = False, rows: int = 300) -> Dataset:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(rows, 6)).astype(np.float32)
    y = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2])
    y = (10 * y + 50).astype(np.float32) if regression else (y > 0).astype(np.int64) + (y > 1)
    cut = rows * 4 // 5
    return from_arrays(
        x[:cut], y[:cut], x[cut:], y[cut:], task="regression" if regression else None, name="toy"
    )


QUICK = Recipe(batch=32, rate=5e-3, decay=0.01, steps=20, anneal=0.5, epochs=4, width=4, rounds=8)

UNTAUGHT = Settings(distillation=False)


def equal(a: Report, b: Report) -> bool:
    """Everything but the seconds, which no two runs share."""
    strip = lambda r: replace(  # noqa: E731
        r,
        notes=(),
        environment={},
        rounds=tuple(replace(x, seconds=0, train_loss=repr(x.train_loss)) for x in r.rounds),
        table=tuple(replace(x, seconds=None) for x in r.table),
    )
    return strip(a) == strip(b)


class Killed(Exception):
    pass


class Killer:
    """A display that raises after some rounds, as a crash would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def round(self, r, time_left) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def change(self, c) -> None: ...
    def say(self, text) -> None: ...


@pytest.mark.parametrize("policy", POLICIES)
def test_resumed_equals_uninterrupted_bit_for_bit(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.fitting.search.CHECKPOINT_SECONDS", 0.0)
    settings = Settings(seed=3, policy=policy)
    whole = fit(table(), settings, recipe=QUICK)
    assert whole.ledger, "the test needs a run whose structure changes"
    for after in (1, 4, 9):
        folder = tmp_path / f"{after}"
        with pytest.raises(Killed):
            fit(table(), settings, recipe=QUICK, folder=folder, display=Killer(after))
        resumed = fit(
            table(), settings, recipe=QUICK, folder=folder, resume=(folder / CHECKPOINT).exists()
        )
        assert equal(resumed.report, whole.report)
        assert resumed.ledger == whole.ledger
        for a, b in zip(resumed.plain.parameters(), whole.plain.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("regression", [False, True])
def test_a_dag_grows_resumes_and_leaves_as_plain_layers(
    regression: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.fitting.search.CHECKPOINT_SECONDS", 0.0)
    data, settings = table(regression), Settings(wiring="dag")
    whole = fit(data, settings, recipe=QUICK)
    assert any(isinstance(edit, Grow) and edit.width == "dag" for edit in whole.ledger)
    with pytest.raises(Killed):
        fit(data, settings, recipe=QUICK, folder=tmp_path, display=Killer(6))
    resumed = fit(data, settings, recipe=QUICK, folder=tmp_path, resume=True)
    assert equal(resumed.report, whole.report)
    assert resumed.ledger == whole.ledger
    assert whole.report.rounds[-1].shape[0] == Layer("dag", "dag", whole.model.dag.nodes)
    assert whole.certificate.kind == "exact"
    assert scratch(whole, data).parameters == whole.report.table[0].parameters


def test_an_unknown_wiring_lists_the_known() -> None:
    with pytest.raises(RunError, match="wiring='ring': unknown; choose one of layers, dag"):
        fit(table(), Settings(wiring="ring"))
    with pytest.raises(
        RunError,
        match="policy=gradmax: cannot change a network of wiring=dag; choose one of trial",
    ):
        fit(table(), Settings(wiring="dag", policy="gradmax"))


@pytest.mark.parametrize(("shrink_and_perturb_share", "after"), [(0.0, 3), (0.5, 3), (0.5, 6)])
def test_images_resume_too(
    shrink_and_perturb_share: float, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.fitting.search.CHECKPOINT_SECONDS", 0.0)
    data, recipe = (
        load_data("digits"),
        replace(
            QUICK,
            shift=1,
            epochs=1,
            rounds=4,
            steps=10,
            granularity=8,
            width=8,
            shrink_and_perturb_share=shrink_and_perturb_share,
        ),
    )
    whole = fit(data, Settings(), recipe=recipe)
    with pytest.raises(Killed):
        fit(data, Settings(), recipe=recipe, folder=tmp_path, display=Killer(after))
    assert equal(
        fit(data, Settings(), recipe=recipe, folder=tmp_path, resume=True).report, whole.report
    )


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    a, b, c = (fit(table(), Settings(seed=s), recipe=QUICK) for s in (1, 1, 2))
    assert equal(a.report, b.report)
    assert not equal(a.report, c.report)


def test_it_learns_grows_and_reports() -> None:
    data = table(rows=1500)
    fitted = fit(data, recipe=replace(QUICK, rounds=25, epochs=25, width=8, penalty=0.05))
    found, rounds = fitted.report.table[0], fitted.report.rounds
    assert found.score > 0.7
    assert rounds[0].round == 0
    assert {r.phase for r in rounds} == {"grow", "anneal"}
    assert fitted.report.changes
    assert found.parameters == count_parameters(fitted.plain)
    assert fitted.certificate.kind == "exact"
    control = scratch(fitted, data)
    assert control.parameters == pytest.approx(found.parameters, rel=0.5)
    assert control.score > 0.6


def test_regression_leaves_in_the_targets_own_unit() -> None:
    data = table(regression=True)
    fitted = fit(data, recipe=replace(QUICK, epochs=30))
    out = predict(fitted.plain, torch.as_tensor(data.x_test))[:, 0].numpy()
    rmse = float(np.sqrt(np.mean((out - data.y_test) ** 2)))
    assert rmse == pytest.approx(fitted.report.table[0].score, rel=1e-4)
    assert rmse < 0.8 * data.y_test.std()
    assert fitted.report.metric == "RMSE"


def test_the_budget_is_kept() -> None:
    fitted = fit(table(), Settings(budget=150), recipe=replace(QUICK, rounds=20))
    assert all(r.parameters <= 150 for r in fitted.report.rounds)
    with pytest.raises(
        RunError, match=r"budget=5: the smallest network for this data has \d+ parameters"
    ):
        fit(table(), Settings(budget=5), recipe=QUICK)


def test_the_time_limit_is_kept() -> None:
    long = replace(QUICK, epochs=100_000, rounds=10_000)
    fitted = fit(table(), Settings(seconds=3), recipe=long)
    assert fitted.seconds < 10  # generous: it must end, not be punctual
    assert fitted.report.rounds[-1].phase == "anneal"


def test_nan_is_caught_said_and_overcome(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, calls = Problem.objective, []

    def sometimes(self, model, x, y, smoothing=0.0):
        calls.append(1)
        return objective(self, model, x, y, smoothing) * (float("nan") if len(calls) == 50 else 1)

    monkeypatch.setattr(Problem, "objective", sometimes)
    fitted = fit(table(), recipe=QUICK)
    note = fitted.report.notes[-1]
    assert (
        "the loss became nan in round 2: the last good state is back, the learning rate is halved"
        in note
    )
    assert all(torch.isfinite(p).all() for p in fitted.plain.parameters())


def test_a_loss_that_stays_nan_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Problem, "objective", lambda self, model, x, y, smoothing: model(x).sum() * float("nan")
    )
    with pytest.raises(
        MorphogenError, match="it stays so at 1/256 of the learning rate: check the data"
    ):
        fit(table(), recipe=QUICK)


@pytest.mark.parametrize("after", [2, 7, 10])
def test_a_run_stopped_by_hand_goes_on_bit_for_bit(after: int, tmp_path: Path) -> None:
    """It ends with the best network so far, and leaves a checkpoint of where it was."""
    whole = fit(table(), UNTAUGHT, recipe=QUICK)
    asked = iter(range(1000))
    stopped = search(
        table(), UNTAUGHT, recipe=QUICK, folder=tmp_path, stopping=lambda: next(asked) >= after
    )
    assert stopped.report.rounds[-1].round < whole.report.rounds[-1].round
    again = fit(table(), UNTAUGHT, recipe=QUICK, folder=tmp_path, resume=True)
    assert equal(again.report, whole.report)
    for ours, theirs in zip(again.plain.parameters(), whole.plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    fit(table(), Settings(seed=1), recipe=QUICK, folder=tmp_path)
    with pytest.raises(RunError, match="belongs to another run .its settings"):
        fit(table(), Settings(seed=2), recipe=QUICK, folder=tmp_path, resume=True)
    with pytest.raises(RunError, match="belongs to another run .its data"):
        fit(table(rows=250), Settings(seed=1), recipe=QUICK, folder=tmp_path, resume=True)


def test_one_row_is_refused() -> None:
    one = Dataset(
        "one",
        "regression",
        np.ones((1, 2), "f"),
        np.ones(1, "f"),
        np.ones((0, 2), "f"),
        np.ones(0, "f"),
        (),
    )
    with pytest.raises(DataError, match="1 sample in the training part"):
        fit(one)


def test_an_unknown_policy_lists_the_known() -> None:
    with pytest.raises(RunError, match="choose one of trial, prune-expand"):
        fit(table(), Settings(policy="guess"), recipe=QUICK)


def test_renewal_mixes_every_weight_but_the_depths_and_depends_on_the_seed_only() -> None:
    model, _ = problem("convnet")
    model.depth1.w.data.fill_(1.3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    half, again = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    shrink_and_perturb(half, 0.5, seed=3)
    torch.manual_seed(2)
    shrink_and_perturb(again, 0.5, seed=3)
    whole = copy.deepcopy(model)
    shrink_and_perturb(whole, 1.0, seed=3)
    for name, p in half.named_parameters():
        assert torch.equal(p, dict(again.named_parameters())[name])
        fresh = dict(whole.named_parameters())[name]
        if name.endswith(".w"):
            assert torch.equal(p, before[name])
        else:
            torch.testing.assert_close(p, (before[name] + fresh) / 2)


@pytest.mark.parametrize("regression", [False, True])
def test_a_compressed_result_is_the_same_function_smaller(regression: bool) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 3)).astype(np.float32)
    y = x[:, 0] * x[:, 1]
    y = 50 + 20 * y if regression else np.where(y > 0, "a", "b")
    dataset = from_arrays(x, y, name="made", task="regression" if regression else "classification")
    fitted = fit(dataset, Settings(seconds=2))
    with torch.no_grad():  # a unit that is never above 0
        first = next(layer for layer in fitted.plain if isinstance(layer, torch.nn.Linear))
        first.bias[0] = -1e3
    smaller = compressed(fitted, dataset)
    assert smaller.compression is not None
    assert smaller.compression.proved
    assert count_parameters(smaller.plain) < count_parameters(fitted.plain)
    rows = torch.as_tensor(dataset.x_train)
    torch.testing.assert_close(smaller.plain(rows), fitted.plain(rows), rtol=1e-4, atol=1e-3)
    found, same = smaller.report.table
    assert same.name == "the same, compressed"
    assert same.parameters == count_parameters(smaller.plain)
    if same.score is not None:
        assert abs(same.score) < 10 * abs(found.score) + 1


@dataclass(frozen=True)
class Twice:
    """As CONTRIBUTING says: settings of its own alone, `start` and `decide`."""

    units: int = 2

    def start(self) -> Memory:
        return {"left": 2}

    def decide(
        self, observation: Observation, memory: Memory, generator: torch.Generator
    ) -> tuple[list[Proposal], Memory, bool]:
        left = memory["left"]
        grow = [Proposal(Grow(name, self.units), "twice") for name in observation.sizes]
        return grow if left else [], {"left": left - 1}, left <= 0


def test_a_policy_needs_no_settings_that_a_recipe_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "twice", Twice)
    fitted = fit(table(), Settings(policy="twice"), recipe=QUICK)
    assert [edit for edit in fitted.ledger if isinstance(edit, Grow)] == [Grow("hidden", 2)] * 2


def test_labels_are_smoothed_in_the_first_half_of_annealing_alone() -> None:
    recipe = recipe_for(images=True, rows=1000)
    assert Phase().smoothing(10, recipe) == 0
    annealing = Phase(100, 200)
    assert [annealing.smoothing(step, recipe) for step in (100, 199, 200, 300)] == [
        recipe.smoothing,
        recipe.smoothing,
        0,
        0,
    ]
    assert Phase(100, 200).smoothing(150, recipe_for(images=False, rows=1000)) == 0
