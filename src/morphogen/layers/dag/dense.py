"""A DAG of neurons evaluated as one operation, `dag(x, weight, bias, layout)`, its memory that of
its values.

Values stand feature-major, the inputs first, so that what a block of nodes reads is a prefix: one
matrix product for a block, then the block's own nodes one after another (`kernels/dag.py` on a CPU;
elsewhere by fixed point, which ends exactly since a block has no cycle).

Source: the post that proposes to connect every node with every prior node (2017); cascade
correlation, Fahlman & Lebiere 1990, for the wiring; Song et al. 2021 (arXiv 2002.03629) for the
fixed point.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from morphogen.layers.kernels.threads import shared
from morphogen.layers.linked_op import KINDS
from morphogen.layers.orders import further, gradient, one_by_one, refuse_forward_mode, transformed

SOLVERS = ("auto", "native", "jacobi", "loop")


@dataclass(frozen=True)
class Layout:
    """Nodes in blocks over a flat weight: for each block a panel (size, what stands before it),
    then, with `inner`, the strict lower triangle of the block, row after row, without its zeros.
    linked: each node puts out two values, linked.
    """

    inputs: int
    blocks: tuple[int, ...]
    inner: bool = True
    activation: str = "relu"
    linked: bool = False

    @property
    def width(self) -> int:
        """Values that a node puts out."""
        return 2 if self.linked else 1

    @property
    def nodes(self) -> int:
        return sum(self.blocks)

    @property
    def values(self) -> int:
        """Rows of values: inputs, then what the nodes put out."""
        return self.inputs + self.width * self.nodes

    @property
    def weights(self) -> int:
        """Entries of the flat weight."""
        return sum(panel + triangle for panel, triangle in self.sizes())

    def sizes(self) -> Iterator[tuple[int, int]]:
        """(entries of the panel, of the triangle) of each block."""
        before = self.inputs
        for size in self.blocks:
            yield size * before, self.width * size * (size - 1) // 2 if self.inner else 0
            before += self.width * size

    def parts(self, weight: Tensor) -> "list[Part]":
        """Views of a flat tensor, a block each."""
        parts = []
        at = 0
        node = 0
        before = self.inputs
        for size, (entries, inner) in zip(self.blocks, self.sizes(), strict=True):
            middle = at + entries
            panel = weight[at:middle].view(size, before)
            triangle = weight[middle : middle + inner]
            parts.append(Part(node, size, before, panel, triangle))
            at = middle + inner
            node = node + size
            before = before + self.width * size
        return parts


@dataclass(frozen=True)
class Part:
    """One block: its first node, how many, the rows of values before it, and its weights."""

    node: int
    size: int
    before: int
    panel: Tensor
    triangle: Tensor

    def rows(self, width: int) -> slice:
        """Of what its nodes put out."""
        return slice(self.before, self.before + width * self.size)

    @property
    def nodes(self) -> slice:
        return slice(self.node, self.node + self.size)


def dag(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    layout: Layout,
    solver: str = "auto",
    places: Tensor | None = None,
) -> Tensor:
    """The inputs and the values of all nodes, (layout.values, batch), of rows x (batch, inputs).

    weight: flat, `layout.weights` entries, or some of them, at `places`, zeros elsewhere; bias:
    (nodes). solver: "native" (compiled, CPU), "jacobi" (fixed point inside each block), "loop"
    (node by node, for comparison), "auto" (native where it can). Derivatives of any order, in
    either direction; all but the first backward pass go by `plain`, node by node.
    """
    if transformed():
        return plain(x, weight, bias, layout, places)
    about = layout.inputs, layout.blocks, layout.inner, layout.activation, layout.linked, solver
    values: Tensor = _FORWARD(x, weight, bias, places, *about)[0]
    return values


def scatter(weight: Tensor, places: Tensor | None, layout: Layout) -> Tensor:
    """The whole flat weight."""
    return (
        weight if places is None else weight.new_zeros(layout.weights).index_copy(0, places, weight)
    )


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, layout: Layout, places: Tensor | None = None
) -> Tensor:
    """`dag` by operations that PyTorch differentiates in every way, a few for each node."""
    values = x.T
    for part in layout.parts(scatter(weight, places, layout)):
        sums = torch.addmm(bias[part.nodes, None], part.panel, values)
        if layout.inner:
            matrix = inside(layout, part)
            rows = [activate(layout.activation, layout.linked, sums[:1])]
            for j in range(1, part.size):
                z = sums[j : j + 1] + matrix[j : j + 1, : layout.width * j] @ torch.cat(rows)
                rows.append(activate(layout.activation, layout.linked, z))
            values = torch.cat([values, *rows])
        else:
            values = torch.cat([values, activate(layout.activation, layout.linked, sums)])
    return values


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    places: Tensor | None,
    inputs: int,
    blocks: Sequence[int],
    inner: bool,
    activation: str,
    linked: bool,
    solver: str,
) -> tuple[Tensor, Tensor]:
    """(all values, the sums that the backward pass needs: none for ReLU)."""
    refuse_forward_mode("dag")
    layout = Layout(inputs, tuple(blocks), inner, activation, linked)
    values = x.new_empty(layout.values, len(x))
    values[:inputs] = x.T
    kept = activation != "relu"
    sums = x.new_empty(layout.nodes if kept else 0, len(x))
    scratch = None if kept else x.new_empty(max(layout.blocks, default=0), len(x))
    solve = _SOLVERS[_solver(solver, x, activation)][0]
    for part in layout.parts(scatter(weight, places, layout)):
        own = sums[part.nodes] if scratch is None else scratch[: part.size]
        torch.addmm(bias[part.nodes, None], part.panel, values[: part.before], out=own)
        solve(layout, part, own, values[part.rows(layout.width)])
    return values, sums


def _backward(
    gradient: Tensor,
    weight: Tensor,
    places: Tensor | None,
    values: Tensor,
    sums: Tensor,
    inputs: int,
    blocks: Sequence[int],
    inner: bool,
    activation: str,
    linked: bool,
    solver: str,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (of no row unless `whole`), weight and bias, from that of all values."""
    refuse_forward_mode("dag_backward")
    layout = Layout(inputs, tuple(blocks), inner, activation, linked)
    first = 0 if whole else inputs  # row of values whose gradient is wanted
    flowing = gradient[first:].clone(memory_format=torch.contiguous_format)
    deltas = values.new_empty(layout.nodes, values.shape[1])
    weight = scatter(weight, places, layout)
    by_weight = torch.empty_like(weight)
    solve = _SOLVERS[_solver(solver, values, activation)][1]
    parts = zip(layout.parts(weight), layout.parts(by_weight), strict=True)
    for part, own in reversed(list(parts)):
        rows = part.rows(layout.width)
        delta = deltas[part.nodes]
        own_sums = sums[part.nodes] if len(sums) else sums
        own_flowing = flowing[rows.start - first : rows.stop - first]
        solve(layout, part, own_sums, values[rows], own_flowing, delta)
        # before += panel' delta,   panel's gradient = delta before',   triangle's = delta values'
        before = flowing[: part.before - first]
        torch.addmm(before, part.panel[:, first:].T, delta, out=before)
        torch.mm(delta, values[: part.before].T, out=own.panel)
        if inner:
            index = tril_index(part.size, layout.width, delta.device)
            torch.take(delta @ values[rows].T, index, out=own.triangle)
    back = flowing[: inputs - first].T.contiguous() if whole else flowing.new_empty(0, inputs)
    return back, by_weight if places is None else by_weight[places], deltas.sum(1)


