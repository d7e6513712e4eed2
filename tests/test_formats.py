"""What leaves equals what was trained."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from morphogen import NotExact, RunError, Unsupported, freeze
from morphogen.formats import export_onnx, load_tensors, save_tensors, source
from problems import problem


@pytest.mark.parametrize("name", ["convnet", "mlp", "dagnet"])
def test_the_page_of_source_is_the_network(name: str, tmp_path: Path) -> None:
    model, x = problem(name, torch.float32)
    plain, _ = freeze(model, x)
    (tmp_path / "model.py").write_text(source(copy.deepcopy(plain), title="A network"))
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; import model; assert not any(m.startswith('morphogen') for m in sys.modules);"
        "torch.save(model.load()(torch.load('x.pt')), 'y.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), plain(x), rtol=0, atol=1e-6)


def test_source_refuses_what_it_cannot_write() -> None:
    with pytest.raises(Unsupported, match="no line for Bilinear 'odd'"):
        source(nn.Sequential(), title="x") and source(_named(odd=nn.Bilinear(2, 2, 2)), title="x")
    with pytest.raises(Unsupported, match="Linear is not a flat nn.Sequential"):
        source(nn.Linear(2, 2), title="x")


def _named(**layers: nn.Module) -> nn.Sequential:
    from collections import OrderedDict

    return nn.Sequential(OrderedDict(layers))


def test_onnx_equals_torch_at_every_batch_size(tmp_path: Path) -> None:
    model, x = problem("convnet", torch.float32)
    plain, _ = freeze(model, x)
    certificate = export_onnx(plain, x, tmp_path / "model.onnx")
    assert certificate.max_error <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 2, 7):
        new = torch.randn(batch, 1, 8, 8)
        (seen,) = session.run(None, {"input": new.numpy()})
        np.testing.assert_allclose(seen, plain(new).detach().numpy(), atol=1e-5)


def test_an_onnx_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *a, **k: [run(*a, **k)[0] + 1])
    model, x = problem("mlp", torch.float32)
    with pytest.raises(NotExact, match="differs from torch's by 1"):
        export_onnx(freeze(model, x)[0], x, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "step": torch.tensor(7.0), "flag": torch.tensor([True])}
    save_tensors(tmp_path / "c", tensors, {"round": 3})
    back, about = load_tensors(tmp_path / "c")
    assert about == {"round": 3}
    assert all(torch.equal(tensors[k], back[k]) for k in tensors)


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "text"])
def test_a_corrupt_checkpoint_is_said(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "c"
    save_tensors(path, {"a": torch.randn(30)}, {})
    data = path.read_bytes()
    broken = {"cut": data[:-9], "flip": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "empty": b"", "text": b"hello"}
    path.write_bytes(broken[harm])
    with pytest.raises(RunError, match=r"is corrupt .*; delete it and start again without --resume"):
        load_tensors(path)
    with pytest.raises(RunError, match="no checkpoint at"):
        load_tensors(tmp_path / "absent")
