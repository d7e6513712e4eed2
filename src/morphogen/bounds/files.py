"""Whether an ONNX file's network can do what a VNN-LIB file forbids: `verify_file(network, property, seconds) -> Answer`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from morphogen.bounds.box import Box
from morphogen.bounds.program import program
from morphogen.bounds.unsafe import Unsafe
from morphogen.bounds.verify import verify
from morphogen.errors import DataError
from morphogen.formats.onnx_agreement import replay
from morphogen.formats.onnx_file import load, runner
from morphogen.formats.onnx_reader import OnnxNet, read_onnx
from morphogen.formats.vnnlib import Clause, Property, read_vnnlib

_REPLAY = 1e-6  # by which a counterexample may miss a constraint when the file's own network is run on it


@dataclass(frozen=True)
class Answer:
    """status: "unsat", no input is unsafe; "sat", `witness` (inputs,) is, and `output` what the network makes of it; "unknown".
    bound: every input is safe by at least so much. boxes: how many were bounded."""

    status: str
    bound: float
    witness: np.ndarray | None
    output: np.ndarray | None
    boxes: int
    seconds: float


def verify_file(
    network: str | Path, prop: str | Path, seconds: float = 60.0, tell: Callable[[float, int], None] | None = None
) -> Answer:
    """Search for an input that a VNN-LIB property calls unsafe, in an ONNX file's network, or prove that there is none.

    A counterexample is one only once the file itself, run by onnxruntime, agrees. tell: see `split_inputs`. Raises `DataError`
    where the property is over another number of inputs or outputs than the network has.
    """
    began = time.perf_counter()
    net, wanted = read_onnx(network), read_vnnlib(prop)
    _checked(net, wanted, network, prop)
    steps = program(net, torch.zeros(2, *net.shape))
    least, boxes, status = torch.inf, 0, "unsat"
    for clauses in _alike(wanted):
        left = seconds - (time.perf_counter() - began)
        unsafe = [Unsafe(torch.tensor(clause.rows), torch.tensor(clause.limits)) for clause in clauses]
        found = verify(steps, _box(clauses[0], net), unsafe, left, tell)
        boxes, least = boxes + found.boxes, min(least, found.bound)
        if found.witness is not None:
            witness, output = _replayed(Path(network), net, found.witness)
            if any(bool((clause.rows @ output <= clause.limits + _REPLAY).all()) for clause in clauses):
                return Answer("sat", found.bound, witness, output, boxes, time.perf_counter() - began)
        if found.status != "unsat":
            status = "unknown"
    return Answer(status, least, None, None, boxes, time.perf_counter() - began)


def _alike(wanted: Property) -> list[list[Clause]]:
    """Clauses over one box together."""
    groups: dict[tuple[bytes, bytes], list[Clause]] = {}
    for clause in wanted.clauses:
        groups.setdefault((clause.lower.tobytes(), clause.upper.tobytes()), []).append(clause)
    return list(groups.values())


def _box(clause: Clause, net: OnnxNet) -> Box:
    return Box(*(torch.tensor(end).view(1, *net.shape) for end in (clause.lower, clause.upper)))


def _checked(net: OnnxNet, wanted: Property, network: str | Path, prop: str | Path) -> None:
    inputs, outputs = int(np.prod(net.shape)), net(torch.zeros(1, *net.shape, dtype=net.dtype)).numel()
    if (inputs, outputs) != (wanted.inputs, wanted.outputs):
        raise DataError(
            f"{prop} is over {wanted.inputs} inputs and {wanted.outputs} outputs, {network} has {inputs} and {outputs}; give "
            "the property of this network"
        )


def _replayed(path: Path, net: OnnxNet, witness: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(the input in the file's precision, what onnxruntime makes of it)."""
    x = witness.to(net.dtype)
    y = replay(net, runner(load(path)), x[None], net.batch or 1)
    return x.numpy().ravel(), y.numpy().ravel()