@lru_cache(maxsize=32)
def tril_index(size: int, width: int, device: torch.device) -> Tensor:
    """Places of the triangle's entries in a (size, width * size) matrix."""
    row, column = (
        torch.ones(size, size, device=device)
        .tril(-1)
        .repeat_interleave(width, 1)
        .nonzero(as_tuple=True)
    )
    return row * (width * size) + column


# Solvers: (layout, part, sums, values) writes the values of a block. Back: (layout, part, sums,
# values, gradients, deltas) adds to the gradients of the block's values what flows inside the
# block, and writes the gradients of its sums.


def _native(layout: Layout, part: Part, sums: Tensor, values: Tensor) -> None:
    arrays = [t.detach().numpy() for t in (part.triangle, sums, values)]
    run = bind(kernels().solve, layout.activation, layout.linked, layout.inner, *arrays, part.size)
    shared(run, sums.shape[1], COLUMNS)


def _native_back(
    layout: Layout, part: Part, sums: Tensor, values: Tensor, gradients: Tensor, deltas: Tensor
) -> None:
    arrays = [t.detach().numpy() for t in (part.triangle, sums, values, gradients, deltas)]
    run = bind(
        kernels().solve_back, layout.activation, layout.linked, layout.inner, *arrays, part.size
    )
    shared(run, values.shape[1], COLUMNS)


