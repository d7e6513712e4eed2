"""Properties and networks from files: what is read is what is written, verdicts are right, faults
are said in one line.
"""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import morphogen as mg
from morphogen import DataError, MorphogenError, ShapeError, Unsupported
from morphogen.bounds.box import Box
from morphogen.cli.app import app
from morphogen.deadline import Deadline, OutOfTime
from morphogen.formats.onnx import export_onnx
from morphogen.formats.onnx_reader import read_onnx
from morphogen.formats.vnnlib import parse_vnnlib, read_vnnlib
from morphogen.tracing.program import program
from morphogen.verification.input_split import split_inputs
from morphogen.verification.instances import run_instances
from morphogen.verification.relu_split import split_relus
from morphogen.verification.unsafe import Unsafe
from morphogen.verification.vnncomp import verify_file

HEAD = (
    "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 "
    "Real)\n(declare-const Y_1 Real)\n"
)
BOX = "(assert (and (>= X_0 -1) (<= X_0 1.0) (>= X_1 0) (<= X_1 2e0)))\n"


def test_a_property_is_a_disjunction_of_boxes_and_half_spaces() -> None:
    text = (
        HEAD
        + BOX
        + "; unsafe\n(assert (or (and (<= Y_0 Y_1) (>= Y_1 (+ 1 (* 2 Y_0)))) (>= (- Y_0 3) 0)))"
    )
    found = parse_vnnlib(text)
    assert (found.inputs, found.outputs) == (2, 2)
    first, second = found.clauses()
    assert (first.lower.tolist(), first.upper.tolist()) == ([-1, 0], [1, 2])
    assert (first.rows.tolist(), first.limits.tolist()) == ([[1, -1], [2, -1]], [0, -1])
    assert (second.rows.tolist(), second.limits.tolist()) == ([[-1, 0]], [-3])
    boxes = parse_vnnlib(
        HEAD + "(assert (or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 2) (<= X_0 "
        "3))))"
        "(assert (and (>= X_1 0) (<= X_1 0)))(assert (<= Y_0 0))"
    )
    assert [clause.lower.tolist() for clause in boxes.clauses()] == [[0, 0], [2, 0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + BOX + "(assert (<= Y_2 0))", "line 6, column 13: Y_2 is not declared"),
        (
            HEAD + BOX + "(assert (<= Y_0 nan))",
            "line 6, column 17: 'nan' is neither a number nor a variable",
        ),
        (
            HEAD + BOX + "(assert (<= Y_0 1.x))",
            "line 6, column 17: '1.x' is neither a number nor a variable",
        ),
        (HEAD + BOX + "(assert (<= Y_0 0)", "line 6, column 1: this '\\(' is never closed"),
        (HEAD + BOX + "(assert (!= Y_0 0))", "line 6, column 10: '!=' here; and, or, <= or >="),
        (HEAD + BOX + "(asert (<= Y_0 0))", "line 6, column 2: 'asert' here; declare-const"),
        (HEAD + BOX + ")", "line 6, column 1: '\\)' here; '\\(' was expected"),
        (HEAD + BOX + "(assert (<= X_0 Y_0))", "several inputs, or inputs and outputs"),
        (HEAD + BOX + "(assert (<= (* Y_0 Y_1) 0))", "a product of two variables"),
        (HEAD + "(assert (<= X_0 1))", "X_0 has no lower bound"),
        (HEAD + BOX + "(assert (<= X_1 -1))", "X_1 is asserted to be at least 0 and at most -1"),
        ("(declare-const X_1 Real)", "X_1 is declared, and X_0 is not"),
        ("", "declares 0 inputs and 0 outputs"),
    ],
)
def test_malformed_properties_are_said_with_their_place(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_vnnlib(text)


def small(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_of_small_networks_are_those_of_a_fine_grid(seed: int) -> None:
    model = small(seed)
    net, box = program(model, torch.zeros(2, 2)), Box(-torch.ones(1, 2), torch.ones(1, 2))
    axis = torch.linspace(-1, 1, 201, dtype=torch.float64)
    y = net(torch.cartesian_prod(axis, axis))
    rows = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    least = float((y @ rows.T).min())
    for limit, status in ((least - 0.01, "unsat"), (least + 1e-6, "sat")):
        found = split_inputs(
            net, [Unsafe(rows, torch.tensor([limit], dtype=torch.float64))], box, 60
        )
        assert found.status == status
        if found.witness is not None:
            assert float((net(found.witness[None]) @ rows.T)[0, 0]) <= limit
        found = split_relus(
            net, [Unsafe(rows, torch.tensor([limit - far]).double()) for far in (1.0, 0.0)], box, 60
        )
        assert found.status == status
        if found.witness is not None:
            assert float((net(found.witness[None]) @ rows.T)[0, 0]) <= limit
    assert (
        split_inputs(net, [Unsafe(rows, torch.tensor([least - 1e-4]).double())], box, 0.0).status
        == "unknown"
    )
    assert (
        split_relus(net, [Unsafe(rows, torch.tensor([least - 1e-4]).double())], box, 0.0).status
        == "unknown"
    )


def test_from_files_to_a_verdict_and_an_exit_code(tmp_path: Path) -> None:
    model = small(1)
    export_onnx(model, torch.randn(3, 2), tmp_path / "net.onnx")
    net = program(model, torch.zeros(2, 2))
    axis = torch.linspace(-1, 1, 101, dtype=torch.float64)
    y = net(torch.cartesian_prod(axis, axis + 1))[:, 0]
    for limit, status, code in (
        (float(y.max()) + 0.1, "unsat", 1),
        (float(y.max()) - 0.01, "sat", 0),
    ):
        (tmp_path / "p.vnnlib").write_text(HEAD + BOX + f"(assert (>= Y_0 {limit}))")
        found = verify_file(tmp_path / "net.onnx", tmp_path / "p.vnnlib")
        assert found.status == status
        result = CliRunner().invoke(
            app, ["verify", str(tmp_path / "net.onnx"), str(tmp_path / "p.vnnlib")]
        )
        assert (result.exit_code, result.stdout.split("\n")[0]) == (code, status)
        if status == "sat":
            session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
            assert session.run(None, {"input": found.witness[None]})[0][0, 0] >= limit - 1e-6
            assert result.stdout.split("\n")[1].startswith("((X_0 ")
            assert [f"(X_{i} {text})" in result.stdout for i, text in enumerate(found.written)] == [
                True,
                True,
            ]
    (tmp_path / "q.vnnlib").write_text(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (and (<= X_0 1) (>= X_0 0)))"
    )
    result = CliRunner().invoke(
        app, ["verify", str(tmp_path / "net.onnx"), str(tmp_path / "q.vnnlib")]
    )
    assert isinstance(result.exception, MorphogenError)
    assert "is over 1 inputs and 1 outputs" in str(result.exception)


def test_a_counterexample_lies_in_its_box_as_written_and_below_strict_limits(
    tmp_path: Path,
) -> None:
    export_onnx(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.randn(3, 2), tmp_path / "net.onnx")
    torch.manual_seed(0)
    for ends in (("0.7", "0.7000001"), ("-0.3", "-0.1"), ("1e-9", "0.2")):
        box = "".join(f"(assert (and (>= X_{i} {ends[0]}) (<= X_{i} {ends[1]})))" for i in range(2))
        for row in ("(<= Y_0 Y_0)", "(or (<= (* 2 Y_0) Y_1) (>= (* 2 Y_0) Y_1))"):
            (tmp_path / "p.vnnlib").write_text(HEAD + box + f"(assert {row})")
            found = verify_file(tmp_path / "net.onnx", tmp_path / "p.vnnlib")
            assert found.status == "sat"
            low, high = map(Fraction, ends)
            assert all(low <= Fraction(float(value)) <= high for value in found.witness)
            assert all(low <= Fraction(text) <= high for text in found.written)
    dead = nn.Sequential(nn.Linear(2, 2), nn.ReLU())  # its outputs are 0
    with torch.no_grad():
        dead[0].bias.fill_(-9.0)
    for sign, status in (("<", "unsat"), ("<=", "sat")):
        (tmp_path / "p.vnnlib").write_text(
            HEAD + BOX + f"(assert (and ({sign} Y_0 0) ({sign} Y_1 0.0)))"
        )
        export_onnx(dead, torch.randn(3, 2), tmp_path / "net.onnx")
        assert verify_file(tmp_path / "net.onnx", tmp_path / "p.vnnlib").status == status
    (tmp_path / "p.vnnlib").write_text(HEAD + BOX + "(assert (or (< 1 0) (< 0 0)))")
    assert verify_file(tmp_path / "net.onnx", tmp_path / "p.vnnlib").status == "unsat"


def test_a_property_is_read_while_there_is_time(tmp_path: Path) -> None:
    export_onnx(small(1), torch.randn(3, 2), tmp_path / "net.onnx")
    (tmp_path / "p.vnnlib").write_text(HEAD + BOX + "(assert (<= Y_0 0))")
    with pytest.raises(OutOfTime):
        read_vnnlib(tmp_path / "p.vnnlib", Deadline.after(0.0))
    assert verify_file(tmp_path / "net.onnx", tmp_path / "p.vnnlib", 0.0).status == "unknown"


class Cosine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cos()


def test_a_file_is_read_as_onnxruntime_runs_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = (
        nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1, stride=2),
            nn.BatchNorm2d(3),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 4),
            nn.Sigmoid(),
            nn.Linear(4, 2),
        ),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 2), nn.ELU()),
    )
    for model, batch in itertools.product(models, (1, 3)):
        x = torch.randn(batch, 1, 8, 8)
        export_onnx(model.eval(), x, tmp_path / "net.onnx")
        seen = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": x.numpy()})[
            0
        ]
        np.testing.assert_allclose(
            read_onnx(tmp_path / "net.onnx")(x).detach().numpy(), seen, atol=1e-5
        )
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as ONNX"):
        read_onnx(tmp_path / "no.onnx")
    export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), Cosine()), x, tmp_path / "odd.onnx")
    with pytest.raises(Unsupported, match="operator Cos"):
        read_onnx(tmp_path / "odd.onnx")


