"""Whether an ONNX file's network can do what a VNN-LIB file forbids: `verify_file(network,
property, seconds) -> Answer`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from morphogen.deadline import Deadline, OutOfTime, deadline
from morphogen.errors import DataError
from morphogen.formats.formula import Case, Ends, arrays
from morphogen.formats.onnx_agreement import replay
from morphogen.formats.onnx_file import load, runner
from morphogen.formats.onnx_reader import OnnxNet, read_onnx
from morphogen.formats.vnnlib import Property, read_vnnlib
from morphogen.tracing.program import program
from morphogen.verification.formulas import search

# by which a counterexample may miss a constraint when the file's own network is run on it
_REPLAY = 1e-6


@dataclass(frozen=True)
class Answer:
    """status: "unsat", no input is unsafe; "sat", `witness` (inputs,) is, and `output` what the
    network makes of it; "unknown". bound: every input is safe by at least so much. boxes: how many
    were bounded. written: the witness in decimals, which lie in the box as the property writes it.
    """

    status: str
    bound: float
    witness: np.ndarray | None
    output: np.ndarray | None
    boxes: int
    seconds: float
    written: tuple[str, ...] = ()


def verify_file(
    network: str | Path,
    prop: str | Path,
    seconds: float | Deadline = 60.0,
    callback: Callable[[float, int], None] | None = None,
) -> Answer:
    """Search for an input that a VNN-LIB property calls unsafe, in an ONNX file's network, or prove
    that there is none.

    A counterexample is one only once the file itself, run by onnxruntime, agrees. seconds: for all
    of it, reading the files too, or a deadline; then it is "unknown". callback: see `split_inputs`.
    Raises `DataError` where the property is over another number of inputs or outputs than the
    network has.
    """
    until = deadline(seconds)
    began = until.now()
    try:
        net = read_onnx(network, until)
        wanted = read_vnnlib(prop, until)
        # over all that the file takes at once
        if net.batch > 1 and wanted.inputs == net.batch * int(np.prod(net.shape)):
            net = read_onnx(network, until, whole=True)
        _checked(net, wanted, network, prop)
        steps = program(net, torch.zeros(2, *net.shape), until=until)
    except OutOfTime:
        return Answer("unknown", -torch.inf, None, None, 0, until.now() - began)
    if wanted.case is None:
        return Answer("unsat", torch.inf, None, None, 0, until.now() - began)
    seen: list[tuple[np.ndarray, np.ndarray, Ends]] = []

    def agrees(x: torch.Tensor, clauses: Sequence[Case]) -> bool:
        witness, output = _replayed(Path(network), net, x, clauses[0].ends)
        seen.append((witness, output, clauses[0].ends))
        return any(_unsafe(clause, wanted.outputs, output) for clause in clauses)

    answer = search(steps, wanted.case, wanted.outputs, until, agrees, callback)
    spent = until.now() - began
    if answer.status != "sat":
        return Answer(answer.status, answer.bound, None, None, answer.boxes, spent)
    witness, output, ends = seen[-1]
    return Answer(
        "sat", answer.bound, witness, output, answer.boxes, spent, ends.written(witness.tolist())
    )


def inward(
    witness: np.ndarray, lower: np.ndarray, upper: np.ndarray, dtype: np.dtype[Any] | type
) -> np.ndarray:
    """Numbers of a type near a witness (n,) that lie in a box; where the box has none on an edge,
    the one nearest to it.

    lower, upper: (n,), in float64. What is rounded to the nearest number of the type may lie
    outside.
    """
    kind = np.dtype(dtype).type
    with np.errstate(over="ignore"):
        low = lower.astype(kind)
        high = upper.astype(kind)
        low = np.where(low.astype(np.float64) < lower, np.nextafter(low, kind(np.inf)), low)
        high = np.where(high.astype(np.float64) > upper, np.nextafter(high, kind(-np.inf)), high)
        near = np.clip(witness, np.minimum(lower, upper), np.maximum(lower, upper)).astype(kind)
    moved: np.ndarray = np.where(low <= high, np.clip(near, low, high), near)
    return moved


def _unsafe(clause: Case, outputs: int, y: np.ndarray) -> bool:
    """Whether what onnxruntime made of an input is what a clause calls unsafe; what must be below a
    limit is so without a tolerance.
    """
    rows, limits, strict = arrays(clause.rows, outputs)
    surplus = rows @ y - limits
    return bool(np.where(strict, surplus < 0, surplus <= _REPLAY).all())


def _checked(net: OnnxNet, wanted: Property, network: str | Path, prop: str | Path) -> None:
    inputs = int(np.prod(net.shape))
    outputs = net(torch.zeros(1, *net.shape, dtype=net.dtype)).numel()
    if (inputs, outputs) != (wanted.inputs, wanted.outputs):
        raise DataError(
            f"{prop} is over {wanted.inputs} inputs and {wanted.outputs} outputs, {network} has "
            f"{inputs} and {outputs}; give the property of this network"
        )


def _replayed(
    path: Path, net: OnnxNet, witness: torch.Tensor, ends: Ends
) -> tuple[np.ndarray, np.ndarray]:
    """(the input in the file's precision, within its ends as they are written; what onnxruntime
    makes of it).
    """
    kind = torch.empty(0, dtype=net.dtype).numpy().dtype.type
    x = inward(witness.to(torch.float64).numpy().ravel(), *ends.inner, kind)
    y = replay(net, runner(load(path)), torch.from_numpy(x).reshape(1, *net.shape), net.batch or 1)
    return x, y.numpy().ravel()
