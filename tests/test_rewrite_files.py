"""The commands that rewrite networks in files: what they write is what they read, smaller or
shallower, with a certificate.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from leaks import leaks
from morphogen import DataError, Unsupported
from morphogen.cli.app import app, main
from morphogen.cli.networks import read_domain
from morphogen.formats.modules import modules
from morphogen.formats.network_files import read_network
from morphogen.formats.onnx import export_onnx
from morphogen.tracing.program import program


class Odd(nn.Module):
    """Beside layers, sums, constants and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.next = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1, bias=False),
        )
        self.out = nn.Linear(20, 3)
        self.register_buffer("shift", torch.rand(1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x - self.shift)))
        x = nn.functional.max_pool2d(torch.relu(x + self.next(x)), 2)
        return self.out(torch.cat([x.flatten(1), x.mean((2, 3))], 1))


MODELS = {
    "chain": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 9), nn.LeakyReLU(0.2), nn.Linear(9, 2)),
        (2, 2),
    ),
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(2, 1, 1),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 2),
        ),
        (2, 4, 4),
    ),
    "odd": (Odd, (1, 4, 4)),
}


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build()
    model(torch.randn(20, *shape))  # so that norms have seen something
    return model.eval().requires_grad_(False), shape


@pytest.mark.parametrize("name", MODELS)
def test_operations_become_modules_again(name: str) -> None:
    model, shape = built(name)
    again = modules(program(model, torch.zeros(2, *shape)))
    x = torch.randn(7, *shape)
    torch.testing.assert_close(again(x.double()), model.double()(x.double()), rtol=0, atol=1e-12)
    assert (type(again) is nn.Sequential) == (name != "odd")
    kinds = [
        type(m) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.BatchNorm2d))
    ]
    assert [
        type(m) for m in again.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.BatchNorm2d))
    ] == kinds


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_file_is_compressed(name: str, ending: str, tmp_path: Path) -> None:
    model, shape = built(name)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    layers[0].weight[1] = 0.0
    layers[0].bias[2] -= 50.0
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.zero_()
        norm.bias[1:3] = -1.0
    source, out = tmp_path / f"net.{ending}", tmp_path / f"out.{ending}"
    x = torch.rand(5, *shape)
    if ending == "onnx":
        export_onnx(model, x, source)
    else:
        batch = torch.export.Dim("batch", min=1)
        torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: batch},)), source)
    result = CliRunner().invoke(app, ["compress", str(source), "--out", str(out), "--steps"])
    assert result.exit_code == 0, result.output
    again = read_network(out)
    small, shape_ = again.model, again.shape
    assert shape_ == shape
    x = torch.rand(200, *shape).double()
    torch.testing.assert_close(small(x), model.double()(x), rtol=1e-5, atol=1e-5)
    told = json.loads((tmp_path / f"out.{ending}.certificate.json").read_text())
    assert (told["kind"], told["proved"]) == ("exact", True)
    assert told["file"]["max_error"] < 1e-4
    source.unlink()
    assert leaks(tmp_path) == []
    if name != "odd":  # its units are added to
        assert told["steps"]
        assert sum(p.numel() for p in small.parameters()) < sum(
            p.numel() for p in model.parameters()
        )


def test_a_sum_of_a_value_with_itself_is_no_constant() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("row", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x + x) @ self.row

    model, x = Twice().double(), torch.rand(5, 4).double()
    torch.testing.assert_close(modules(program(model, torch.zeros(2, 4)))(x), model(x))


def test_a_certificate_that_fails_leaves_no_file(tmp_path: Path) -> None:
    model, _ = built("chain")
    export_onnx(model, torch.rand(5, 2, 2), tmp_path / "net.onnx")
    out = tmp_path / "small.onnx"
    result = CliRunner().invoke(
        app, ["compress", str(tmp_path / "net.onnx"), "--out", str(out), "--tolerance", "-1"]
    )
    assert result.exit_code == 1
    assert not out.exists()
    assert "no file was written" in result.output


