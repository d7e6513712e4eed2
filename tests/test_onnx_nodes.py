"""Every operator over the cases that the onnx package ships: what is read makes what is stored, or
is refused by name.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from morphogen.errors import MorphogenError
from morphogen.formats.onnx_operators import OPERATORS
from morphogen.formats.onnx_reader import OnnxNet, read_onnx

FOLDERS = ("simple", "pytorch-operator", "pytorch-converted")
Case = tuple[str, onnx.ModelProto, list, object]


def shipped() -> Iterator[Case]:
    """(name, model, inputs, first output) of every case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            if case.model is not None:
                given, made = case.data_sets[0]
                yield case.name, case.model, list(given), made[0]
    for kind in FOLDERS:
        for folder in sorted((Path(onnx.backend.test.__file__).parent / "data" / kind).iterdir()):
            data = folder / "test_data_set_0"
            if "sequence" in folder.name or "strnorm" in folder.name:
                continue  # no tensors of numbers
            inputs = sorted(data.glob("input_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
            arrays = [numpy_helper.to_array(onnx.load_tensor(str(path))) for path in inputs]
            yield (
                folder.name,
                onnx.load(folder / "model.onnx"),
                arrays,
                numpy_helper.to_array(onnx.load_tensor(str(data / "output_0.pb"))),
            )


@cache
def cases() -> list[Case]:
    return list(shipped())


def alone(model: onnx.ModelProto, arrays: list, free: int) -> onnx.ModelProto:
    """The model as one of the input `free` and the first output; the other inputs are stored."""
    held = onnx.ModelProto()
    held.CopyFrom(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [entry for entry in model.graph.input if entry.name not in stored]
    del held.graph.input[:], held.graph.output[1:]
    for place, (entry, array) in enumerate(zip(given, arrays, strict=True)):
        if place == free:
            held.graph.input.append(entry)
        else:
            held.graph.initializer.append(numpy_helper.from_array(np.asarray(array), entry.name))
    return held


def as_read(net: OnnxNet, array: np.ndarray) -> np.ndarray:
    """What the network makes of a file's input, in the file's shape."""
    with torch.no_grad():
        y = net(torch.from_numpy(array.copy()).reshape(-1, *net.shape))
    return (y.reshape(net.result) if net.batch == 1 else y).numpy()


def outcome(model: onnx.ModelProto, array: np.ndarray, wanted: np.ndarray, path: Path) -> str:
    path.write_bytes(model.SerializeToString())
    try:
        net = read_onnx(path)
    except MorphogenError as error:
        return f"refused: {error}"
    seen = as_read(net, array)
    return (
        "equal"
        if seen.shape == wanted.shape
        and np.allclose(seen, wanted, rtol=1e-3, atol=1e-6, equal_nan=True)
        else "wrong"
    )


def test_every_operator_is_equal_or_refused_by_name(tmp_path: Path) -> None:
    found, shown = {}, set()
    for name, model, given, wanted in cases():
        kinds = {node.op_type for node in model.graph.node}
        if not kinds <= set(OPERATORS) or not isinstance(wanted, np.ndarray | np.generic):
            continue
        for free, array in enumerate(given):
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                held = alone(model, given, free)
                found[name, free] = outcome(held, array, np.asarray(wanted), tmp_path / "net.onnx")
                shown |= kinds if found[name, free] == "equal" else set()
    assert [key for key, said in found.items() if said == "wrong"] == []
    refused = {key: said for key, said in found.items() if said != "equal"}
    assert len(refused) < len(found) / 3
    # what is greater is no number; `test_activations` has it in front of a Where
    assert shown == set(OPERATORS) - {"Greater"}


def test_whatever_is_in_a_file_is_read_or_refused(tmp_path: Path) -> None:
    """The same of operators that have no row: an error of ours, which names the operator."""
    others = [
        case
        for case in cases()
        if not {node.op_type for node in case[1].graph.node} <= set(OPERATORS)
    ]
    assert len(others) > 1000
    for number, (name, model, _, _) in enumerate(others):
        if number % 20:
            continue
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(MorphogenError) as raised:
            read_onnx(tmp_path / "net.onnx")
        assert "net.onnx" in str(raised.value), name
