"""Whether a network that was read from a file is the file's: `agree(net, run, name)`, asked of
every file, every time.

Both are run on points of several kinds, in the file's own precision. What rounding may explain is
measured on the same points: ours once more, with all that each operation reads off by the file's
rounding.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from morphogen.certify import difference
from morphogen.deadline import NEVER, Deadline
from morphogen.errors import DataError, Unsupported
from morphogen.formats.onnx_build import INPUT

if TYPE_CHECKING:
    from morphogen.formats.onnx_reader import OnnxNet

Run = Callable[[np.ndarray], np.ndarray]

POINTS = 64  # of each kind, of which there are four
_ROOM = 16.0  # times what rounding showed
_AT_ONCE = 2**24  # numbers of one value
# approximated: off by rounding of 1, however small they are
_CURVED = {"Sigmoid", "Tanh", "Elu", "Softplus"}


def points(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs (POINTS, *shape) by kind, the same ones every time."""
    draw = torch.Generator().manual_seed(0)
    normal, far, unit = (
        torch.randn(POINTS, *shape, dtype=torch.float64, generator=draw) for _ in range(3)
    )
    corners = torch.randint(0, 2, (POINTS, *shape), generator=draw).double()
    corners[::2] = 2 * corners[::2] - 1  # of the cube from -1 to 1; the others of the one from 0
    kinds = {"normal": normal, "unit": unit.frac().abs(), "corner": corners, "large": 100 * far}
    return {kind: x.to(dtype) for kind, x in kinds.items()}


@torch.no_grad()
def agree(net: "OnnxNet", run: Run, until: Deadline = NEVER) -> None:
    """Raise `Unsupported` where what onnxruntime makes of the file, `run`, differs by more than
    rounding on some point.
    """
    kinds = points(net.shape, net.dtype)
    x = torch.cat(list(kinds.values()))
    unit = torch.finfo(net.dtype).eps
    held = {
        name: tensor.to(_precision(net))
        for name, tensor in net.named_buffers()
        if tensor.is_floating_point()
    }
    held = {**dict(net.named_buffers()), **held}
    ours = _values(net, held, x, 0.0, until)
    nudged = _values(net, held, x, unit, until)
    places = {kind: slice(place * POINTS, (place + 1) * POINTS) for place, kind in enumerate(kinds)}
    allowed = {
        kind: _ROOM * (_largest((nudged - ours)[at]) + unit * _largest(ours[at]))
        for kind, at in places.items()
    }
    # a file may be made for one example at a time, whatever it says
    for batch in (net.batch,) if net.batch else (len(x), 1):
        theirs = replay(net, run, x, batch, until)
        off = {kind: _difference(ours, theirs, at, kind) for kind, at in places.items()}
        worse = [kind for kind in kinds if not off[kind] <= allowed[kind]]
        if not worse:
            return
    raise Unsupported(
        "the file is read differently from how onnxruntime runs it: largest difference "
        f"{off[worse[0]]:.3g} on inputs of the kind '{worse[0]}', of which rounding explains "
        f"{allowed[worse[0]]:.3g}"
    )


def _precision(net: "OnnxNet") -> torch.dtype:
    """The file's own; half of a word is too little for sums on a processor."""
    return torch.float32 if net.dtype == torch.float16 else net.dtype


def _largest(t: Tensor) -> float:
    return float(t.nan_to_num(0.0, 0.0, 0.0).abs().max())


def _values(
    net: "OnnxNet", held: dict[str, Tensor], x: Tensor, unit: float, until: Deadline
) -> Tensor:
    """The output on a batch, (batch, numbers); with all that is read off by up to `unit` of its
    size, times the root of how many products are added up.
    """
    draw = torch.Generator().manual_seed(0)
    outputs = []
    widest = max(math.prod(shape) for shape in (net.given, *(call.shape for call in net.calls)))
    for part in x.split(max(1, _AT_ONCE // widest)):
        values = {**held, INPUT: part.to(_precision(net))}
        for call, reads in zip(net.calls, net.reads, strict=True):
            until.check()
            given = [values[name] for name in reads]
            far = unit * math.sqrt(_terms(given))
            given = [
                t if name in held else _nudged(t, far, 0.0, draw)
                for name, t in zip(reads, given, strict=True)
            ]
            made = call.run(*given)
            values[call.makes] = _nudged(made, 0.0, unit * (call.kind in _CURVED), draw)
        outputs.append(values[net.made].reshape(len(part), -1))
    return torch.cat(outputs).double()


def _terms(given: list[Tensor]) -> int:
    """How many products an operation may add up for one number: as many as a row of its weight has,
    or its input.
    """
    rows = [t.numel() // len(t) for t in given[1:] if t.dim() > 1]
    return max([1, *rows, *([given[0].numel() // len(given[0])] if len(given) == 1 else [])])


def _nudged(t: Tensor, relative: float, absolute: float, draw: torch.Generator) -> Tensor:
    if not t.is_floating_point() or (not relative and not absolute):
        return t
    noise = torch.rand(t.shape, generator=draw) * 2 - 1
    return t + noise * (relative * t.abs() + absolute)


def replay(net: "OnnxNet", run: Run, x: Tensor, batch: int, until: Deadline = NEVER) -> Tensor:
    """What the file's network makes of x (n, *shape), `batch` examples at once: (n, numbers), in
    float64. Empty where it does not take so many, or what it makes has another shape than ours.
    """
    outputs = []
    for part in x.split(batch):
        until.check()
        rows = torch.cat([part, part.new_zeros(batch - len(part), *part.shape[1:])])
        try:
            y = run(rows.numpy().reshape((batch, *net.given[1:]) if batch > 1 else net.given))
        except DataError:
            if batch == 1:
                raise
            return x.new_empty(0)
        if y.shape != ((batch, *net.result[1:]) if batch > 1 else net.result):
            return x.new_empty(0)
        outputs.append(torch.from_numpy(y.astype(np.float64)).reshape(batch, -1)[: len(part)])
    return torch.cat(outputs)


def _difference(ours: Tensor, theirs: Tensor, at: slice, kind: str) -> float:
    """The largest on some rows; infinite where the shapes differ, or one is no finite number and
    the other is. Large inputs may leave the range of the file's numbers, which ours have not.
    """
    if ours.shape != theirs.shape:
        return math.inf
    ours = ours[at]
    theirs = theirs[at]
    both = ours.isfinite() & theirs.isfinite()
    alike = (ours == theirs) | (ours.isnan() & theirs.isnan()) | both
    if kind != "large" and not bool(alike.all()):
        return math.inf
    return difference(ours[both], theirs[both])