def test_both_rows_of_a_set_must_hold() -> None:
    """Unsafe where y0 <= a and y1 <= b: each alone can be, both cannot."""
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(20))
        model[0].bias.zero_()
        model[2].weight.zero_()
        model[2].weight[0, 0], model[2].weight[1, 0] = 1.0, -1.0  # y = (relu(x0), -relu(x0))
        model[2].bias.zero_()
    box = Box(-torch.ones(1, 20).double(), torch.ones(1, 20).double())
    rows = torch.eye(2).double()
    assert mg.verify(model, box, Unsafe(rows, torch.tensor([0.4, -0.6]).double())).status == "unsat"
    found = mg.verify(model, box, Unsafe(rows, torch.tensor([0.6, -0.5]).double()))
    assert found.status == "sat"
    assert 0.5 - 1e-6 <= float(found.witness[0]) <= 0.6 + 1e-6


def test_robust_accuracy_counts_what_is_proved_and_what_is_broken() -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 20)
    y = (x[:, :10].sum(1) > x[:, 10:].sum(1)).long()
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    found = [
        mg.robust_accuracy(model, x, y, radius, 0.0, 1.0, seconds=20) for radius in (0.0, 0.02, 0.3)
    ]
    assert [each.right for each in found] == [int((model(x).argmax(1) == y).sum())] * 3
    assert found[0].robust == found[0].right
    assert found[0].robust >= found[1].robust > found[2].robust
    assert all(each.robust + each.broken + each.unknown == each.right for each in found)
    assert found[1].unknown == found[2].unknown == 0
    assert mg.robust_accuracy(model, x, y, 0.02, 0.0, 1.0, seconds=0).robust <= found[1].robust


