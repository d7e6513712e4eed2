"""Nothing in a .pt2 file is run: what an archive holds is looked at before it is read."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from leaks import leaks
from morphogen import DataError
from morphogen.cli.app import app, as_options
from morphogen.formats.pt2 import read_pt2, write_pt2

Parts = dict[str, bytes]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("kept", torch.rand(2))
        self.constant = torch.rand(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.kept).flatten(1) + self.constant[: x.shape[1]].sum()


class Marks:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A harmless archive, as torch writes it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    example = torch.rand(2, 3)
    exported = torch.export.export(
        Net(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    torch.export.save(exported, path, extra_files={"about.txt": "hello"})
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(parts: Parts, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def saved(value: object) -> bytes:
    made = io.BytesIO()
    torch.save(value, made)
    return made.getvalue()


def in_json(parts: Parts, name: str, change: Callable[[dict], None]) -> Parts:
    full = next(part for part in parts if part.endswith(name))
    value = json.loads(parts[full])
    change(value)
    return {**parts, full: json.dumps(value).encode()}


def program(parts: Parts, change: Callable[[dict], None]) -> Parts:
    return in_json(parts, "models/model.json", change)


def sample(parts: Parts, marker: Path) -> Parts:
    return {**parts, next(p for p in parts if "sample_inputs" in p): saved((Marks(marker),))}


def weight(parts: Parts, marker: Path) -> Parts:
    changed = in_json(
        parts, "model_weights_config.json", lambda v: v["config"]["kept"].update(use_pickle=True)
    )
    config = json.loads(changed[next(p for p in parts if p.endswith("model_weights_config.json"))])
    name = config["config"]["kept"]["path_name"]
    return {**changed, next(p for p in parts if p.endswith(name)): saved(Marks(marker))}


def legacy(parts: Parts, marker: Path) -> Parts:
    room = next(iter(parts)).partition("/")[0]
    return {**parts, f"{room}/data/weights/model.pt": saved({"a": Marks(marker)})}


def constant(kind: str) -> Callable[[Parts, Path], Parts]:
    def change(parts: Parts, marker: Path) -> Parts:
        config = next(p for p in parts if p.endswith("model_constants_config.json"))
        new = in_json(
            parts,
            "model_constants_config.json",
            lambda v: v["config"]["constant"].update(path_name=f"{kind}_obj_0"),
        )
        return {**new, f"{config.rpartition('/')[0]}/{kind}_obj_0": pickle.dumps(Marks(marker))}

    return change


def old_format(parts: Parts, marker: Path) -> Parts:
    return {
        "version": b"8.20",
        "serialized_exported_program.json": parts[
            next(p for p in parts if p.endswith("models/model.json"))
        ],
        "serialized_state_dict.pt": saved({"a": Marks(marker)}),
        "serialized_constants.pt": saved({}),
        "serialized_example_inputs.pt": saved(()),
    }


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w')"


def size(text: Callable[[Path], str]) -> Callable[[Parts, Path], Parts]:
    def change(parts: Parts, marker: Path) -> Parts:
        def put(value: dict) -> None:
            value["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"][
                "expr_str"
            ] = text(marker)

        return program(parts, put)

    return change


def target(name: str) -> Callable[[Parts, Path], Parts]:
    return lambda parts, marker: program(
        parts, lambda value: value["graph_module"]["graph"]["nodes"][0].update(target=name)
    )


def argument(parts: Parts, marker: Path) -> Parts:
    def put(value: dict) -> None:
        value["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = f"x={code(marker)}"

    return program(parts, put)


def names(parts: Parts, marker: Path) -> Parts:
    def put(value: dict) -> None:
        value["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [
            f"x={code(marker)}"
        ]

    return program(parts, put)


def imported(spec: object) -> Callable[[Parts, Path], Parts]:
    def change(parts: Parts, marker: Path) -> Parts:
        def put(value: dict) -> None:
            value["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(
                [1, spec]
            )

        return program(parts, put)

    return change


def beside(name: str) -> Callable[[Parts, Path], Parts]:
    return lambda parts, marker: {**parts, next(iter(parts)).partition("/")[0] + "/" + name: b"x"}


HOSTILE: dict[str, tuple[Callable[[Parts, Path], Parts], str]] = {
    "sample inputs": (sample, "more than tensors"),
    "a pickled weight": (weight, "more than tensors"),
    "weights of the older kind": (legacy, "more than tensors"),
    "a custom object": (constant("custom"), "holds a pickled object"),
    "an opaque object": (constant("opaque"), "holds a pickled object"),
    "the format before": (old_format, "more than tensors"),
    "a size that is code": (size(code), "more than arithmetic"),
    "a size with an attribute": (size(lambda m: "Symbol('s0').__class__"), "more than arithmetic"),
    "a size that calls sympify": (size(lambda m: f"sympify({code(m)!r})"), "more than arithmetic"),
    "a size in a text": (size(lambda m: f"Symbol({code(m)!r})"), "more than arithmetic"),
    "a size that takes forever": (size(lambda m: "9**9**9**9"), "more than arithmetic"),
    "a size that is no expression": (size(lambda m: "import os"), "no expression"),
    "a function of torch": (target("torch.hub.load"), "no operator"),
    "an operator of files": (target("torch.ops.aten.from_file.default"), "no operator"),
    "an attribute of operators": (target("torch.ops.aten.linear.__init__"), "no operator"),
    "a caller of methods": (target("_operator.methodcaller"), "no operator"),
    "an extension": (target("#ext:x"), "no operator"),
    "an input that is code": (argument, "no identifier"),
    "names of arguments": (names, "no identifier"),
    "an enum to import": (
        imported(
            {
                "type": "builtins.dict",
                "context": '[{"__enum__": true, "fqn": "os:x", "name": "y"}]',
                "children_spec": [],
            }
        ),
        "dictionary with the keys",
    ),
    "a factory to import": (
        imported({"type": "collections.defaultdict", "context": "{}", "children_spec": []}),
        "defaultdict",
    ),
    "compiled code": (beside("data/aotinductor/model/a.so"), "compiled code"),
    "an unknown part": (beside("data/other/a.bin"), "no part of an exported program that is known"),
    "one name twice": (beside("ARCHIVE_FORMAT"), "have one name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_run_code_is_refused_before_it_is_read(
    name: str, parts: Parts, tmp_path: Path
) -> None:
    change, said = HOSTILE[name]
    marker = tmp_path / "marker"
    path = written(change(parts, marker), tmp_path / "net.pt2")
    with pytest.raises(
        DataError,
        match=f"net.pt2: .*{said}.*; if you know where it comes from and trust it.*trust=True",
    ):
        read_pt2(path)
    assert not marker.exists()


def test_a_part_outside_its_folder_is_refused(parts: Parts, tmp_path: Path) -> None:
    changed = in_json(
        parts,
        "model_weights_config.json",
        lambda v: v["config"]["kept"].update(path_name="../../x"),
    )
    with pytest.raises(DataError, match="outside its folder"):
        read_pt2(written(changed, tmp_path / "net.pt2"))


def test_trust_reads_it_as_torch_does(parts: Parts, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = written(sample(parts, marker), tmp_path / "net.pt2")
    run = ["regions", str(path), "--domain", "0,1"]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 1
    assert "--trust" in as_options(str(result.exception))
    assert not marker.exists()
    result = CliRunner().invoke(app, [*run, "--trust"])
    assert marker.exists(), result.output  # it is what it says


def test_guards_and_notes_are_left_out_and_the_program_is_the_same(
    parts: Parts, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    changed = program(parts, lambda v: v.update(guards_code=[code(marker)]))
    x = torch.rand(5, 3)
    whole = written(parts, tmp_path / "whole.pt2")
    expected = torch.export.load(whole).module()(x)
    assert torch.equal(read_pt2(whole).module()(x), expected)
    assert torch.equal(read_pt2(written(changed, tmp_path / "net.pt2")).module()(x), expected)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_archive_is_one_line(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an exported program") as raised:
        read_pt2(tmp_path / "net.pt2")
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


def test_what_is_written_is_read_and_names_no_path(tmp_path: Path) -> None:
    model, x = Net(), torch.rand(4, 3)
    write_pt2(model, x, tmp_path / "net.pt2")
    torch.testing.assert_close(read_pt2(tmp_path / "net.pt2").module()(x), model(x))
    assert leaks(tmp_path) == []
