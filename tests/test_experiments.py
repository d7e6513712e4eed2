"""Reproductions: their models are the layer, their smoke runs end, their pages say the verdicts."""

import copy
import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from typer.testing import CliRunner

from morphogen import LearnedDepth, MorphogenError
from morphogen.cli.app import app
from morphogen.edit.apply import apply_
from morphogen.edit.edit import Grow
from morphogen.edit.plan import plan
from morphogen.experiments import EXPERIMENTS
from morphogen.experiments.going_deeper.xor import SMOKE, Parities, published
from morphogen.experiments.gradmax import wide as gradmax_wide
from morphogen.experiments.growing import cifar as growing_cifar
from morphogen.experiments.growing import one_feature
from morphogen.experiments.linked import width as linked_width
from morphogen.experiments.linked.nets import LINKED
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.penalty import quadratic, scale_penalty
from morphogen.record import Claim, Curve, Reproduction, from_json, to_json
from morphogen.report.reproduction import markdown, panels, plot, write
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import widths
from morphogen.training.train import Batches, State


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("w", [0.6, 1.0, 2.7])
def test_the_batch_of_networks_is_the_layer(faithful: bool, w: float) -> None:
    torch.manual_seed(0)
    config = replace(SMOKE, dropout=0.0, faithful=faithful)
    batch = Parities([3, 8], config).double()
    batch.w.data[1] = w
    width = config.width

    def block(i):
        return nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width, momentum=0.01, eps=1e-3)
        )

    deep = LearnedDepth(block, w=w).double()
    deep.w.data.fill_(w)  # as it was before it was a float32
    for i, own in enumerate(deep.blocks):
        own[0].weight.data.copy_(batch.weight[i, 1])
        own[0].bias.data.copy_(batch.bias[i, 1, :, 0])
    bits, _ = batch.draw(50)
    bits = bits.double()
    out = batch(bits)[1]
    alone = (torch.relu(bits[1].T @ batch.read[1].T), batch.write[1, 0])
    expected = deep(alone[0]) @ alone[1]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    penalty = quadratic(deep, config.penalty) + scale_penalty(deep, config.scale_penalty)
    torch.testing.assert_close(batch.penalty()[1], penalty, rtol=1e-9, atol=0)
    (out.square().sum() + batch.penalty()[1]).backward()
    (expected.square().sum() + penalty).backward()
    torch.testing.assert_close(batch.w.grad[1], deep.w.grad, rtol=1e-9, atol=0)
    assert batch.w.grad[0] == 0
    for i, own in enumerate(deep.blocks):
        torch.testing.assert_close(
            batch.weight.grad[i, 1], own[0].weight.grad, rtol=1e-9, atol=1e-12
        )


def test_runs_are_kept_as_summaries_and_checkpoints(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app,
        [
            "reproduce",
            "linked-width",
            "--smoke",
            "--tensorboard",
            "--checkpoints",
            "--out",
            str(out),
        ],
    )
    assert result.exit_code == 0, result.output
    read = from_json(Reproduction, (out / "result.json").read_text())
    assert not read.files
    trace = next(
        trace
        for trace in read.traces
        if trace.run.startswith("LK-ReLU-0-") and trace.tag == "val_acc"
    )
    found = EventAccumulator(str(out / "summaries" / trace.run)).Reload().Scalars("val_acc")
    assert [event.step for event in found] == list(trace.steps)
    assert [event.value for event in found] == pytest.approx(trace.values)
    assert [event.wall_time for event in found] == list(trace.times)
    weights = load_file(out / "checkpoints" / "LK-ReLU-0-0.01-last.safetensors")
    network = linked_width.network(LINKED["LK-ReLU"], linked_width.TABLE.default, 10)
    assert set(weights) == set(network.state_dict())
    assert len(list((out / "checkpoints").iterdir())) == 2 * len({t.run for t in read.traces})


def test_without_tensorboard_the_run_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    result = CliRunner().invoke(
        app, ["reproduce", "linked-width", "--tensorboard", "--out", str(tmp_path / "out")]
    )
    assert isinstance(result.exception, MorphogenError)
    assert "pip install 'morphogen[tensorboard]'" in str(result.exception)
    assert not (tmp_path / "out" / "result.json").exists()