def bind(kernel: Callable[..., Any], activation: str, *arguments: Any) -> Callable[[int, int], Any]:
    """A loop of `kernels()` over some columns."""
    number = kernels().NUMBERS[activation]
    return lambda begin, end: kernel(number, *arguments, begin, end)


COLUMNS = 64  # of the batch, that are worth a thread


@lru_cache(maxsize=1)
def kernels() -> Any:
    """Compiled at first use."""
    return import_module("morphogen.layers.dag.kernels")


def _jacobi(layout: Layout, part: Part, sums: Tensor, values: Tensor) -> None:
    """Repeat h <- g(z + L h) until nothing changes: at the latest after as many turns as there are
    nodes, since L^size = 0.
    """
    matrix = inside(layout, part)
    z = sums
    values.copy_(activate(layout.activation, layout.linked, z))
    for turn in range(part.size if layout.inner else 0):
        z = torch.addmm(sums, matrix, values)
        new = activate(layout.activation, layout.linked, z)
        still = turn % 4 == 3 and torch.equal(new, values)  # a look waits for the device
        values.copy_(new)
        if still:
            break
    sums.copy_(z)


def _jacobi_back(
    layout: Layout, part: Part, sums: Tensor, values: Tensor, gradients: Tensor, deltas: Tensor
) -> None:
    matrix = inside(layout, part)
    z = sums_of(layout.activation, layout.linked, sums, values)
    delta = activate_backward(layout.activation, layout.linked, z, gradients)
    total = gradients
    for turn in range(part.size if layout.inner else 0):
        total = torch.addmm(gradients, matrix.T, delta)
        new = activate_backward(layout.activation, layout.linked, z, total)
        still = turn % 4 == 3 and torch.equal(new, delta)
        delta = new
        if still:
            break
    gradients.copy_(total)
    deltas.copy_(delta)


def _loop(layout: Layout, part: Part, sums: Tensor, values: Tensor) -> None:
    matrix = inside(layout, part)
    for j in range(part.size):
        end = layout.width * j
        if layout.inner:
            sums[j] += matrix[j, :end] @ values[:end]
        values[end : end + layout.width] = activate(
            layout.activation, layout.linked, sums[j : j + 1]
        )


def _loop_back(
    layout: Layout, part: Part, sums: Tensor, values: Tensor, gradients: Tensor, deltas: Tensor
) -> None:
    matrix = inside(layout, part)
    z = sums_of(layout.activation, layout.linked, sums, values)
    for j in reversed(range(part.size)):
        end = layout.width * j
        deltas[j : j + 1] = activate_backward(
            layout.activation, layout.linked, z[j : j + 1], gradients[end : end + layout.width]
        )
        if layout.inner:
            gradients[:end] += matrix[j, :end, None] * deltas[j]


_SOLVERS: dict[str, tuple[Callable[..., None], Callable[..., None]]] = {
    "native": (_native, _native_back),
    "jacobi": (_jacobi, _jacobi_back),
    "loop": (_loop, _loop_back),
}


def _solver(name: str, t: Tensor, activation: str) -> str:
    return name if name != "auto" else "native" if native(t, activation) else "jacobi"


def native(t: Tensor, activation: str) -> bool:
    """Whether there is a compiled loop."""
    return t.device.type == "cpu" and (
        t.dtype == torch.float32 or (t.dtype == torch.float64 and activation == "relu")
    )


def inside(layout: Layout, part: Part) -> Tensor:
    """The weights inside a block, (size, width * size), with their zeros."""
    full = part.panel.new_zeros(part.size * layout.width * part.size)
    if layout.inner:
        full = full.index_copy(0, tril_index(part.size, layout.width, full.device), part.triangle)
    return full.view(part.size, layout.width * part.size)


