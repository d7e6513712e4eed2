"""Whether an ONNX file's network can do what a VNN-LIB file forbids: `verify_file(network, property, seconds) -> Answer`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from morphogen.bounds.box import Box
from morphogen.bounds.program import program
from morphogen.bounds.unsafe import Unsafe
from morphogen.bounds.verify import verify
from morphogen.deadline import Deadline, OutOfTime, deadline
from morphogen.errors import DataError
from morphogen.formats.compressed import read_bytes
from morphogen.formats.onnx_reader import OnnxNet, read_onnx
from morphogen.formats.vnnlib import Clause, Property, read_vnnlib

_REPLAY = 1e-6  # by which a counterexample may miss a constraint when the file's own network is run on it, in float32


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
    network: str | Path, prop: str | Path, seconds: float | Deadline = 60.0, tell: Callable[[float, int], None] | None = None
) -> Answer:
    """Search for an input that a VNN-LIB property calls unsafe, in an ONNX file's network, or prove that there is none.

    A counterexample is one only once the file itself, run by onnxruntime, agrees. seconds: for all of it, reading the files too,
    or a deadline; then it is "unknown". tell: see `split_inputs`. Raises `DataError` where the property is over another number of inputs or outputs than the network has.
    """
    until = deadline(seconds)
    began = until.now()
    net, wanted = read_onnx(network), read_vnnlib(prop)
    least, boxes, status = torch.inf, 0, "unsat"
    try:
        _checked(net, wanted, network, prop)
        steps = program(net, torch.zeros(2, *net.shape), until=until)
        for clauses in _alike(wanted):
            until.check()
            unsafe = [Unsafe(torch.tensor(clause.rows), torch.tensor(clause.limits)) for clause in clauses]
            found = verify(steps, _box(clauses[0], net), unsafe, until, tell)
            boxes, least = boxes + found.boxes, min(least, found.bound)
            if found.witness is not None:
                witness, output = _replayed(Path(network), net, found.witness)
                if any(bool((clause.rows @ output <= clause.limits + _REPLAY).all()) for clause in clauses):
                    return Answer("sat", found.bound, witness, output, boxes, until.now() - began)
            if found.status != "unsat":
                status = "unknown"
    except OutOfTime:
        least, status = -torch.inf, "unknown"  # there are inputs that were not looked at
    return Answer(status, least, None, None, boxes, until.now() - began)


def _alike(wanted: Property) -> list[list[Clause]]:
    """Clauses over one box together."""
    groups: dict[tuple[bytes, bytes], list[Clause]] = {}
    for clause in wanted.clauses:
        groups.setdefault((clause.lower.tobytes(), clause.upper.tobytes()), []).append(clause)
    return list(groups.values())


def _box(clause: Clause, net: OnnxNet) -> Box:
    return Box(*(torch.tensor(end).view(1, *net.shape) for end in (clause.lower, clause.upper)))


def _checked(net: OnnxNet, wanted: Property, network: str | Path, prop: str | Path) -> None:
    inputs, outputs = int(np.prod(net.shape)), net(torch.zeros(1, *net.shape)).numel()
    if (inputs, outputs) != (wanted.inputs, wanted.outputs):
        raise DataError(
            f"{prop} is over {wanted.inputs} inputs and {wanted.outputs} outputs, {network} has {inputs} and {outputs}; give "
            "the property of this network"
        )


def _replayed(path: Path, net: OnnxNet, witness: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(the input in float32, what onnxruntime makes of it)."""
    onnxruntime = import_module("onnxruntime")  # slow to load, and needed for counterexamples alone
    session = onnxruntime.InferenceSession(read_bytes(path))
    given = session.get_inputs()[0]
    x = witness.to(torch.float32).numpy().ravel()
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in given.shape]
    (y,) = session.run(None, {given.name: x.reshape(shape)})
    return x, np.asarray(y, dtype=np.float64).ravel()