@pytest.mark.parametrize("extra", [[], ["--relus"], ["--form", "max-min"]])
def test_a_file_becomes_shallow(extra: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    export_onnx(model, torch.rand(5, 2), tmp_path / "net.onnx")
    out = tmp_path / "shallow.onnx"
    result = CliRunner().invoke(
        app, ["shallow", str(tmp_path / "net.onnx"), "--domain", "-1,1", "--out", str(out), *extra]
    )
    assert result.exit_code == 0, result.output
    assert leaks(tmp_path) == []
    x = 2 * np.random.default_rng(0).random((300, 2)) - 1
    (seen,) = onnxruntime.InferenceSession(out).run(None, {"input": x})
    with torch.no_grad():
        np.testing.assert_allclose(seen, model.double()(torch.tensor(x)).numpy(), atol=1e-6)


def test_regions_of_a_file_are_counted_and_drawn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    export_onnx(model, torch.rand(5, 3), tmp_path / "net.onnx")
    (tmp_path / "points.csv").write_text("0,0,0\n1,0,0.5\n0,1,0\n")
    run = ["regions", str(tmp_path / "net.onnx"), "--domain", "-2,2"]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.output
    assert "activation patterns" in result.output
    drawn = tmp_path / "plane.png"
    result = CliRunner().invoke(
        app, [*run, "--through", str(tmp_path / "points.csv"), "--picture", str(drawn)]
    )
    assert result.exit_code == 0, result.output
    assert drawn.stat().st_size > 1000
    result = CliRunner().invoke(app, [*run, "--max-cells", "2"])
    assert result.exit_code == 3
    assert "at least 2" in result.output


def test_a_domain_is_two_numbers_or_a_table(tmp_path: Path) -> None:
    box, rows = read_domain("-1,2.5", (2, 3))
    assert box.lower.shape == (1, 2, 3)
    assert (float(box.lower.max()), float(box.upper.min()), rows) == (-1.0, 2.5, None)
    for header, separator in (("a,b\n", ","), ("", ","), ("", ";")):
        (tmp_path / "data.csv").write_text(f"{header}1,2\n3,-4\n".replace(",", separator))
        box, rows = read_domain(str(tmp_path / "data.csv"), (2,))
        assert box.lower.tolist() == [[1.0, -4.0]]
        assert box.upper.tolist() == [[3.0, 2.0]]
        assert rows.shape == (2, 2)
    (tmp_path / "equal.csv").write_text("0.5,0.5\n0.1,0.2\n0.3,0.9\n")
    assert read_domain(str(tmp_path / "equal.csv"), (2,))[0].upper.tolist() == [[0.5, 0.9]]
    for text, said in (
        ("2,1", "the lower one first"),
        ("nan,1", "finite"),
        ("nothing.csv", "neither LOW,HIGH nor a file"),
    ):
        with pytest.raises(DataError, match=said):
            read_domain(text, (2,))
    with pytest.raises(DataError, match="2 columns; the network has 3 inputs"):
        read_domain(str(tmp_path / "data.csv"), (3,))
    for text in ("a,b\n1,\n3,-4\n", "1,\n3,-4\n"):
        (tmp_path / "gaps.csv").write_text(text)
        with pytest.raises(DataError, match="gaps"):
            read_domain(str(tmp_path / "gaps.csv"), (2,))


def test_other_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"not a \.onnx or \.pt2"):
        read_network(tmp_path / "net.h5")
    (tmp_path / "net.pt2").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as an exported program"):
        read_network(tmp_path / "net.pt2")
    torch.export.save(
        torch.export.export(nn.Linear(2, 1), (torch.rand(1, 2),)), tmp_path / "one.pt2"
    )
    with pytest.raises(Unsupported, match="exported for batches of 1"):
        read_network(tmp_path / "one.pt2")
    monkeypatch.setattr("sys.argv", ["morphogen", "regions", str(tmp_path / "net.h5")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err
