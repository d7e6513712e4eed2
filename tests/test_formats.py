"""What leaves equals what was trained."""

import ast
import copy
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from morphogen import NotExact, RunError, Unsupported, freeze
from morphogen.data.dataset import Dataset
from morphogen.data.from_frame import from_frame
from morphogen.data.preparation import source as prepare_source
from morphogen.fitting.export import page
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.formats.onnx import export_onnx
from morphogen.formats.source import source
from morphogen.record import Layer, Report, Round, write_atomic
from problems import problem


@pytest.mark.parametrize("name", ["convnet", "mlp", "dagnet"])
def test_the_page_of_source_is_the_network(name: str, tmp_path: Path) -> None:
    model, x = problem(name, torch.float32)
    plain, _ = freeze(model, x)
    (tmp_path / "model.py").write_text(source(copy.deepcopy(plain), title="A network"))
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch; import model; assert not any(m.startswith('morphogen') for m in "
        "sys.modules);"
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


def test_an_onnx_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *a, **k: [run(*a, **k)[0] + 1])
    model, x = problem("mlp", torch.float32)
    with pytest.raises(NotExact, match="onnx: outputs differ by 1"):
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
    broken = {
        "cut": data[:-9],
        "flip": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "empty": b"",
        "text": b"hello",
    }
    path.write_bytes(broken[harm])
    with pytest.raises(
        RunError, match=r"is corrupt .*; delete it and start again without resume=True"
    ):
        load_tensors(path)
    with pytest.raises(RunError, match="no checkpoint at"):
        load_tensors(tmp_path / "absent")


LABELS = [
    '"""\nraise SystemExit("a label was run")\n"""',
    "'''",
    '"',
    '\\"',
    "\\",
    "\\\\",
    "C:\\Users\\x",
    "\\N",
    "\\N{DASH}",
    "\\x",
    "\\u12",
    "\\d",
    "{layers}",
    "{0}",
    "%s",
    "a\nb",
    "\r",
    "\t",
    "\0",
    "\x0c",
    "\x85",
    "\u2028",
    "\ufeff",
    "Köln",
    "日本",
    "🦋",
    "",
    " ",
    "#",
    "it's",
    "both \" and '",
    '" """',
    "\ud800",
    "from os import *",
    "import os",
    "# coding: latin-1",
    "`",
    "$(x)",
    "\u202e",
]


def _page(classes: tuple[str, ...], name: str) -> tuple[str, nn.Sequential]:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, len(classes)))
    x = np.zeros((4, 2), np.float32)
    dataset = Dataset(
        name, "classification", x, np.zeros(4, np.int64), x, np.zeros(4, np.int64), classes
    )
    layers = (Layer("0", "linear", 3), Layer("2", "output", len(classes)))
    rounds = (Round(0, 0.0, 0, 0.0, "grow", 0.0, 0.0, 0.0, 1, layers),)
    return page(plain, dataset, Report(name, name, "classification", "accuracy", 0, rounds)), plain


def _code(text: str) -> tuple[str, list[str | None], object]:
    """(a page's code without its docstrings and without its classes, the docstrings, the
    classes).
    """
    tree = ast.parse(text)
    told = []
    (names,) = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CLASSES"
    ]
    classes = ast.literal_eval(names.value)
    tree.body.remove(names)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            told.append(ast.get_docstring(node, clean=False))
            if told[-1] is not None:
                node.body = node.body[1:]
    return ast.dump(tree), told, classes


@pytest.mark.parametrize("seed", range(4))
def test_no_label_and_no_file_name_reaches_the_code_of_a_page(seed: int) -> None:
    """The code is the same as with harmless names, the docstring says the name as it is, and the
    classes are data.
    """
    harmless = _code(_page(("a", "b", "c"), "shop")[0])[0]
    draw = np.random.default_rng(seed)
    letters = [*"\"'\\\n\r\0{}#%NUxu0 ", "\ud800", "\u2028"]
    names = [*LABELS, *("".join(draw.choice(letters, draw.integers(1, 12))) for _ in range(60))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in names:
            classes = (name, *map(str, draw.choice(names, 2)))
            code, told, data = _code(_page(classes, name)[0])
            assert code == harmless
            assert data == classes
            assert told[0] == (f"3 \u2013 3: a network for '{name}', found by training\n").replace(
                "3 \u2013 3", told[0].split(":")[0]
            )


def test_a_page_with_every_label_runs_isolated_and_is_the_network(tmp_path: Path) -> None:
    text, plain = _page(tuple(LABELS), 'C:\\Users\\x """ \\N')
    write_atomic(tmp_path / "model.py", text)
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    x = torch.randn(5, 2)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, warnings, importlib.util, torch, safetensors.torch; "
        "warnings.simplefilter('error');"
        "spec = importlib.util.spec_from_file_location('model', sys.argv[1]); model = "
        "importlib.util.module_from_spec(spec);"
        "spec.loader.exec_module(model); torch.save((model.load()(torch.load('x.pt')), "
        "(model.__doc__, model.CLASSES)), 'y.pt')"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "model.py")], cwd=tmp_path, check=True
    )
    seen, (told, classes) = torch.load(tmp_path / "y.pt")
    torch.testing.assert_close(seen, plain(x), rtol=0, atol=1e-6)
    assert classes == tuple(LABELS)
    assert told.startswith('linear 3 – linear 39: a network for \'C:\\Users\\x """ \\N\'')
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", str(tmp_path / "model.py")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout


