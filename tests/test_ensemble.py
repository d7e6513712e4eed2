"""Several networks in one: the mean is theirs, the exported one is the live one, a run goes on."""

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from morphogen import RunError
from morphogen.edit.apply import count_parameters
from morphogen.fitting.fit import Fitted, fit
from morphogen.fitting.problem import Settings
from morphogen.fitting.run import Options, run
from morphogen.formats.source import source
from morphogen.layers.ensemble import Ensemble
from test_fit import QUICK, Killed, Killer, table

THREE = Settings(members=3, distillation=False)


@pytest.fixture(scope="module", params=[False, True], ids=["classes", "numbers"])
def fitted(request: pytest.FixtureRequest) -> Fitted:
    return fit(table(request.param), THREE, recipe=QUICK)


def outputs(fitted: Fitted, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return fitted.plain(x)


def test_it_says_the_mean_of_its_members(fitted: Fitted) -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    each = torch.stack([outputs(member, x) for member in fitted.members])
    got = outputs(fitted, x)
    classes = fitted.report.task == "classification"
    wanted = each.softmax(-1).mean(0) if classes else each.mean(0)
    torch.testing.assert_close(got.softmax(-1) if classes else got, wanted)
    assert fitted.members[0].settings.seed != fitted.members[1].settings.seed
    assert len({repr(member.report.result) for member in fitted.members}) == 3


def test_the_first_member_is_what_one_network_would_be(fitted: Fitted) -> None:
    regression = fitted.report.task == "regression"
    alone = fit(table(regression), Settings(distillation=False), recipe=QUICK)
    for ours, theirs in zip(
        fitted.members[0].plain.parameters(), alone.plain.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_its_row_counts_and_scores_all_of_it(fitted: Fitted) -> None:
    row, first = fitted.report.table[:2]
    assert row.parameters == sum(count_parameters(member.plain) for member in fitted.members)
    assert first.parameters == count_parameters(fitted.members[0].plain)
    data = table(fitted.report.task == "regression")
    out = outputs(fitted, torch.as_tensor(data.x_test)).double()
    y = torch.as_tensor(data.y_test)
    assert row.loss is not None
    if fitted.report.task == "classification":
        assert row.loss == pytest.approx(float(nn.functional.cross_entropy(out, y)), rel=1e-5)
    else:
        assert row.loss == pytest.approx(float((out[:, 0] - y).square().mean().sqrt()), rel=1e-4)


@pytest.mark.parametrize("after", [3, 12])
def test_a_run_that_was_cut_goes_on_bit_for_bit(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first member, and in a later one."""
    monkeypatch.setattr("morphogen.fitting.search.CHECKPOINT_SECONDS", 0.0)
    whole = fit(table(), THREE, recipe=QUICK)
    with pytest.raises(Killed):
        fit(table(), THREE, recipe=QUICK, folder=tmp_path, display=Killer(after))
    again = fit(table(), THREE, recipe=QUICK, folder=tmp_path, resume=True)
    for ours, theirs in zip(again.plain.parameters(), whole.plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_members_are_added_to_a_finished_run(tmp_path: Path) -> None:
    one = fit(table(), Settings(distillation=False), recipe=QUICK, folder=tmp_path)
    more = fit(table(), THREE, recipe=QUICK, folder=tmp_path, resume=True)
    assert len(more.members) == 3
    for ours, theirs in zip(
        more.members[0].plain.parameters(), one.plain.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_files_are_the_network(tmp_path: Path) -> None:
    data = table()
    fitted, report = run(
        data,
        Options(quiet=True, control=False, baselines=False),
        out=tmp_path / "run",
        members=2,
        distillation=False,
        seconds=4.0,
    )
    x = torch.as_tensor(data.x_test)
    wanted = outputs(fitted, x)
    room = {"__file__": str(tmp_path / "run" / "model.py"), "__name__": "page"}
    exec((tmp_path / "run" / "model.py").read_text(), room)
    torch.testing.assert_close(room["load"]()(x), wanted)
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: data.x_test})
    torch.testing.assert_close(torch.as_tensor(got), wanted, rtol=1e-4, atol=1e-5)
    assert report.table[0].name == "the mean of 2 found by morphogen"


def test_a_page_of_deep_members_is_the_ensemble() -> None:
    members = [nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2)).double() for n in (2, 5)]
    plain = nn.Sequential(Ensemble(members, probabilities=True))
    room: dict[str, object] = {"__file__": "model.py", "__name__": "page"}
    exec(source(plain, title="t"), room)
    net = room["Net"]()  # type: ignore[operator]
    net.layers.load_state_dict(plain.state_dict())
    x = torch.randn(7, 3, dtype=torch.float64)
    assert torch.equal(net(x), plain(x))
    assert math.isclose(float(plain(x).detach().exp().sum(1)[0]), 1.0)


def test_an_ensemble_of_none_is_refused() -> None:
    with pytest.raises(RunError, match="members=0"):
        fit(table(), Settings(members=0), recipe=QUICK)


def test_an_ensemble_is_not_compressed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="members=2"):
        run(table(), Options(compress=True, quiet=True), out=tmp_path / "run", members=2)


def test_each_member_learns_from_folds_of_its_own(tmp_path: Path) -> None:
    taught = fit(table(), Settings(members=2), recipe=QUICK, folder=tmp_path)
    first, second = (member.distillation for member in taught.members)
    assert first is not None
    assert second is not None
    assert not np.array_equal(first.targets, second.targets)
    again = fit(table(), Settings(members=2), recipe=QUICK, folder=tmp_path, resume=True)
    for member, before in zip(again.members, taught.members, strict=True):
        lesson, kept = member.distillation, before.distillation
        assert lesson is not None
        assert kept is not None
        assert np.array_equal(lesson.y, kept.y)
    for ours, theirs in zip(again.plain.parameters(), taught.plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
