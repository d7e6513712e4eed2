"""Files as people have them: what is said in a file is read, or refused by name, and never left
out.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from typer.testing import CliRunner

from morphogen.cli.app import app
from morphogen.errors import DataError, MorphogenError, Unsupported
from morphogen.formats import onnx_agreement, onnx_operators
from morphogen.formats.network_files import read_network
from morphogen.formats.onnx_reader import read_onnx
from morphogen.verification.vnncomp import verify_file

F32, F64, F16 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16


def file(
    path: Path,
    nodes: list,
    given: list,
    made: list,
    stored: dict[str, np.ndarray],
    kind: int = F32,
    opset: int = 13,
    functions: list | None = None,
    domains: tuple[str, ...] = (),
) -> Path:
    """A model of one input x and one output y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, given)],
        [helper.make_tensor_value_info("y", kind, made)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(domain, 1) for domain in domains),
    ]
    model = helper.make_model(graph, opset_imports=imports, functions=functions or [], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, reads: str, makes: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        kind, ["" if name == "-" else name for name in reads.split()], makes.split(), **attributes
    )


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"x": x})[0]


def f32(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# (nodes, input, output, stored, options)
READ: dict[str, tuple] = {
    "constant on the left of MatMul": (
        [node("MatMul", "w x", "y")],
        [1, 2, 2],
        [1, 2, 2],
        {"w": f32([1, 2], [3, 4])},
    ),
    "constant on the left of a vector": (
        [node("MatMul", "w x", "y")],
        [3],
        [2],
        {"w": floats(2, 3)},
    ),
    "constant on the left of a column": (
        [node("MatMul", "w x", "y")],
        [3, 1],
        [2, 1],
        {"w": floats(2, 3)},
    ),
    "product of two dimensions more": (
        [node("MatMul", "w x", "y")],
        [1, 3, 2],
        [4, 2, 2],
        {"w": floats(4, 2, 3)},
    ),
    "vector on the right": ([node("MatMul", "x w", "y")], [1, 3], [1], {"w": floats(3)}),
    "one number": ([node("MatMul", "x w", "y")], [3], [], {"w": floats(3)}),
    "max-pooling with dilations": (
        [node("MaxPool", "x", "y", kernel_shape=[2, 2], dilations=[2, 3])],
        [1, 1, 5, 5],
        [1, 1, 3, 2],
        {},
    ),
    "average with dilations": (
        [node("AveragePool", "x", "y", kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1])],
        [1, 2, 4, 4],
        [1, 2, 4, 4],
        {},
        {"opset": 19},
    ),
    "beta 0 and no C, then a sum": (
        [node("Gemm", "x w", "h", beta=0.0), node("Add", "h b", "y")],
        [1, 1],
        [1, 1],
        {"w": f32([1]), "b": f32(5)},
    ),
    "beta and alpha": (
        [node("Gemm", "x w b", "y", beta=0.5, alpha=2.0)],
        [1, 2],
        [1, 3],
        {"w": floats(2, 3), "b": floats(1, 3)},
    ),
    "C with a row each": (
        [node("Gemm", "x w b", "y", transA=1)],
        [2, 3],
        [3, 4],
        {"w": floats(2, 4), "b": floats(3, 4)},
    ),
    "float64 weights": (
        [node("Gemm", "x w", "y")],
        [1, 2],
        [1, 1],
        {"w": np.array([[1.0], [1e-9]])},
        {"kind": F64},
    ),
    "float16 weights": (
        [node("Gemm", "x w", "y")],
        [1, 2],
        [1, 3],
        {"w": floats(2, 3).astype(np.float16)},
        {"kind": F16},
    ),
    "a product read before and after its bias": (
        [node("MatMul", "x w", "h"), node("Add", "h b", "k"), node("Mul", "h k", "y")],
        [1, 2],
        [1, 3],
        {"w": floats(2, 3), "b": floats(3)},
    ),
    "Constant with value_floats": (
        [node("Constant", "", "c", value_floats=[1.0, 2.0]), node("Add", "x c", "y")],
        [1, 2],
        [1, 2],
        {},
    ),
    "Constant with value_float": (
        [node("Constant", "", "c", value_float=3.0), node("Mul", "x c", "y")],
        [1, 2],
        [1, 2],
        {},
    ),
    "Constant with value_ints": (
        [node("Constant", "", "c", value_ints=[1, -1]), node("Reshape", "x c", "y")],
        [1, 2, 2],
        [1, 4],
        {},
    ),
    "Transpose without perm": ([node("Transpose", "x", "y")], [1, 2, 3], [3, 2, 1], {}),
    "Reshape of a weight": (
        [node("Reshape", "w s", "v"), node("MatMul", "x v", "y")],
        [1, 2],
        [1, 3],
        {"w": floats(6), "s": np.array([2, 3])},
    ),
    "whole numbers": (
        [node("Add", "a b", "s"), node("Reshape", "x s", "y")],
        [1, 2, 2],
        [1, 4],
        {"a": np.array([0, 2]), "b": np.array([1, 2])},
    ),
    "no batch": ([node("Add", "x b", "y")], [3], [2, 3], {"b": floats(2, 3)}),
    "no batch, two dimensions": (
        [node("MatMul", "x w", "h"), node("MatMul", "v h", "y")],
        [2, 3],
        [4, 2],
        {"w": floats(3, 2), "v": floats(4, 2)},
    ),
    "a fixed batch": (
        [node("Gemm", "x w", "h"), node("Relu", "h", "y")],
        [4, 2],
        [4, 3],
        {"w": floats(2, 3)},
    ),
    "a free batch": ([node("Gemm", "x w", "y")], ["n", 2], ["n", 3], {"w": floats(2, 3)}),
    "pads above half a kernel": (
        [node("MaxPool", "x", "y", kernel_shape=[3, 3], pads=[2, 2, 2, 2])],
        [1, 1, 4, 4],
        [1, 1, 6, 6],
        {},
    ),
    "average pads above half a kernel": (
        [node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[2, 2, 2, 2])],
        [1, 1, 4, 4],
        [1, 1, 6, 6],
        {},
    ),
    "more pads at one end": (
        [node("Conv", "x w", "y", pads=[0, 1, 2, 1])],
        [1, 1, 4, 4],
        [1, 2, 4, 4],
        {"w": floats(2, 1, 3, 3)},
    ),
    "auto_pad": (
        [node("Conv", "x w", "y", auto_pad="SAME_UPPER", strides=[2, 2])],
        [1, 1, 4, 4],
        [1, 2, 2, 2],
        {"w": floats(2, 1, 3, 3)},
    ),
    "a width of 1 that is stretched": (
        [node("MatMul", "x w", "h"), node("Add", "h b", "y")],
        [1, 2],
        [1, 3],
        {"w": floats(2, 1), "b": floats(3)},
    ),
    "a number that is stretched": (
        [node("MatMul", "x w", "h"), node("Add", "h b", "y")],
        [2],
        [3],
        {"w": floats(2), "b": floats(3)},
    ),
    "several rows of each example": (
        [node("Sub", "b x", "y")],
        [1, 3],
        [2, 3],
        {"b": floats(2, 3)},
    ),
    "constants in a row": (
        [node("Concat", "b x c x d", "y", axis=-1)],
        [1, 2],
        [1, 9],
        {"b": floats(1, 1), "c": floats(1, 2), "d": floats(1, 2)},
    ),
    "along the first dimension": (
        [node("Concat", "x b", "y", axis=0)],
        [1, 2],
        [3, 2],
        {"b": floats(2, 2)},
    ),
    "some entries of each row": (
        [node("Gather", "x i", "y", axis=-1)],
        [1, 4],
        [1, 3],
        {"i": np.array([3, 0, -2])},
    ),
    "an entry by itself": (
        [node("Gather", "x i", "y", axis=1)],
        [1, 4, 2],
        [1, 2],
        {"i": np.array(1)},
    ),
    "entries in a table": (
        [node("Gather", "x i", "y")],
        [4],
        [2, 2],
        {"i": np.array([[0, 3], [1, 1]])},
    ),
    "a row of a whole": (
        [node("Gather", "x i", "y", axis=0)],
        [1, 4],
        [2, 4],
        {"i": np.array([0, -1])},
    ),
    "Dropout that does nothing": (
        [node("Dropout", "x r t", "y m")],
        [1, 2],
        [1, 2],
        {"r": np.array(0.5, np.float32), "t": np.array(False)},
    ),
    "nothing that is needed": (
        [node("Relu", "x", "y"), node("Erf", "x", "z")],
        [1, 2],
        [1, 2],
        {},
    ),
}

