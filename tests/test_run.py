"""One run of the command: what stands beside the network, the time that all of it takes, Ctrl-C."""

import json
import math
import os
import signal
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from morphogen import RunError
from morphogen.data.dataset import Dataset, from_arrays
from morphogen.data.from_frame import from_frame
from morphogen.deadline import NEVER, Deadline
from morphogen.fitting import run as running
from morphogen.fitting.baselines import baselines
from morphogen.fitting.control import scratch
from morphogen.fitting.evaluation import evaluate
from morphogen.fitting.fit import Fitted, fit
from morphogen.fitting.interrupt import SAID, stopped_by_hand
from morphogen.fitting.metrics import LOSS, METRICS, loss_for, metric_for, scores
from morphogen.fitting.problem import Settings
from morphogen.fitting.recipe import Recipe
from morphogen.fitting.run import Options, run
from morphogen.folder import Left
from morphogen.record import Evaluation

QUICK = Recipe(batch=32, rate=5e-3, decay=0.01, steps=10, anneal=0.5, epochs=1, width=4, rounds=2)


def table(regression: bool = False, rows: int = 240) -> Dataset:
    """One column says all, one nothing, one is text."""
    draw = np.random.default_rng(0)
    signal_, noise = draw.normal(size=(2, rows))
    frame = pd.DataFrame(
        {"signal": signal_, "noise": noise, "town": draw.choice(["Ulm", "Bonn"], rows)}
    )
    frame["y"] = 50 + 10 * signal_ if regression else np.where(signal_ > 0, "yes", "no")
    return from_frame(frame, target="y")


@dataclass
class Clock:
    """Stands still until it has been asked so often; then a day goes by."""

    asks: float
    asked: int = 0

    def __call__(self) -> float:
        self.asked += 1
        return 0.0 if self.asked <= self.asks else 86_400.0

    def until(self) -> Deadline:
        return Deadline(60.0, self)


# Metrics -----------------------------------------------------------------------------------------


def test_metrics_of_answers_that_are_known_by_hand() -> None:
    y = np.array([0, 0, 0, 1])
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    known = {
        "log-loss": -np.log([0.9, 0.6, 0.3, 0.8]).mean(),
        "accuracy": 0.75,
        "balanced-accuracy": (2 / 3 + 1) / 2,
        "auc": 1.0,
        "average-precision": 1.0,
        "f1": (0.8 + 2 / 3) / 2,
        "mcc": (1 * 2 - 0 * 1) / math.sqrt((1 + 1) * (1 + 0) * (2 + 1) * (2 + 0)),
    }
    target, said = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0])
    numbers = {"rmse": math.sqrt(3), "mae": 1.0, "median-error": 0.0, "r2": 1 - 9 / 2}
    for name, metric in METRICS.items():
        value = metric.of(y, p) if name in known else metric.of(target, said)
        assert value == pytest.approx({**known, **numbers}[name]), name


def test_every_metric_says_which_way_is_better() -> None:
    y = np.array([0, 1, 0, 1, 1])
    good = np.stack([1 - 0.8 * y - 0.1, 0.8 * y + 0.1], 1)
    for metric in METRICS.values():
        if metric.task == "classification":
            better, worse = metric.of(y, good), metric.of(y, good[:, ::-1])
        else:
            better, worse = metric.of(y, y + 0.1), metric.of(y, -3.0 * y)
        assert better is not None
        assert worse is not None
        assert (better > worse) == metric.higher, metric.label


def test_one_class_in_a_part_and_a_certain_mistake() -> None:
    alone = np.zeros(3, int)
    p = np.array([[0.9, 0.1]] * 3)
    assert METRICS["auc"].of(alone, p) is None
    assert METRICS["balanced-accuracy"].of(alone, p) == 1.0
    certain = METRICS["log-loss"].of(np.array([1]), np.array([[1.0, 0.0]]))
    assert certain is not None
    assert math.isfinite(certain)
    loss, score = scores(METRICS["auc"], alone, p)
    assert (loss, score) == (pytest.approx(-math.log(0.9)), None)