def test_a_listing_is_verified_once_and_gone_on_with(tmp_path: Path) -> None:
    export_onnx(small(1), torch.randn(3, 2), tmp_path / "net.onnx")
    for name, limit in (("far", 100), ("near", -100)):
        (tmp_path / f"{name}.vnnlib").write_text(HEAD + BOX + f"(assert (>= Y_0 {limit}))")
    (tmp_path / "bad.vnnlib").write_text("(")
    listing, out = tmp_path / "instances.csv", tmp_path / "results.csv"
    listing.write_text("net.onnx,far.vnnlib,20\nnet.onnx,bad.vnnlib,20\n")
    first = CliRunner().invoke(app, ["verify", "--instances", str(listing), "--out", str(out)])
    assert first.exit_code == 0
    listing.write_text(listing.read_text() + "net.onnx,near.vnnlib,20\n")
    results = run_instances(listing, out, jobs=2)
    found = {result.prop: result for result in results}  # in the order in which they come
    assert {name: result.status for name, result in found.items()} == {
        "far.vnnlib": "unsat",
        "bad.vnnlib": "error",
        "near.vnnlib": "sat",
    }
    assert "line 1, column 1" in found["bad.vnnlib"].said
    assert len(out.read_text().splitlines()) == 4
    whole = out.read_text()
    # in the last line, behind the header, in it, before it
    for cut in (len(whole) - 5, whole.index("\n") + 1, 9, 0):
        out.write_text(whole[:cut])
        results = run_instances(listing, out)
        assert sorted(result.status for result in results) == ["error", "sat", "unsat"]
        assert len(out.read_text().splitlines()) == 4
    out.write_text("something else\n")
    with pytest.raises(DataError, match="no table of results"):
        run_instances(listing, out)
    listing.write_text("net.onnx;far.vnnlib;20\n")
    with pytest.raises(DataError, match="network, property, seconds"):
        run_instances(listing, out)
    assert CliRunner().invoke(app, ["verify"]).exit_code != 0


def test_what_is_no_number_proves_nothing_and_odd_questions_are_refused() -> None:
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
    box = Box(-torch.ones(1, 20), torch.ones(1, 20))
    with pytest.raises(ShapeError, match="NaN"):
        Unsafe(torch.ones(1, 2), torch.tensor([float("nan")]))
    with pytest.raises(ShapeError, match="rows is"):
        Unsafe(torch.ones(2), torch.zeros(1))
    assert mg.verify(model, box, Unsafe(torch.zeros(0, 2), torch.zeros(0))).status == "sat"
    assert mg.verify(model, box, Unsafe(torch.ones(1, 2), torch.tensor([-1e6]))).status == "unsat"
    with pytest.raises(ShapeError, match="0 unsafe sets"):
        mg.verify(model, box, [])
    with pytest.raises(ShapeError, match="2 examples"):
        mg.verify(
            model,
            Box(-torch.ones(2, 20), torch.ones(2, 20)),
            Unsafe(torch.ones(1, 2), torch.zeros(1)),
        )