def test_the_label_is_the_parity_of_the_first_bits() -> None:
    bits, labels = Parities([0, 3], SMOKE).draw(100)
    assert torch.equal(labels[0], torch.zeros(100))
    assert torch.equal(labels[1], bits[1, :3].sum(0) % 2)


def test_published_depths_are_given_between_their_steps() -> None:
    assert published(8, 100_000) == 4.406
    assert published(0, 50) == 1.11
    assert 4.42 < published(8, 40_000) < 4.48


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("mode", [[], ["--faithful"]])
def test_a_smoke_run_writes_its_page(name: str, mode: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["reproduce", name, *mode, "--smoke", "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "claims met" in result.output
    read = from_json(Reproduction, (tmp_path / "out" / "result.json").read_text())
    assert read.name == name
    assert read.claims
    assert read.curves
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(panels(read))
    # an image's letters may spell anything
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)
    for claim in read.claims:
        assert f"| {claim.name} |" in (tmp_path / "out" / "report.md").read_text()


def test_tables_for_a_paper(tmp_path: Path) -> None:
    claims = (
        Claim(
            "LK-ReLU, 100 % & \u221a2 a_b\\{x}", 0.5, 0.25, None, 0.3, 0.01, 'the "log", table 2'
        ),
        Claim("plain", None, 1 / 3),
    )
    write(Reproduction("n", "title", "s", "default", {}, claims), tmp_path)
    rows = list(csv.DictReader((tmp_path / "claims.csv").read_text().splitlines()))
    assert [row["claim"] for row in rows] == [claim.name for claim in claims]
    assert float(rows[1]["measured"]) == 1 / 3
    assert rows[0]["source"] == claims[0].source
    table = (tmp_path / "claims.tex").read_text()
    assert (
        r"LK-ReLU, 100 \% \& $\surd$2 a\_b\textbackslash{}\{x\} & 0.5 & 0.25 $\pm$ 0.01 \\" in table
    )
    assert table.count(r"\\") == 3


def test_an_unknown_experiment_is_refused_with_the_list() -> None:
    result = CliRunner().invoke(app, ["reproduce", "going-up"])
    assert f"unknown; choose one of {', '.join(EXPERIMENTS)}" in str(result.exception)


def chained(threshold: float) -> tuple[one_feature.Chain, State, torch.Tensor]:
    """A network of the growing experiment that was trained for a step, with five features in its
    second convolution.
    """
    x, y = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    model = growing_cifar.network((4, 5, 4, 4, 10, 10), 10, False)
    state = State(model, torch.optim.Adam(model.parameters()))
    nn.functional.cross_entropy(model(x), y).backward()
    state.optimizer.step()
    layers = (*growing_cifar.GROWN, "dense3")
    first = dict(zip(layers, (4, 4, 4, 4, 10, 10), strict=False))
    judged, draw = Batches(x, y, 10), torch.Generator().manual_seed(0)
    return (
        one_feature.Chain(
            layers, widths(trace(model, x[:2])), first, judged, draw, 0.1, threshold, 1.0
        ),
        state,
        x,
    )


def test_a_refused_feature_leaves_no_trace() -> None:
    chain, state, _ = chained(threshold=0.0)
    for _ in range(30):
        before, moments = (
            copy.deepcopy(state.model.state_dict()),
            copy.deepcopy(state.optimizer.state_dict()["state"]),
        )
        kept = {key: count for key, count in chain.counts.items() if key.startswith("kept")}
        one_feature.stochastic(chain, state)
        if kept == {key: count for key, count in chain.counts.items() if key.startswith("kept")}:
            torch.testing.assert_close(state.model.state_dict(), before, rtol=0, atol=0)
            torch.testing.assert_close(
                state.optimizer.state_dict()["state"], moments, rtol=0, atol=0
            )
    assert {"refused more", "kept more", "at its smallest"} <= set(chain.counts)
    sizes = dict(zip(chain.layers, one_feature.sizes(state.model, chain.layers[:-1]), strict=False))
    assert all(sizes[layer] >= least for layer, least in chain.first.items())


def test_features_that_nothing_reads_leave_down_to_the_first_size() -> None:
    chain, state, x = chained(threshold=0.01)
    state.model.get_parameter("conv3.weight").data[:, [1, 2]] = 0
    state.model.get_parameter("conv4.weight").data[:, 0] = 0  # conv3 has its first size
    before = state.model(x)
    one_feature.prune(chain, state)
    one_feature.prune(chain, state)
    assert one_feature.sizes(state.model, chain.layers) == (4, 4, 4, 4, 10, 10, 10)
    assert chain.counts == {"pruned": 1}
    torch.testing.assert_close(state.model(x), before)


def test_twelve_growths_end_at_the_final_size() -> None:
    config = gradmax_wide.Config()
    model = gradmax_wide.network(config, config.share, 10)
    found = widths(trace(model, torch.rand(2, 3, 16, 16)))
    blocks = {
        f"{name}.conv1": b.conv1.out_channels
        for name, b in model.named_children()
        if isinstance(b, gradmax_wide.Block)
    }
    for _ in range(config.growths):
        apply_(
            model,
            plan(
                model,
                found,
                [Grow(name, round(config.share * size)) for name, size in blocks.items()],
            ),
        )
    final = gradmax_wide.network(config, 1.0, 10)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in final.state_dict().items()
    }


