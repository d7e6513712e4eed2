"""Networks in files: `read_network`, `write_network`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.certify import difference
from morphogen.errors import DataError, Unsupported
from morphogen.formats.modules import modules
from morphogen.formats.onnx import export_onnx
from morphogen.formats.onnx_reader import read_onnx
from morphogen.formats.pt2 import read_pt2, write_pt2
from morphogen.record import Certificate, write_atomic
from morphogen.tracing.program import dtype_of, program


@dataclass(frozen=True)
class Network:
    """A file's network as ordinary modules in float64. shape: of one example. dtype: the precision
    that the file has.
    """

    model: nn.Module
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_network(path: Path, trust: bool = False) -> Network:
    """The network of a .onnx or .pt2 file.

    trust: read a .pt2 file also where that may run code which is in it, see `formats.pt2.read_pt2`.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "onnx":
        net = read_onnx(path)
        return Network(modules(program(net, torch.zeros(2, *net.shape))), net.shape, net.dtype)
    if kind != "pt2":
        raise DataError(
            f"{path}: not a .onnx or .pt2 file; export the network with torch.onnx.export or "
            "torch.export.save"
        )
    exported = read_pt2(path, trust)
    inputs = exported.graph_signature.user_inputs
    if len(inputs) != 1:
        raise Unsupported(f"{path}: {len(inputs)} inputs; a network of one can be read")
    node = next(node for node in exported.graph.nodes if node.name == inputs[0])
    sizes = tuple(node.meta["val"].shape)
    if isinstance(sizes[0], int):
        raise Unsupported(
            f"{path}: was exported for batches of {sizes[0]}; export it with dynamic_shapes=({{0: "
            "torch.export.Dim('batch')},)"
        )
    shape = tuple(int(size) for size in sizes[1:])
    model = exported.module()
    return Network(modules(program(model, torch.zeros(2, *shape))), shape, dtype_of(model))


def write_network(
    model: nn.Module, original: nn.Module, inputs: Tensor, path: Path, certificate: Certificate
) -> Certificate:
    """Write a network (.onnx or .pt2) and, beside it, PATH.certificate.json. inputs: (n, *shape),
    in float64. Returns how the file's network, in its own precision, differs from the original one
    in float64 on them.
    """
    example = inputs.to(dtype_of(model))
    if path.suffix == ".onnx":
        error = export_onnx(model, example, path).max_error
    elif path.suffix == ".pt2":
        write_pt2(model, example, path)
        with torch.no_grad():
            error = difference(model(example), read_pt2(path).module()(example))
    else:
        raise DataError(f"{path}: give a name that ends in .onnx or .pt2")
    with torch.no_grad():
        error += difference(original(inputs), model(example))
    kind = str(dtype_of(model)).removeprefix("torch.")
    seen = Certificate(
        "measured",
        error,
        None,
        False,
        f"the file in {kind} against the original in float64 on {len(inputs)} inputs",
    )
    record: dict[str, Any] = {**asdict(certificate), "file": asdict(seen)}
    write_atomic(
        path.with_name(f"{path.name}.certificate.json"), json.dumps(record, indent=1) + "\n"
    )
    return seen


def largest_output(model: nn.Module, inputs: Tensor) -> float:
    """By size, on some inputs."""
    with torch.no_grad():
        return float(model(inputs).abs().max())