def test_a_metric_of_another_task_is_refused_by_name(tmp_path: Path) -> None:
    assert metric_for(None, "regression") is METRICS["rmse"]
    assert {loss_for(task).label for task in LOSS} == {"log loss", "RMSE"}
    with pytest.raises(
        RunError, match="metric=r2: unknown for a classification; choose one of log"
    ):
        metric_for("r2", "classification")
    with pytest.raises(RunError, match="metric=luck"):
        run(table(), out=tmp_path / "x", metric="luck", distillation=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("regression", "metric"), [(False, "auc"), (True, "r2")])
def test_the_chosen_metric_stands_beside_the_loss(regression: bool, metric: str) -> None:
    data = table(regression)
    fitted = fit(data, Settings(metric=metric, distillation=False), recipe=QUICK)
    row = fitted.report.table[0]
    with torch.no_grad():
        out = fitted.plain(torch.as_tensor(data.x_test)).double()
    answers = out[:, 0].numpy() if regression else out.softmax(1).numpy()
    loss, score = scores(METRICS[metric], data.y_test, answers)
    assert (row.loss, row.score) == (pytest.approx(loss, rel=1e-4), pytest.approx(score, rel=1e-4))
    assert fitted.report.metric == METRICS[metric].label
    assert fitted.report.loss == ("RMSE" if regression else "log loss")


# What stands beside it ---------------------------------------------------------------------------


@pytest.mark.parametrize("regression", [False, True])
def test_a_linear_model_and_boosting_find_what_is_linear(regression: bool) -> None:
    rows = list(baselines(table(regression), metric_for(None, table(regression).task), 0))
    assert [row.name for row in rows] == ["linear model", "gradient boosting"]
    for row in rows:
        assert row.loss is not None
        assert row.loss < (4.0 if regression else 0.5)
    assert rows[0].parameters == len(table(regression).x_train[0]) + 1
    assert rows[1].parameters is None
    assert [row.note for row in rows] == ["", ""]


def test_baselines_stop_at_the_deadline_and_say_so() -> None:
    data = table()
    none = list(baselines(data, METRICS["auc"], 0, more=True, until=Clock(0).until()))
    assert len(none) == 4
    assert {row.note for row in none} == {"skipped: no time was left"}
    assert {row.score for row in none} == {None}
    linear, trees = baselines(data, METRICS["auc"], 0, until=Clock(2).until())
    assert linear.note == ""
    assert trees.note == "stopped after 10 of 100 iterations"
    assert trees.score is not None


def test_trees_in_steps_are_the_trees_of_one_go() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    data = table()
    _, trees = baselines(data, METRICS["log-loss"], 0)
    whole = HistGradientBoostingClassifier(random_state=0).fit(data.x_train, data.y_train)
    expected = METRICS["log-loss"].of(data.y_test, whole.predict_proba(data.x_test))
    assert trees.loss == pytest.approx(expected)


def test_the_control_is_cut_or_not_begun_where_time_is_short() -> None:
    data = table()
    fitted = fit(data, Settings(distillation=False), recipe=QUICK)
    assert "no time was left" in scratch(fitted, data, Clock(0).until()).note
    cut = scratch(fitted, data, Clock(1).until())
    assert cut.note == f"stopped after 10 of {fitted.report.rounds[-1].step} steps"
    by_hand = scratch(fitted, data, NEVER, lambda: True)
    assert by_hand.note.startswith("stopped after 10 of")
    assert scratch(fitted, data).note == ""


# Evaluation --------------------------------------------------------------------------------------


def evaluated(data: Dataset) -> tuple[Fitted, Evaluation]:
    fitted = fit(data, Settings(distillation=False), recipe=replace(QUICK, epochs=40))
    return fitted, evaluate(fitted, data)