# (nodes, input, output, stored, options, what is said)
REFUSED: dict[str, tuple] = {
    "batch norm that trains": (
        [node("BatchNormalization", "x s b m v", "y c d", training_mode=1)],
        [1, 1, 2],
        [1, 1, 2],
        {"s": f32(1), "b": f32(0), "m": f32(0), "v": f32(1)},
        {"opset": 15},
        "training_mode=1",
    ),
    "Dropout that trains": (
        [node("Dropout", "x r t", "y")],
        [1, 2],
        [1, 2],
        {"r": np.array(0.5, np.float32), "t": np.array(True)},
        {},
        "training_mode is on",
    ),
    "an operator of another domain": (
        [node("Relu", "x", "y", domain="ours")],
        [1, 2],
        [1, 2],
        {},
        {"domains": ("ours",)},
        "is of 'ours', not a standard one",
    ),
    "an attribute that has no place": (
        [node("Relu", "x", "y", slope=1.0)],
        [1, 2],
        [1, 2],
        {},
        {},
        "slope=1.0 cannot be read",
    ),
    "a value that has no meaning": (
        [node("Conv", "x w", "y", auto_pad="MIRROR")],
        [1, 1, 4, 4],
        [1, 1, 2, 2],
        {"w": floats(1, 1, 3, 3)},
        {},
        "auto_pad='MIRROR'",
    ),
    "a new opset": ([node("Relu", "x", "y")], [1, 2], [1, 2], {}, {"opset": 999}, "opset 999"),
    "an old version": (
        [node("Gemm", "x w b", "y", broadcast=1)],
        [1, 2],
        [1, 2],
        {"w": floats(2, 2), "b": floats(2)},
        {"opset": 6},
        "of version 6",
    ),
    "a cycle": (
        [node("Add", "x z", "h"), node("Relu", "h", "z"), node("Relu", "z", "y")],
        [1, 2],
        [1, 2],
        {},
        {},
        "without a cycle",
    ),
    "nodes out of order": (
        [node("Relu", "h", "y"), node("Relu", "x", "h")],
        [1, 2],
        [1, 2],
        {},
        {},
        "must stand in order",
    ),
    "a value made twice": (
        [node("Relu", "x", "y"), node("Neg", "x", "y")],
        [1, 2],
        [1, 2],
        {},
        {},
        "which is there already",
    ),
    "an input of 2^40 numbers": (
        [node("Relu", "x", "y")],
        [1, 2**40],
        [1, 2**40],
        {},
        {},
        "at most",
    ),
    "a result of 2^60 numbers": (
        [node("Add", "a b", "c"), node("Add", "x c", "y")],
        [1, 1],
        [1],
        {"a": floats(2**15, 1), "b": floats(1, 2**15)},
        {},
        "at most",
    ),
    "sizes that do not fit": (
        [node("MatMul", "x w", "y")],
        [1, 2],
        [1, 2],
        {"w": floats(3, 2)},
        {},
        "MatMul",
    ),
    "a free size inside": (
        [node("Relu", "x", "y")],
        [1, "n"],
        [1, "n"],
        {},
        {},
        "is not fixed beyond",
    ),
    "no input": (
        [node("Neg", "c", "y")],
        [1, 2],
        [1, 2],
        {"c": floats(1, 2)},
        {},
        "does not depend on its input",
    ),
    "text": (
        [node("Constant", "", "c", value_string="a"), node("Add", "x c", "y")],
        [1, 2],
        [1, 2],
        {},
        {},
        "value_string",
    ),
    "an input that is missing": (
        [node("MatMul", "x -", "y")],
        [1, 2],
        [1, 2],
        {},
        {},
        "lacks input 1",
    ),
    "a computed shape": (
        [node("Shape", "x", "s"), node("Reshape", "x s", "y")],
        [1, 2],
        [1, 2],
        {},
        {},
        "operator Shape",
    ),
    "results beside the first": (
        [node("MaxPool", "x", "m i", kernel_shape=[1, 1]), node("Reshape", "m i", "y")],
        [1, 1, 2, 2],
        [1, 4],
        {},
        {},
        "reads 'i'",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_onnxruntime_runs_it(name: str, tmp_path: Path) -> None:
    nodes, given, made, stored, *options = READ[name]
    path = file(
        tmp_path / "net.onnx", nodes, given, made, stored, **(options[0] if options else {})
    )
    net = read_onnx(path)
    batch = net.batch or 3
    x = torch.randn(batch, *net.shape, dtype=torch.float64).to(net.dtype)
    wanted = run(
        path, x.numpy().reshape([batch if isinstance(size, str) else size for size in given])
    )
    seen = net(x).numpy()
    np.testing.assert_allclose(
        seen.reshape(wanted.shape),
        wanted,
        rtol=1e-2 if net.dtype == torch.float16 else 1e-5,
        atol=1e-6,
    )
    assert seen.dtype == wanted.dtype
    alone = torch.cat([net(row[None]) for row in x])  # no example depends on the others
    torch.testing.assert_close(net(x), alone)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    nodes, given, made, stored, options, said = REFUSED[name]
    path = file(tmp_path / "net.onnx", nodes, given, made, stored, **options)
    with pytest.raises(
        (DataError, Unsupported), match=said.replace("(", r"\(").replace("^", r"\^")
    ) as raised:
        read_onnx(path)
    assert str(path) in str(raised.value)


def test_a_free_size_may_be_written_as_0(tmp_path: Path) -> None:
    path = file(tmp_path / "net.onnx", [node("Relu", "x", "y")], [0, 2], [0, 2], {})
    torch.testing.assert_close(
        read_onnx(path)(torch.tensor([[-1.0, 2.0], [3.0, -4.0]])),
        torch.tensor([[0.0, 2.0], [3.0, 0.0]]),
    )


def test_functions_of_the_file_are_its_own(tmp_path: Path) -> None:
    """A function of the model that is called Relu is not the standard one."""
    twice = helper.make_function(
        "ours", "Relu", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 13)]
    )
    path = file(
        tmp_path / "net.onnx",
        [node("Relu", "x", "y", domain="ours")],
        [1, 2],
        [1, 2],
        {},
        functions=[twice],
        domains=("ours",),
    )
    torch.testing.assert_close(
        read_onnx(path)(torch.tensor([[-1.0, 2.0]])), torch.tensor([[-2.0, 4.0]])
    )