def activate(activation: str, linked: bool, z: Tensor) -> Tensor:
    """What nodes put out, (width * nodes, batch), from their sums (nodes, batch)."""
    g = KINDS[activation].value
    return torch.stack((g(z), g(-z)), 1).flatten(0, 1) if linked else g(z)


def sums_of(activation: str, linked: bool, sums: Tensor, values: Tensor) -> Tensor:
    """A ReLU's sums are read off its values, up to what is cut off."""
    if activation != "relu":
        return sums
    return values[::2] - values[1::2] if linked else values


def activate_backward(activation: str, linked: bool, z: Tensor, gradients: Tensor) -> Tensor:
    """The gradients of sums, from those of what their nodes put out."""
    up, down = (
        (gradients[::2], gradients[1::2]) if linked else (gradients, torch.zeros_like(gradients))
    )
    return KINDS[activation].back(up.contiguous(), down.contiguous(), z)


_ARGUMENTS = "int inputs, int[] blocks, bool inner, str activation, bool linked, str solver"
_FORWARD = torch.library.custom_op(
    "morphogen::dag", _forward, mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor bias, Tensor? places, {_ARGUMENTS}) -> (Tensor, "
           f"Tensor)",
)  # fmt: skip
_BACKWARD = torch.library.custom_op(
    "morphogen::dag_backward", _backward, mutates_args=(),
    schema="(Tensor gradient, Tensor weight, Tensor? places, Tensor values, Tensor sums, "
    f"{_ARGUMENTS}, bool whole) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip


@_FORWARD.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    places: Tensor | None,
    inputs: int,
    blocks: Sequence[int],
    inner: bool,
    activation: str,
    linked: bool,
    solver: str,
) -> tuple[Tensor, Tensor]:
    layout = Layout(inputs, tuple(blocks), inner, activation, linked)
    return x.new_empty(layout.values, x.shape[0]), x.new_empty(
        0 if activation == "relu" else layout.nodes, x.shape[0]
    )


@_BACKWARD.register_fake
def _(
    gradient: Tensor,
    weight: Tensor,
    places: Tensor | None,
    values: Tensor,
    sums: Tensor,
    inputs: int,
    blocks: Sequence[int],
    inner: bool,
    activation: str,
    linked: bool,
    solver: str,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        values.new_empty(values.shape[1] if whole else 0, inputs),
        torch.empty_like(weight),
        values.new_empty(sum(blocks)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weight, bias, places, *ctx.about = inputs
    ctx.save_for_backward(weight, places, *output, bias)
    ctx.mark_non_differentiable(output[1])


def _derive(ctx: Any, above: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    weight, places, values, sums, bias = ctx.saved_tensors
    rest = (None, *(None,) * len(ctx.about))
    if further() and not torch.compiler.is_compiling():
        inputs, blocks, *rest_of_layout, _ = ctx.about
        layout = Layout(inputs, tuple(blocks), *rest_of_layout)
        run = partial(plain, layout=layout, places=places)
        return (
            *gradient(run, (values[:inputs].T, weight, bias), ctx.needs_input_grad[:3], above),
            *rest,
        )
    whole = ctx.needs_input_grad[0]
    x, *others = _BACKWARD(above, weight, places, values, sums, *ctx.about, whole)
    return (x if whole else None, *others, *rest)


_FORWARD.register_autograd(_derive, setup_context=_save)


@_FORWARD.register_vmap
def _(
    info: Any, dims: tuple[Any, ...], *arguments: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Rows of all examples as one batch; weights that differ, one after the other."""
    x, weight, bias, *about = arguments
    if all(d is None for d in dims[1:4]):
        rows = x.movedim(dims[0], 0)
        values, sums = (
            t.unflatten(1, rows.shape[:2])
            for t in _FORWARD(rows.flatten(0, 1), weight, bias, *about)
        )
        return (values, sums), (1, 1)
    return one_by_one(_FORWARD)(info, dims, *arguments)  # type: ignore[no-any-return]


_BACKWARD.register_vmap(one_by_one(_BACKWARD))
