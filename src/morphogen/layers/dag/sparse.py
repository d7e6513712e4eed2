"""A DAG of neurons with few sources each, as one operation: `sparse_dag(x, weight, bias, wiring)`.

On a CPU each thread takes columns of the batch through all nodes in order, with nothing to wait
for; elsewhere nodes go level by level, a level being those whose sources are all known.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from morphogen.layers.dag.dense import (
    COLUMNS,
    activate,
    activate_backward,
    bind,
    kernels,
    native,
    sums_of,
)
from morphogen.layers.kernels.threads import shared
from morphogen.layers.orders import further, gradient, one_by_one, refuse_forward_mode, transformed


@dataclass(frozen=True)
class Wiring:
    """Who reads whom, by reader and by source. Rows of values are the inputs, then `width` for each
    node.

    indices: rows of values, node after node, rising within a node; indptr (nodes + 1): where each
    node's begin. order, readers, ends (values + 1): the same entries by the row that is read:
    places in `indices`, and the nodes there. levels: of each node, 1 + the highest of its sources,
    inputs being 0.
    """

    indices: Tensor
    indptr: Tensor
    order: Tensor
    readers: Tensor
    ends: Tensor
    levels: Tensor


def wiring(indices: Tensor, indptr: Tensor, inputs: int, width: int = 1) -> Wiring:
    """The rest of a wiring from its first two parts (int64)."""
    reader = reader_of(indptr)
    order = torch.argsort(indices, stable=True)
    counts = torch.bincount(indices, minlength=inputs + width * (len(indptr) - 1))
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return Wiring(
        indices, indptr, order, reader[order], ends, levels(indices, indptr, inputs, width)
    )


def reader_of(indptr: Tensor) -> Tensor:
    """The node of each entry."""
    return torch.repeat_interleave(
        torch.arange(len(indptr) - 1, device=indptr.device), indptr.diff()
    )


def levels(indices: Tensor, indptr: Tensor, inputs: int, width: int = 1) -> Tensor:
    """The level of each node, (nodes,): the longest way to it from an input, 1 for nodes that read
    inputs or nothing.
    """
    level: list[int] = []
    nodes = ((indices - inputs).div(width, rounding_mode="floor")).tolist()
    for first, last in pairwise(indptr.tolist()):
        before = [level[node] for node in nodes[first:last] if node >= 0]
        level.append(1 + max(before, default=0))
    return torch.tensor(level, dtype=torch.int64)


def sparse_dag(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    wiring: Wiring,
    activation: str,
    linked: bool,
    solver: str = "auto",
) -> Tensor:
    """The inputs and the values of all nodes, (inputs + width * nodes, batch), of rows x (batch,
    inputs).

    weight: one for each entry of `wiring.indices`; bias: (nodes). solver: "native", "levels", or
    "auto". Derivatives of any order, in either direction; all but the first backward pass go by
    `plain`, level by level.
    """
    if transformed():
        return plain(x, weight, bias, wiring, activation, linked)
    w = wiring
    values: Tensor = _FORWARD(
        x,
        weight,
        bias,
        w.indices,
        w.indptr,
        w.order,
        w.readers,
        w.ends,
        w.levels,
        activation,
        linked,
        solver,
    )[0]
    return values


def plain(
    x: Tensor, weight: Tensor, bias: Tensor, wiring: Wiring, activation: str, linked: bool
) -> Tensor:
    """`sparse_dag` by operations that PyTorch differentiates in every way, a few for each level."""
    width = 2 if linked else 1
    inputs = x.shape[1]
    values = torch.cat([x.T, x.new_zeros(width * len(wiring.levels), x.shape[0])])
    for level, entries, rows in _by_level(wiring.levels, wiring.indptr):
        read = weight[entries, None] * values[wiring.indices[entries]]
        sums = bias[level, None] + x.new_zeros(len(level), x.shape[0]).index_add(
            0, torch.searchsorted(level, rows), read
        )
        out = inputs + width * level
        out = torch.stack([out, out + 1], 1).flatten() if linked else out
        values = values.index_copy(0, out, activate(activation, linked, sums))
    return values


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor,
    indptr: Tensor,
    order: Tensor,
    readers: Tensor,
    ends: Tensor,
    levels: Tensor,
    activation: str,
    linked: bool,
    solver: str,
) -> tuple[Tensor, Tensor]:
    refuse_forward_mode("sparse_dag")
    inputs = x.shape[1]
    nodes = len(bias)
    kept = activation != "relu"
    values = x.new_empty(len(ends) - 1, len(x))
    values[:inputs] = x.T
    sums = x.new_empty(nodes if kept else 0, len(x))
    if _native(solver, x, activation):
        arrays = [t.detach().numpy() for t in (weight, indices, indptr, bias, sums, values)]
        shared(bind(kernels().sparse, activation, linked, *arrays, inputs, nodes), len(x), COLUMNS)
    else:
        width = 2 if linked else 1
        sums = bias[:, None].repeat(1, len(x))
        for level, entries, rows in _by_level(levels, indptr):
            sums.index_add_(0, rows, weight[entries, None] * values[indices[entries]])
            out = inputs + width * level
            values[torch.stack([out, out + 1], 1).flatten() if linked else out] = activate(
                activation, linked, sums[level]
            )
    return values, sums if kept else x.new_empty(0, len(x))


def _backward(
    gradient: Tensor,
    weight: Tensor,
    values: Tensor,
    sums: Tensor,
    indices: Tensor,
    indptr: Tensor,
    order: Tensor,
    readers: Tensor,
    ends: Tensor,
    levels: Tensor,
    activation: str,
    linked: bool,
    solver: str,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (of no row unless `whole`), weight and bias, from that of all values."""
    refuse_forward_mode("sparse_dag_backward")
    nodes = len(indptr) - 1
    width = 2 if linked else 1
    inputs = len(values) - width * nodes
    batch = values.shape[1]
    deltas = values.new_empty(nodes, batch)
    by_weight = torch.empty_like(weight)
    back = values.new_empty(inputs if whole else 0, batch)
    if _native(solver, values, activation):
        about = (weight[order], readers, ends, sums, values, gradient.contiguous(), deltas, back)
        arrays = [t.detach().numpy() for t in about]
        shared(
            bind(kernels().sparse_back, activation, linked, *arrays, inputs, nodes), batch, COLUMNS
        )
        arrays = [t.detach().numpy() for t in (indices, indptr, deltas, values, by_weight)]
        shared(partial(kernels().products, *arrays, batch), nodes, _NODES)
    else:
        flowing = gradient.clone()
        z = sums_of(activation, linked, sums, values[inputs:])
        for level, entries, rows in reversed(list(_by_level(levels, indptr))):
            out = inputs + width * level
            above = flowing[torch.stack([out, out + 1], 1).flatten() if linked else out]
            deltas[level] = activate_backward(activation, linked, z[level], above)
            flowing.index_add_(0, indices[entries], weight[entries, None] * deltas[rows])
            by_weight[entries] = (deltas[rows] * values[indices[entries]]).sum(1)
        back = flowing[: len(back)]
    return back.T.contiguous() if whole else back.view(0, inputs), by_weight, deltas.sum(1)