def external(path: Path, weight: np.ndarray) -> None:
    """A file y = x w whose weight lies in weights.bin beside it."""
    file(path, [node("MatMul", "x w", "y")], [1, 2], [1, 2], {"w": weight})
    onnx.save_model(
        onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )


def test_external_data_lies_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, weight in (("ours", f32([1, 2], [3, 4])), ("other", f32([9, 9], [9, 9]))):
        (tmp_path / name).mkdir()
        external(tmp_path / name / "net.onnx", weight)
    monkeypatch.chdir(tmp_path / "other")
    path = tmp_path / "ours" / "net.onnx"
    for way in (path, Path(os.path.relpath(path))):
        torch.testing.assert_close(
            read_onnx(way)(torch.eye(2)), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        )
    result = CliRunner().invoke(
        app, ["compress", str(path), "--domain", "-1,1", "--out", str(tmp_path / "small.onnx")]
    )
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(
        onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"input": f32([1, 1])})[0],
        f32([4, 6]),
        atol=1e-6,
    )
    (tmp_path / "ours" / "weights.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="keeps in other files cannot be read"):
        read_onnx(path)
    (tmp_path / "ours" / "weights.bin").unlink()
    with pytest.raises(DataError, match="keeps in other files cannot be read"):
        read_onnx(path)


def test_external_data_is_not_looked_up_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    external(tmp_path / "net.onnx", floats(2, 2))
    model = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    for place in ("../weights.bin", str(tmp_path / "weights.bin")):
        model.graph.initializer[0].external_data[0].value = place
        (tmp_path / "sub" / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(DataError, match="keeps in other files cannot be read"):
            read_onnx(tmp_path / "sub" / "net.onnx")


def test_damaged_files_are_one_error(tmp_path: Path) -> None:
    """Cut off, or with bytes changed: never a traceback, never another network."""
    path = file(
        tmp_path / "net.onnx",
        [node("Gemm", "x w", "h"), node("Relu", "h", "y")],
        [1, 3],
        [1, 3],
        {"w": floats(3, 3)},
    )
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        if draw.random() < 0.3:
            data = data[: int(draw.integers(len(data)))]
        else:
            for place in draw.integers(len(data), size=int(draw.integers(1, 4))):
                data[place] = int(draw.integers(256))
        path.write_bytes(bytes(data))
        try:
            net = read_onnx(path)
        except MorphogenError:
            continue
        x = draw.standard_normal((1, 3)).astype(np.float32)
        session = onnxruntime.InferenceSession(path)
        (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(net(torch.from_numpy(x)).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_tensor_without_its_data_is_one_error(tmp_path: Path) -> None:
    path = file(
        tmp_path / "net.onnx", [node("MatMul", "x w", "y")], [1, 2], [1, 2], {"w": floats(2, 2)}
    )
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = b""
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="the tensor 'w' cannot be read"):
        read_onnx(path)
    model.graph.initializer[0].dims[:] = [2**20, 2**20]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="the tensor 'w' cannot be read"):
        read_onnx(path)


@pytest.mark.parametrize("change", [1.001, 1.0 + 1e-4])
def test_what_is_read_otherwise_is_refused(
    change: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that is wrong by little is found before anything is said about the network."""
    row = onnx_operators.OPERATORS["Relu"]
    wrong = onnx_operators.Operator(
        onnx_operators.unary(lambda t: change * torch.relu(t)), row.versions
    )
    nodes = [node("Gemm", "x w", "h"), node("Relu", "h", "k"), node("Gemm", "k v", "y")]
    path = file(
        tmp_path / "net.onnx", nodes, [1, 50], [1, 3], {"w": floats(50, 40), "v": floats(40, 3)}
    )
    read_onnx(path)
    monkeypatch.setattr(
        "morphogen.formats.onnx_reader.OPERATORS", {**onnx_operators.OPERATORS, "Relu": wrong}
    )
    with pytest.raises(
        Unsupported,
        match="the file is read differently from how onnxruntime runs it: largest difference",
    ):
        read_onnx(path)


def test_another_shape_is_another_network() -> None:
    """So are numbers where the other has none, but on large inputs, where the file's precision may
    end.
    """
    one, at = torch.ones(4, 2), slice(0, 4)
    assert onnx_agreement._difference(one, one + 0.5, at, "normal") == 0.5
    assert onnx_agreement._difference(one, torch.ones(4, 3), at, "normal") == math.inf
    assert onnx_agreement._difference(one, torch.ones(4, 3), at, "large") == math.inf
    for other in (math.inf, math.nan):
        theirs = torch.tensor([[1.0, 1.0]] * 3 + [[1.0, other]])
        assert onnx_agreement._difference(one, theirs, at, "corner") == math.inf
        assert onnx_agreement._difference(one, theirs, at, "large") == 0.0
        assert onnx_agreement._difference(theirs, theirs, at, "corner") == 0.0


def test_a_file_newer_than_onnxruntime_is_run_by_the_standard(tmp_path: Path) -> None:
    path = file(
        tmp_path / "net.onnx",
        [node("Gemm", "x w", "h"), node("Relu", "h", "y")],
        [1, 2],
        [1, 1],
        {"w": f32([1], [1])},
    )
    model = onnx.load(path)
    model.ir_version = onnx.IR_VERSION + 1
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match="IR version"):
        onnxruntime.InferenceSession(path)
    assert read_onnx(path)(torch.tensor([[1.0, 2.0], [-1.0, 0.5]])).tolist() == [[3.0], [0.0]]


def test_it_is_compared_on_many_points_of_several_kinds() -> None:
    found = onnx_agreement.points((3, 2), torch.float32)
    assert sum(len(x) for x in found.values()) >= 256
    assert set(found["corner"].unique().tolist()) == {-1.0, 0.0, 1.0}
    assert float(found["large"].abs().max()) > 100
    again = onnx_agreement.points((3, 2), torch.float32)
    assert all(torch.equal(found[kind], again[kind]) for kind in found)


VERDICTS: dict[str, tuple[str, str]] = {
    # (a row of READ, what is asserted of Y, the answer); X in [-1, 1]
    "constant on the left of MatMul": ("(>= Y_1 2.9)", "sat"),
    "beta 0 and no C, then a sum": ("(>= Y_0 5.9)", "sat"),
    "float64 weights": ("(>= Y_0 1.0000000005)", "sat"),
    "no batch": ("(>= Y_0 100)", "unsat"),
    "one number": ("(>= Y_0 100)", "unsat"),
    "average with dilations": ("(>= Y_0 1.01)", "unsat"),
    "max-pooling with dilations": ("(>= Y_0 0.5)", "sat"),
    "pads above half a kernel": ("(<= Y_0 1.01)", "sat"),
    "constants in a row": ("(>= Y_1 1.01)", "unsat"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_are_of_the_file(name: str, tmp_path: Path) -> None:
    nodes, given, made, stored, *options = READ[name]
    path = file(
        tmp_path / "net.onnx", nodes, given, made, stored, **(options[0] if options else {})
    )
    inputs, outputs = int(np.prod(given)), int(np.prod(made))
    said, status = VERDICTS[name]
    lines = [
        f"(declare-const {kind}_{i} Real)"
        for kind, count in (("X", inputs), ("Y", outputs))
        for i in range(count)
    ]
    lines += [f"(assert (>= X_{i} -1))(assert (<= X_{i} 1))" for i in range(inputs)]
    (tmp_path / "p.vnnlib").write_text("\n".join([*lines, f"(assert {said})"]))
    found = verify_file(path, tmp_path / "p.vnnlib", 20)
    assert found.status == status
    if found.witness is not None:
        assert (
            found.witness.dtype
            == read_onnx(path)(torch.zeros(1, *read_onnx(path).shape, dtype=read_onnx(path).dtype))
            .numpy()
            .dtype
        )
        np.testing.assert_allclose(
            run(path, found.witness.reshape(given)).ravel(), found.output, atol=1e-6
        )


def test_a_property_over_a_fixed_batch_is_over_all_of_it(tmp_path: Path) -> None:
    """Two examples of two numbers, or four numbers: the property says which."""
    path = file(
        tmp_path / "net.onnx", [node("Gemm", "x w", "y")], [2, 2], [2, 1], {"w": f32([1], [1])}
    )
    assert read_onnx(path).shape == (2,)
    for inputs, outputs, status in ((4, 2, "sat"), (2, 1, "unsat")):
        lines = [
            f"(declare-const {kind}_{i} Real)"
            for kind, count in (("X", inputs), ("Y", outputs))
            for i in range(count)
        ]
        lines += [
            f"(assert (and (>= X_{i} {i // 2}) (<= X_{i} {1 + i // 2})))" for i in range(inputs)
        ]
        (tmp_path / "p.vnnlib").write_text("\n".join([*lines, f"(assert (>= Y_{outputs - 1} 3))"]))
        assert verify_file(path, tmp_path / "p.vnnlib", 20).status == status


@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-14), (torch.float32, 1e-5), (torch.float16, 1e-2)]
)
def test_compress_writes_the_precision_that_it_read(
    dtype: torch.dtype, within: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    with torch.no_grad():
        model[0].bias[:3] -= 20  # never on
    arrays = [t.detach().t().contiguous().numpy() for t in model.parameters()]
    nodes = [node("Gemm", "x a b", "h"), node("Relu", "h", "k"), node("Gemm", "k c d", "y")]
    kind = {torch.float64: F64, torch.float32: F32, torch.float16: F16}[dtype]
    file(
        tmp_path / "net.onnx",
        nodes,
        ["n", 3],
        ["n", 2],
        dict(zip("abcd", arrays, strict=True)),
        kind,
    )
    result = CliRunner().invoke(
        app, ["compress", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "small.onnx")]
    )
    assert result.exit_code == 0, result.output
    assert read_network(tmp_path / "small.onnx").dtype == dtype
    small = onnx.load(tmp_path / "small.onnx")
    assert {
        tensor.data_type
        for tensor in small.graph.initializer
        if tensor.data_type != TensorProto.INT64
    } == {kind}
    x = torch.rand(20, 3, dtype=torch.float64).to(dtype).numpy()
    seen = onnxruntime.InferenceSession(tmp_path / "small.onnx").run(None, {"input": x})[0]
    np.testing.assert_allclose(seen, run(tmp_path / "net.onnx", x), rtol=within, atol=within)


def test_every_activation_in_double_is_double(tmp_path: Path) -> None:
    """Thresholds beyond which torch takes a shortcut are none of the file's."""
    names: dict[str, Callable[[Tensor], Tensor]] = {
        "Relu": torch.relu,
        "LeakyRelu": nn.LeakyReLU(float(np.float32(0.01))),
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Elu": nn.ELU(),
        "Softplus": lambda t: torch.log1p(torch.exp(-t.abs())) + t.clamp_min(0),
    }
    for kind, function in names.items():
        path = file(tmp_path / "net.onnx", [node(kind, "x", "y")], [1, 4], [1, 4], {}, F64)
        x = torch.tensor([[-30.0, 0.5, 19.0, 23.0]], dtype=torch.float64)
        torch.testing.assert_close(read_onnx(path)(x), function(x), rtol=1e-12, atol=1e-12)
