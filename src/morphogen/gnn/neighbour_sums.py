"""Sums over neighbours as an operation that PyTorch knows: `neighbour_sums(adjacency, x)`.

Its backward pass is a sum along the transpose, which is at hand. Float32 and float64 on a CPU take
a compiled loop (`kernels.py`), everything else PyTorch's own sparse product.
"""

from typing import Any

import torch
from torch import Tensor

from morphogen.errors import Unsupported
from morphogen.gnn.adjacency import Adjacency
from morphogen.gnn.rows import ARGUMENTS, compilable, hearing, run
from morphogen.layers.orders import refuse_forward_mode, transformed


def neighbour_sums(
    adjacency: Adjacency, x: Tensor, rows: Tensor | None = None, columns: Tensor | None = None
) -> Tensor:
    """y[u] = rows[u] sum of columns[v] x[v] over those v that u hears: diag(rows) A diag(columns)
    x.

    x: (nodes, features). rows, columns: (nodes,), None for ones; they get no gradient. Can be
    differentiated any number of times.
    """
    if transformed():
        return _plain(adjacency, x, rows, columns)
    result: Tensor = _FORWARD(*adjacency, x, rows, columns)
    return result


def _plain(adjacency: Adjacency, x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """By operations that PyTorch differentiates in every way."""
    heard = x if columns is None else columns[:, None] * x
    summed = torch.zeros_like(x).index_add(0, hearing(adjacency), heard[adjacency.indices.long()])
    return summed if rows is None else rows[:, None] * summed


def _forward(
    indptr: Tensor,
    indices: Tensor,
    into_indptr: Tensor,
    into_indices: Tensor,
    x: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
) -> Tensor:
    refuse_forward_mode("neighbour_sums")
    if not compilable(x):
        ones = x.new_ones(len(indices))
        matrix = torch.sparse_csr_tensor(indptr, indices.long(), ones, (len(x), len(x)))
        summed = matrix @ (x if columns is None else columns[:, None] * x)
        return summed if rows is None else rows[:, None] * summed
    x = x.contiguous()
    out = torch.empty_like(x)
    none = x.new_empty(0)
    scales = (none if scale is None else scale.contiguous() for scale in (rows, columns))
    run("sums", (indptr, indices, *scales, x, out))
    return out


_FORWARD = torch.library.custom_op(
    "morphogen::neighbour_sums", _forward, mutates_args=(),
    schema=f"({ARGUMENTS}, Tensor x, Tensor? rows, Tensor? columns) -> Tensor",
)  # fmt: skip


@_FORWARD.register_fake
def _(*given: Any) -> Tensor:
    return torch.empty_like(given[4], memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *wiring, _, rows, columns = inputs
    ctx.save_for_backward(*wiring, rows, columns)


def _derive(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
    indptr, indices, into_indptr, into_indices, rows, columns = ctx.saved_tensors
    transpose = Adjacency(into_indptr, into_indices, indptr, indices)
    return None, None, None, None, neighbour_sums(transpose, above, columns, rows), None, None


_FORWARD.register_autograd(_derive, setup_context=_save)


@_FORWARD.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
    """All examples side by side, as more features."""
    *wiring, x, rows, columns = given
    if any(dim is not None for place, dim in enumerate(dims) if place != 4):
        raise Unsupported("neighbour_sums: under vmap, x alone may have a batch of examples")
    side = x.movedim(dims[4], 1).flatten(1)
    summed = _FORWARD(*wiring, side, rows, columns)
    return summed.unflatten(1, (info.batch_size, -1)).movedim(1, 0), 0