def test_a_verdict_is_a_matter_of_bounds() -> None:
    assert Claim("a", 1.0, 1.0, low=1.0).met
    assert not Claim("a", 1.0, 0.9, low=1.0).met
    assert not Claim("a", 1.0, float("nan"), low=1.0).met
    assert not Claim("a", 1.0, 3.0, low=1.0, high=2.0).met
    assert [Claim("a", 1.0, 3.0, low=low).verdict for low in (None, 1.0, 4.0)] == [
        "\u2013",
        "met",
        "missed",
    ]
    whole = Reproduction(
        "n",
        "T",
        "S",
        "faithful",
        {},
        (Claim("a|b", 1.0, 3.0, 1.0, 2.0, 0.5, "p. 3"),),
        (
            Curve("depth", "k = 1", (1.0, 2.0), (1.0, 1.5)),
            Curve("depth", "published 1", (1.0, 2.0), (1.0, 1.4)),
        ),
    )
    assert from_json(Reproduction, to_json(whole)) == whole
    assert "| a/b | 1 | 3 \u00b1 0.5 | 1 to 2 | missed | p. 3 |" in markdown(whole)
    lines = plot(whole, "depth").axes[0].lines
    assert lines[0].get_color() == lines[1].get_color()
    assert (lines[0].get_linestyle(), lines[1].get_linestyle()) == ("-", "--")


def test_rows_become_claims_and_claims_a_page() -> None:
    rows = (
        Row("loss", lambda run: run["loss"], 1.0, high=2.0, source="table 3"),
        Row("units", lambda run: run["units"]),
    )
    runs = [{"loss": 1.0, "units": 3}, {"loss": 2.0, "units": 5}]
    loss, units = claimed(rows, runs, "net: ")
    assert (loss.name, loss.target, loss.measured, loss.source) == (
        "net: loss",
        1.0,
        1.5,
        "table 3",
    )
    assert (loss.low, loss.high, loss.met) == (None, 2.0, True)
    assert (units.name, units.measured, units.verdict) == ("net: units", 4.0, "\u2013")
    assert claimed(rows, runs[:1])[0].spread is None
    paper = Paper("n", "T", "S", {"depth": ("x", "y")})
    made = page(paper, {"rate": 0.1}, 0.0, [loss], [], ["a note"], faithful=True)
    assert (made.mode, made.settings, made.notes) == ("faithful", {"rate": "0.1"}, ("a note",))
    assert made.claims == (loss,)
    assert made.axes == {"depth": ("x", "y")}
    assert made.seconds > 0


def test_a_learning_rate_that_diverges_is_not_chosen() -> None:
    from morphogen.experiments.dagnn.nets import chosen, data, networks

    scored = chosen(
        networks(16, 8, 8)["DAG"], data("curves", 0, 300), "SGD", (0.03, 1e30), 1, 100, 0
    )
    assert scored[0.03] > scored[1e30] == 0
