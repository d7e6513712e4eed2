"""Attention over neighbours as an operation that PyTorch knows: `attention(adjacency, to, of, x)`.

The backward pass makes the weights anew from one number a row, as in Dao et al., "FlashAttention",
NeurIPS 2022 (arXiv 2205.14135): nothing of the size of the edges is kept. Float32 and float64 on a
CPU take compiled loops (`kernels.py`), everything else PyTorch's own operations.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from morphogen.gnn.adjacency import Adjacency
from morphogen.gnn.rows import ARGUMENTS, compilable, hearing, run
from morphogen.layers.orders import (
    further,
    gradient,
    one_by_one,
    refuse_forward_mode,
    transformed,
)


def attention(
    adjacency: Adjacency, to: Tensor, of: Tensor, x: Tensor, slope: float = 0.2
) -> Tensor:
    """y[u, h] = sum of x[v, h] softmax_v(leaky(to[u, h] + of[v, h])) over u itself and those v that
    it hears.

    to, of: (nodes, heads). x: (nodes, heads, features). slope: of the leaky ReLU, above 0. Source:
    Velickovic et al., "Graph Attention Networks", ICLR 2018 (arXiv 1710.10903), equations 3 and 4.
    """
    if transformed():
        return _plain(adjacency, to, of, x, slope)
    result: Tensor = _FORWARD(*adjacency, to, of, x, slope)[0]
    return result


def _plain(adjacency: Adjacency, to: Tensor, of: Tensor, x: Tensor, slope: float) -> Tensor:
    out, _ = _attended(adjacency, to, of, x, slope)
    return out


def _attended(
    adjacency: Adjacency, to: Tensor, of: Tensor, x: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    """By operations that PyTorch differentiates in every way, with the logarithm of each sum."""
    itself = torch.arange(len(x), device=x.device)
    hears = torch.cat([hearing(adjacency), itself])
    heard = torch.cat([adjacency.indices.long(), itself])
    logits = torch.nn.functional.leaky_relu(to[hears] + of[heard], slope)
    index = hears[:, None].expand_as(logits)
    most = torch.full_like(to, -torch.inf).scatter_reduce(0, index, logits.detach(), "amax")
    weights = (logits - most[hears]).exp()
    total = torch.zeros_like(to).index_add(0, hears, weights)
    summed = torch.zeros_like(x).index_add(0, hears, weights[:, :, None] * x[heard])
    return summed / total[:, :, None], most + total.log()


def _forward(
    indptr: Tensor,
    indices: Tensor,
    into_indptr: Tensor,
    into_indices: Tensor,
    to: Tensor,
    of: Tensor,
    x: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor]:
    refuse_forward_mode("neighbour_attention")
    if not compilable(x):
        adjacency = Adjacency(indptr, indices, into_indptr, into_indices)
        return _attended(adjacency, to, of, x, slope)
    to, of, x = to.contiguous(), of.contiguous(), x.contiguous()
    out, logs = torch.empty_like(x), torch.empty_like(to)
    run("attend", (indptr, indices, to, of, x, slope, out, logs))
    return out, logs


def _backward(
    above: Tensor,
    out: Tensor,
    logs: Tensor,
    indptr: Tensor,
    indices: Tensor,
    into_indptr: Tensor,
    into_indices: Tensor,
    to: Tensor,
    of: Tensor,
    x: Tensor,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_forward_mode("neighbour_attention_backward")
    if not compilable(x):
        plain = partial(_plain, Adjacency(indptr, indices, into_indptr, into_indices), slope=slope)
        gradients = gradient(plain, (to, of, x), (True,) * 3, above)
        return tuple(g.detach() for g in gradients if g is not None)  # type: ignore[return-value]
    to, of, x, above = (tensor.contiguous() for tensor in (to, of, x, above))
    along = (above * out).sum(2)
    by_to, by_of, by_x = torch.empty_like(to), torch.empty_like(of), torch.empty_like(x)
    given = (to, of, x, slope, logs, above, along)
    run("attend_back_to", (indptr, indices, *given, by_to))
    run("attend_back_of", (into_indptr, into_indices, *given, by_of, by_x))
    return by_to, by_of, by_x


_HEADS = f"{ARGUMENTS}, Tensor to, Tensor of, Tensor x, float slope"
_FORWARD = torch.library.custom_op(
    "morphogen::neighbour_attention", _forward, mutates_args=(),
    schema=f"({_HEADS}) -> (Tensor, Tensor)",
)  # fmt: skip
_BACKWARD = torch.library.custom_op(
    "morphogen::neighbour_attention_backward", _backward, mutates_args=(),
    schema=f"(Tensor above, Tensor out, Tensor logs, {_HEADS}) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip


@_FORWARD.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor]:
    to, x = given[4], given[6]
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        torch.empty_like(to, memory_format=torch.contiguous_format),
    )


@_BACKWARD.register_fake
def _(above: Tensor, out: Tensor, logs: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    one, two, three = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given[4:7]
    )
    return one, two, three


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[1])


def _derive(ctx: Any, above: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    out, logs, *tensors = ctx.saved_tensors
    rest = (None,) * 4
    if further() and not torch.compiler.is_compiling():
        adjacency = Adjacency(*tensors[:4])
        plain = partial(_plain, adjacency, slope=ctx.slope)
        return (*rest, *gradient(plain, tensors[4:], ctx.needs_input_grad[4:7], above), None)
    return (*rest, *_BACKWARD(above, out, logs, *tensors, ctx.slope), None)


_FORWARD.register_autograd(_derive, setup_context=_save)
_FORWARD.register_vmap(one_by_one(_FORWARD))
_BACKWARD.register_vmap(one_by_one(_BACKWARD))