def test_names_of_columns_stay_in_the_constants(tmp_path: Path) -> None:
    names = [name for name in LABELS if name.strip() and "\ud800" not in name]
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, len(names))), columns=names)
    frame["target"] = ["a", "b"] * 30
    dataset = from_frame(frame, "target")
    assert dataset.prepare is not None
    plain = nn.Sequential(nn.Linear(dataset.x_train.shape[1], 2))
    write_atomic(tmp_path / "preparation.json", dataset.prepare.to_json())
    text = source(plain, title="t", prepare=prepare_source(dataset.prepare))
    assert not any(
        name in text for name in names if len(name) > 3 and name not in ("{layers}", "import os")
    )
    room = {"__file__": str(tmp_path / "model.py"), "__name__": "model"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(text, "model.py", "exec"), room)
    np.testing.assert_array_equal(room["prepare"](frame), dataset.prepare(frame))


BUILT = [
    nn.Conv2d(4, 4, 2, stride=2),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    nn.Conv2d(4, 4, 3, padding="same"),
    nn.Conv2d(4, 8, (1, 3), padding=(0, 1), groups=2, dilation=2, bias=False),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.MaxPool2d(2, 1, dilation=2),
    nn.AvgPool2d(2, 2, 1, count_include_pad=False),
    nn.AvgPool2d(2, 1, divisor_override=3),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.BatchNorm2d(4, eps=1e-3, affine=False),
    nn.BatchNorm2d(4, track_running_stats=False),
    nn.LeakyReLU(np.float64(0.3)),
    nn.ELU(np.float32(0.5)),
    nn.GELU("tanh"),
    nn.ReLU(inplace=True),
    nn.Flatten(2),
    nn.Flatten(1, 2),
    nn.Linear(5, 3, bias=False),
    nn.BatchNorm2d(np.int64(4)),
]


@pytest.mark.parametrize("layer", BUILT, ids=repr)
def test_all_that_a_layer_was_built_with_is_written(layer: nn.Module) -> None:
    plain = nn.Sequential(layer).eval()
    room = {"__file__": "model.py", "__name__": "model"}
    exec(source(plain, title="t"), room)
    net = room["Net"]().eval()
    net.layers.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(net(x.clone()), plain(x.clone()), rtol=0, atol=0)
    assert repr(net.layers[0]) == repr(layer).replace("np.float64(0.3)", "0.3")


def test_a_page_keeps_order_names_and_modules_that_stand_twice() -> None:
    layer = nn.Linear(3, 3)
    plain = nn.Sequential(
        OrderedDict([("lambda", layer), ("a b", nn.Tanh()), ('"', layer), ("\\N", nn.Linear(3, 1))])
    )
    room = {"__file__": "model.py", "__name__": "model"}
    exec(source(plain, title="t"), room)
    net = room["Net"]()
    net.layers.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3)
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), torch.tensor(0.1)])
def test_a_value_that_has_no_source_is_refused(bad: object) -> None:
    with pytest.raises(Unsupported, match=r"negative_slope of LeakyReLU '0'.*cannot be written"):
        source(nn.Sequential(nn.LeakyReLU(bad)), title="t")
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *a: None)
    with pytest.raises(Unsupported, match="has hooks"):
        source(nn.Sequential(hooked), title="t")


def test_the_checksum_covers_all_that_a_checkpoint_says(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_tensors(
        path, {"a": torch.arange(6.0), "b": torch.zeros(0)}, {"blocks": {"depth": 1}, "note": "one"}
    )
    data = path.read_bytes()
    for old, new in ((b"one", b"two"), (b'depth\\": 1', b'depth\\": 2')):
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises(RunError, match="is corrupt .checksum."):
            load_tensors(path)
    path.write_bytes(data)
    for change in (
        {"a": torch.arange(6.0).view(2, 3)},
        {"a": torch.arange(6.0).view(torch.int32)},
        {"c": torch.arange(6.0)},
    ):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        save_file({"b": torch.zeros(0), **change}, path, metadata)
        with pytest.raises(RunError, match="is corrupt .checksum."):
            load_tensors(path)
    save_file({"a": torch.zeros(1)}, path, {"about": "{}", "sha256": "0"})
    with pytest.raises(RunError, match="of an older morphogen"):
        load_tensors(path)