def test_the_evaluation_of_classes_counts_right() -> None:
    data = table()
    fitted, seen = evaluated(data)
    with torch.no_grad():
        p = fitted.plain(torch.as_tensor(data.x_test)).softmax(1).numpy()
    said = p.argmax(1)
    assert (seen.part, seen.rows, seen.classes) == ("test", len(data.y_test), ("no", "yes"))
    for true in (0, 1):
        for predicted in (0, 1):
            count = int(((data.y_test == true) & (said == predicted)).sum())
            assert seen.confusion[true][predicted] == count
    assert sum(b.rows for b in seen.reliability) == seen.rows
    assert sum(b.rows * b.said for b in seen.reliability) / seen.rows == pytest.approx(
        p[:, 1].mean(), rel=1e-4
    )
    (roc,) = seen.roc
    assert roc.area == pytest.approx(METRICS["auc"].of(data.y_test, p))
    assert (roc.points[0], roc.points[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert seen.precision_recall[0].name == "yes"


@pytest.mark.parametrize("regression", [False, True])
def test_importance_finds_the_column_that_says_all(regression: bool) -> None:
    _, seen = evaluated(table(regression))
    rows = {row.column: row for row in seen.importance}
    assert set(rows) == {"signal", "noise", "town"}
    assert seen.importance[0].column == "signal"
    assert rows["signal"].low > 0
    for row in rows.values():
        assert row.low <= row.rise <= row.high
    assert rows["noise"].rise < rows["signal"].rise / 3
    assert bool(seen.residuals) == regression


def test_permuting_a_column_is_permuting_all_that_is_made_of_it() -> None:
    """The features of a column, by its name, are those that change with it."""
    from morphogen.fitting.evaluation import _groups

    data = table()
    assert data.prepare is not None
    frame = pd.DataFrame({"signal": [0.0], "noise": [0.0], "town": ["Ulm"]})
    groups = dict(_groups(data))
    assert sorted(column for columns in groups.values() for column in columns) == list(
        range(data.x_train.shape[1])
    )
    for name, other in (("signal", 1.0), ("noise", -2.0), ("town", "Bonn")):
        before, after = data.prepare(frame), data.prepare(frame.assign(**{name: [other]}))
        changed = np.flatnonzero(before != after)
        assert len(changed)
        assert set(changed) <= set(groups[name])


def test_many_classes_and_many_columns_are_brought_down_to_what_can_be_seen() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(900, 80)).astype(np.float32)
    y = np.clip((x[:, 0] * 5 + 15).astype(int), 0, 29)
    y = np.unique(y, return_inverse=True)[1]
    kept = np.isin(y, np.flatnonzero(np.bincount(y) > 10))
    data = from_arrays(x[kept], y[kept], x[kept][:300], y[kept][:300], "classification")
    _, seen = evaluated(data)
    assert len(seen.classes) == 12
    assert seen.classes[-1] == "(others)"
    assert sum(map(sum, seen.confusion)) == 300
    assert len(seen.importance) == 60
    assert seen.importance[0].column == "x[0]"
    assert max(len(line.points) for line in seen.roc) <= 102
    late = evaluate(fit(data, Settings(distillation=False), recipe=QUICK), data, Clock(3).until())
    assert len(late.importance) == 3


def test_without_a_test_part_the_validation_rows_are_judged() -> None:
    data = table()
    data = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    _, seen = evaluated(data)
    assert seen.part == "validation"
    assert seen.rows == sum(map(sum, seen.confusion)) > 10


# The whole run -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of a few rounds."""
    whole = running.search
    monkeypatch.setattr(
        running, "search", lambda *args, **options: whole(*args, recipe=QUICK, **options)
    )


@pytest.mark.usefixtures("quick")
def test_a_run_says_one_count_of_parameters_and_of_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted, report = run(table(), out=tmp_path / "run", metric="auc", distillation=False)
    said = capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    count = sum(p.numel() for p in fitted.plain.parameters())
    assert f"with {count:,} parameters" in " ".join(said.split())
    assert metrics["parameters"] == count
    assert f"in {report.rounds[-1].round} rounds" in " ".join(said.split())
    assert metrics["rounds"] == report.rounds[-1].round
    assert (metrics["metric"], metrics["loss"]) == ("AUC", "log loss")
    assert [row["name"] for row in metrics["table"]] == [
        "found by morphogen",
        "same shape from scratch",
        "linear model",
        "gradient boosting",
    ]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<svg class="still"') == 5
    for word in ("Confusion", "Reliability", "ROC", "Precision", "importance"):
        assert word in page


@pytest.mark.usefixtures("quick")
def test_quiet_prints_the_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        table(),
        Options(quiet=True, baselines=False, control=False),
        out=tmp_path / "run",
        distillation=False,
    )
    assert capsys.readouterr().out == f"{tmp_path / 'run'}\n"


