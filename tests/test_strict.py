"""Sets with strict rows: what touches a limit is not below it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import morphogen as mg
from morphogen import ShapeError
from morphogen.bounds.box import Box
from morphogen.formats.vnnlib import read_vnnlib
from morphogen.tracing.program import program
from morphogen.verification import input_split, relu_split
from morphogen.verification.unsafe import Unsafe, Verdict
from morphogen.verification.vnncomp import _unsafe


def relu(inputs: int) -> nn.Sequential:
    """y = relu(x_0) and relu(-x_0), whatever the other inputs are."""
    model = nn.Sequential(nn.Linear(inputs, 2), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
        model[0].weight[0, 0], model[0].weight[1, 0] = 1.0, -1.0
    return model


@pytest.mark.parametrize("inputs", [1, 20])  # boxes are cut, or signs
def test_what_must_be_below_a_limit_may_touch_it(inputs: int) -> None:
    model, strict = relu(inputs), torch.tensor([True])
    box = Box(-torch.ones(1, inputs).double(), torch.ones(1, inputs).double())

    def status(row: list[float], limit: float, strict: torch.Tensor | None) -> str:
        return mg.verify(
            model, box, Unsafe(torch.tensor([row]), torch.tensor([limit]), strict), 20
        ).status

    for row in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.3]):
        assert status(row, 0.0, strict) == "unsat"
        assert status(row, 0.0, None) == "sat"
        assert status(row, 1e-3, strict) == "sat"
        assert status(row, -1e-3, strict) == "unsat"
    touching = Unsafe(torch.eye(2), torch.tensor([0.0, 0.5]), torch.tensor([False, True]))
    assert mg.verify(model, box, touching).status == "sat"
    both = Unsafe(torch.eye(2), torch.tensor([0.5, 0.0]), torch.tensor([False, True]))
    assert mg.verify(model, box, both).status == "unsat"
    assert (
        mg.verify(model, box, [both, Unsafe(torch.eye(2), torch.tensor([0.5, 0.0]))]).status
        == "sat"
    )


def test_a_set_counts_what_touches_a_strict_limit_as_safe() -> None:
    y = torch.tensor([[0.5, 0.25], [0.5, 0.75], [0.0, 0.0]]).double()
    strict = Unsafe(torch.eye(2), torch.tensor([0.5, 0.5]), torch.tensor([True, False]))
    assert (strict.margin(y) <= 0).tolist() == [False, False, True]
    assert (Unsafe(torch.eye(2), torch.tensor([0.5, 0.5])).margin(y) <= 0).tolist() == [
        True,
        False,
        True,
    ]
    with pytest.raises(ShapeError, match="strict is"):
        Unsafe(torch.eye(2), torch.zeros(2), torch.tensor([True]))


def test_a_replayed_counterexample_of_a_strict_row_must_be_below_its_limit(tmp_path: Path) -> None:
    """The tolerance of a replay is for rows that may touch theirs."""
    told = {}
    for sign in ("<", "<="):
        (tmp_path / "p.vnnlib").write_text(
            f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (and (>= X_0 0) (<= X_0 1) "
            f"({sign} Y_0 1)))"
        )
        case = read_vnnlib(tmp_path / "p.vnnlib").case
        assert case is not None
        told[sign] = [_unsafe(case, 1, np.array([y])) for y in (1 - 1e-9, 1.0, 1 + 1e-7, 1 + 1e-5)]
    assert told == {"<": [True, False, False, False], "<=": [True, True, True, False]}


@pytest.mark.parametrize("margin", [1e-9, 0.05])
def test_a_witness_is_one_only_where_the_model_agrees(
    margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = relu(20)
    box = Box(-torch.ones(1, 20).double(), torch.ones(1, 20).double())
    witness = torch.zeros(20).double()
    witness[0] = 0.5 + margin
    found = Verdict("sat", -1.0, witness)
    monkeypatch.setattr(
        "morphogen.verification.verify.split_relus", lambda *given, **options: found
    )
    verdict = mg.verify(model, box, Unsafe(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])))
    assert (verdict.status, verdict.witness) == ("unknown", None)
    witness[0] = 0.5
    assert (
        mg.verify(model, box, Unsafe(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]))).status
        == "sat"
    )


@pytest.mark.parametrize("far", [1e-9, 5e-3])
def test_a_search_that_sees_no_witness_proves_nothing_that_is_wrong(
    far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsafe by little, and blind to it: the bounds alone must not say "unsat"."""
    unsafe = [Unsafe(torch.tensor([[1.0, 0.0]]), torch.tensor([far]))]
    monkeypatch.setattr(input_split, "attack", lambda net, *given, **options: (None, 1.0))
    monkeypatch.setattr(input_split, "nearest", lambda margin, box, share, steps: (None, 1.0))
    monkeypatch.setattr(input_split, "margin_of", lambda sets, y: torch.ones(len(y)))
    monkeypatch.setattr(relu_split._Search, "look", lambda *given: None)
    for inputs, search in ((1, input_split.split_inputs), (20, relu_split.split_relus)):
        box = Box(-torch.ones(1, inputs).double(), torch.ones(1, inputs).double())
        net = program(relu(inputs), box.lower.repeat(2, 1))
        assert search(net, unsafe, box, 0.5).status == "unknown"
        safe = [Unsafe(torch.tensor([[1.0, 0.0]]), torch.tensor([-1e-3]))]
        assert search(net, safe, box, 10.0).status == "unsat"