def _by_level(levels: Tensor, indptr: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(nodes, their entries, the node of each entry) of each level, in order."""
    reader = reader_of(indptr)
    order = torch.argsort(levels, stable=True)
    nodes = order.split(torch.bincount(levels)[1:].tolist())
    by_entry = levels[reader]
    entries = torch.argsort(by_entry, stable=True).split(
        torch.bincount(by_entry, minlength=len(nodes) + 1)[1:].tolist()
    )
    return [(level, places, reader[places]) for level, places in zip(nodes, entries, strict=True)]


def _native(solver: str, t: Tensor, activation: str) -> bool:
    return solver == "native" or (solver == "auto" and native(t, activation))


_NODES = 64  # that are worth a thread

_ARGUMENTS = (
    "Tensor indices, Tensor indptr, Tensor order, Tensor readers, Tensor ends, Tensor levels, str "
    "activation, bool linked, str solver"
)
_FORWARD = torch.library.custom_op(
    "morphogen::sparse_dag", _forward, mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor bias, {_ARGUMENTS}) -> (Tensor, Tensor)",
)  # fmt: skip
_BACKWARD = torch.library.custom_op(
    "morphogen::sparse_dag_backward", _backward, mutates_args=(),
    schema=f"(Tensor gradient, Tensor weight, Tensor values, Tensor sums, {_ARGUMENTS}, bool "
           f"whole) "
    "-> (Tensor, Tensor, Tensor)",
)  # fmt: skip


@_FORWARD.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, *about: Any) -> tuple[Tensor, Tensor]:
    ends = about[4]
    activation = about[6]
    return x.new_empty(ends.shape[0] - 1, x.shape[0]), x.new_empty(
        0 if activation == "relu" else bias.shape[0], x.shape[0]
    )


@_BACKWARD.register_fake
def _(
    gradient: Tensor, weight: Tensor, values: Tensor, sums: Tensor, *about: Any
) -> tuple[Tensor, Tensor, Tensor]:
    nodes = about[1].shape[0] - 1
    inputs = values.shape[0] - (2 if about[7] else 1) * nodes
    return (
        values.new_empty(values.shape[1] if about[-1] else 0, inputs),
        torch.empty_like(weight),
        values.new_empty(nodes),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weight, bias, *about = inputs
    *tensors, ctx.activation, ctx.linked, ctx.solver = about
    ctx.save_for_backward(weight, bias, *output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _derive(ctx: Any, above: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    weight, bias, values, sums, *tensors = ctx.saved_tensors
    rest = (None,) * 9
    if further() and not torch.compiler.is_compiling():
        wiring = Wiring(*tensors)
        x = values[: len(values) - (2 if ctx.linked else 1) * len(wiring.levels)].T
        run = partial(plain, wiring=wiring, activation=ctx.activation, linked=ctx.linked)
        return (*gradient(run, (x, weight, bias), ctx.needs_input_grad[:3], above), *rest)
    whole = ctx.needs_input_grad[0]
    x, *others = _BACKWARD(
        above, weight, values, sums, *tensors, ctx.activation, ctx.linked, ctx.solver, whole
    )
    return (x if whole else None, *others, *rest)


_FORWARD.register_autograd(_derive, setup_context=_save)
_FORWARD.register_vmap(one_by_one(_FORWARD))
_BACKWARD.register_vmap(one_by_one(_BACKWARD))