@pytest.mark.usefixtures("quick")
def test_the_search_gets_what_is_left_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float | None] = []
    whole = running.search

    def noted(dataset: Dataset, settings: Settings, **options: object) -> Fitted:
        given.append(settings.seconds)
        return whole(dataset, settings, **options)

    monkeypatch.setattr(running, "search", noted)
    for left in (100.0, 2.0, -5.0):
        until = Deadline(left, lambda: 0.0)
        options = Options(quiet=True, baselines=False, control=False, until=until)
        run(table(), options, out=tmp_path / f"{left}", distillation=False)
    first, second, third = given
    assert first is not None
    assert 90 < first < 97
    assert second is not None
    assert 1.0 < second < 2.0
    assert third == 0.5


# Ctrl-C ------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_is_said_and_the_second_leaves() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    seen: list[bool] = []

    def pressed_twice() -> None:
        with stopped_by_hand(said.append) as stopping:
            seen.append(stopping())
            os.kill(os.getpid(), signal.SIGINT)
            seen.append(stopping())
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pressed_twice()
    assert seen == [False, True]
    assert said == [SAID]
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_changes() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stopped_by_hand(print) as stopping:
            seen.append(stopping())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def interrupting(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Ctrl-C so often in the second round of a search."""
    from morphogen.fitting.search import Search

    whole = Search._after_round

    def pressed(self: Search, state: object) -> None:
        if self.state.round == 2:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        whole(self, state)  # type: ignore[arg-type]

    monkeypatch.setattr(Search, "_after_round", pressed)


@pytest.mark.usefixtures("quick")
def test_ctrl_c_ends_the_search_and_the_network_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupting(monkeypatch, 1)
    fitted, report = run(table(), out=tmp_path / "run", distillation=False)
    assert report.rounds[-1].round == 2
    assert [row.name for row in report.table] == ["found by morphogen"]
    assert isinstance(fitted.plain, nn.Sequential)
    assert (tmp_path / "run" / "model.onnx").exists()
    assert SAID.split(":")[0] in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_ctrl_c_twice_leaves_and_says_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.fitting.search.CHECKPOINT_SECONDS", 0.0)
    interrupting(monkeypatch, 2)
    with pytest.raises(Left) as caught:
        run(table(), Options(quiet=True), out=tmp_path / "run", distillation=False)
    assert (caught.value.folder, caught.value.kept) == (tmp_path / "run", True)
    monkeypatch.undo()
    whole = running.search
    monkeypatch.setattr(
        running, "search", lambda *args, **options: whole(*args, recipe=QUICK, **options)
    )
    resumed, _ = run(
        table(), Options(resume=True, quiet=True), out=tmp_path / "run", distillation=False
    )
    straight = fit(table(), Settings(distillation=False), recipe=QUICK)
    for a, b in zip(resumed.plain.parameters(), straight.plain.parameters(), strict=True):
        assert torch.equal(a, b)
