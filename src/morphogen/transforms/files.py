"""Networks in files, for the commands: `read`, `domain`, `write`."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box, around
from morphogen.bounds.program import dtype_of, program
from morphogen.data.tables import read_table
from morphogen.errors import DataError, Unsupported
from morphogen.formats.onnx import export_onnx
from morphogen.formats.onnx_reader import read_onnx
from morphogen.formats.pt2 import read_pt2, write_pt2
from morphogen.record import Certificate, write_atomic
from morphogen.transforms.modules import modules


@dataclass(frozen=True)
class Network:
    """A file's network as ordinary modules in float64. shape: of one example. dtype: the precision that the file has."""

    model: nn.Module
    shape: tuple[int, ...]
    dtype: torch.dtype


def read(path: Path, trust: bool = False) -> Network:
    """The network of a .onnx or .pt2 file.

    trust: read a .pt2 file also where that may run code which is in it, see `formats.pt2.read_pt2`.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "onnx":
        net = read_onnx(path)
        return Network(modules(program(net, torch.zeros(2, *net.shape))), net.shape, net.dtype)
    if kind != "pt2":
        raise DataError(f"{path}: not a .onnx or .pt2 file; export the network with torch.onnx.export or torch.export.save")
    exported = read_pt2(path, trust)
    inputs = exported.graph_signature.user_inputs
    if len(inputs) != 1:
        raise Unsupported(f"{path}: {len(inputs)} inputs; a network of one can be read")
    node = next(node for node in exported.graph.nodes if node.name == inputs[0])
    sizes = tuple(node.meta["val"].shape)
    if isinstance(sizes[0], int):
        raise Unsupported(
            f"{path}: was exported for batches of {sizes[0]}; export it with dynamic_shapes=({{0: torch.export.Dim('batch')}},)"
        )
    shape = tuple(int(size) for size in sizes[1:])
    model = exported.module()
    return Network(modules(program(model, torch.zeros(2, *shape))), shape, dtype_of(model))


def domain(text: str, shape: tuple[int, ...]) -> tuple[Box, Tensor | None]:
    """(a box of inputs of this shape, the data it is around): "LOW,HIGH" for all inputs, or a CSV or Parquet file of as many
    columns as there are inputs, whose rows it just holds."""
    ends = text.split(",")
    if len(ends) == 2 and all(map(_number, ends)):
        low, high = map(float, ends)
        if not -math.inf < low <= high < math.inf:
            raise DataError(f"--domain {text}: give two finite numbers, the lower one first")
        return Box(torch.full((1, *shape), low), torch.full((1, *shape), high)), None
    rows = points(Path(text), shape)
    return around(rows), rows


def points(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Examples (rows, *shape) from a table of numbers."""
    if not path.exists():
        raise DataError(f"--domain {path}: neither LOW,HIGH nor a file; give such as 0,1 or data.csv")
    table = read_table(path, numbers=True)
    wanted = int(torch.Size(shape).numel())
    if table.shape[1] != wanted or len(table) == 0:
        raise DataError(f"{path}: {len(table)} rows of {table.shape[1]} columns; the network has {wanted} inputs")
    try:
        values = torch.tensor(table.to_numpy(dtype=float))
    except ValueError as error:
        raise DataError(f"{path}: {error}; give numbers alone") from error
    if not bool(values.isfinite().all()):
        raise DataError(f"{path}: has gaps or infinite numbers; give complete rows")
    found: Tensor = values.unflatten(1, shape)
    return found


def write(
    model: nn.Module, original: nn.Module, shape: tuple[int, ...], path: Path, certificate: Certificate, box: Box
) -> Certificate:
    """Write a network (.onnx or .pt2) and, beside it, PATH.certificate.json. Returns how the file's network, in its own
    precision, differs from the original one in float64."""
    inputs = _inputs(box, 64)
    example = inputs.to(dtype_of(model))
    if path.suffix == ".onnx":
        error = export_onnx(model, example, path).max_error
    elif path.suffix == ".pt2":
        write_pt2(model, example, path)
        with torch.no_grad():
            error = float((read_pt2(path).module()(example) - model(example)).abs().max())
    else:
        raise DataError(f"{path}: give a name that ends in .onnx or .pt2")
    with torch.no_grad():
        error += float((model(example) - original(inputs)).abs().max())
    kind = str(dtype_of(model)).removeprefix("torch.")
    seen = Certificate("measured", error, None, False, f"the file in {kind} against the original in float64 on 64 inputs")
    told: dict[str, Any] = {**asdict(certificate), "file": asdict(seen)}
    write_atomic(path.with_name(f"{path.name}.certificate.json"), json.dumps(told, indent=1) + "\n")
    return seen


def size(model: nn.Module, box: Box) -> float:
    """The largest output on the box as far as 1,000 inputs show."""
    with torch.no_grad():
        return float(model(_inputs(box, 1000)).abs().max())


def _inputs(box: Box, count: int) -> Tensor:
    return box.points(count, count // 2)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
