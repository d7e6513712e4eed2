"""The largest entry of each window of a max-pooling: which entries those are, and bounds on it by
functions of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from morphogen.bounds.box import InputSet
from morphogen.bounds.sums import total
from morphogen.tracing.program import Step

_OPTIONS: Mapping[str, Any] = {"kernel_size": (), "stride": (), "padding": 0, "dilation": 1}


def windows(step: Step, shape: Sequence[int]) -> Tensor:
    """Of one example (*shape), flattened, the entries of which each value is the largest, (values,
    k). Beyond the edge they are the number of entries.
    """
    dims = int(step.kind.removeprefix("max_pool").removesuffix("d"))
    given = {**_OPTIONS, **dict(zip(_OPTIONS, step.args[1:], strict=False)), **step.kwargs}
    given["stride"] = given["stride"] or given["kernel_size"]
    flat = torch.arange(math.prod(shape[:-dims]))[:, None]
    inside = torch.ones_like(flat, dtype=torch.bool)
    for d in range(dims):
        kernel, stride, padding, dilation = (_of(given[name], d) for name in _OPTIONS)
        count = step.shape[d - dims]
        size = shape[d - dims]
        at = torch.arange(count)[:, None] * stride - padding + torch.arange(kernel) * dilation
        there = (at >= 0) & (at < size)
        flat = (flat[:, None, :, None] * size + at[None, :, None]).flatten(2).flatten(0, 1)
        inside = (inside[:, None, :, None] & there[None, :, None]).flatten(2).flatten(0, 1)
    return torch.where(inside, flat, math.prod(shape))


def _of(option: int | Sequence[int], d: int) -> int:
    return option if isinstance(option, int) else option[min(d, len(option) - 1)]


def looked_at(at: Tensor, values: Tensor, beyond: float) -> Tensor:
    """Values (batch, *shape) in windows, (batch, values, k); `beyond` beyond the edge."""
    flat = values.flatten(1)
    return torch.cat([flat, flat.new_full((len(flat), 1), beyond)], 1)[:, at]


def added_up(at: Tensor, c: Tensor, shape: Sequence[int]) -> Tensor:
    """Coefficients of windows (batch, count, values, k) where their entries stand, (batch, count,
    *shape).
    """
    empty = c.new_zeros(*c.shape[:2], math.prod(shape) + 1)
    summed = empty.index_add(2, at.flatten(), c.flatten(2))
    return summed[..., :-1].reshape(*c.shape[:2], *shape)


def lined(at: Tensor, a: Tensor, box: InputSet) -> tuple[Tensor, Tensor]:
    """(c (batch, count, values, k), d (batch, count)): a . maxima is at least c . entries + d. a:
    (batch, count, *values).

    Below each maximum lies the entry whose least value is the largest; above it too where it is at
    least all others for sure, and else the largest value of the window, a constant.
    """
    lower = looked_at(at, box.lower, -math.inf)
    upper = looked_at(at, box.upper, -math.inf)
    a = a.flatten(2)
    floor, winner = lower.max(2, keepdim=True)
    sure = (floor >= upper.scatter(2, winner, -math.inf).amax(2, keepdim=True))[..., 0][:, None]
    down = a.clamp_max(0)
    # a . max >= a . entry, of the winner, where a >= 0 or the winner is sure; else >= a . upper
    through = a.clamp_min(0) + torch.where(sure, down, 0)
    c = through[..., None] * torch.zeros_like(lower).scatter(2, winner, 1)[:, None]
    return c, total(torch.where(sure, 0, down) * upper.amax(2)[:, None])


def relaxed(at: Tensor, a: Tensor, c: Tensor, box: InputSet) -> Tensor:
    """The least of a . maxima - c . entries where all entries vary on their own in each window,
    (batch, count).

    Where a is positive, the largest entry t decides: those with a positive c are t or as large as
    they can be, convex and piecewise linear in t. Where it is negative, any entry may be taken for
    the largest: the true one is the least.
    """
    there = at < box.lower[0].numel()
    floor = looked_at(at, box.lower, -math.inf).amax(2)[:, None, :, None]
    # an entry beyond the edge is one that is never above all others
    lower, upper = (
        torch.where(there, looked_at(at, end, 0.0)[:, None], floor)
        for end in (box.lower, box.upper)
    )
    a = a.flatten(2)[..., None]
    c = c * there
    t = torch.cat([floor, torch.maximum(upper, floor)], 3)
    reached = torch.minimum(upper[:, 0, :, None], t[:, 0, ..., None])
    # a >= 0: min over t of a t - sum_i c_i^+ min(u_i, t) - sum_i c_i^- l_i, at a kink t = u_i
    rising = (
        a * t
        - torch.einsum("bnvk,bvtk->bnvt", c.clamp_min(0), reached)
        - (c.clamp_max(0) * lower).sum(3, keepdim=True)
    )
    # a < 0: min over j of min((a - c_j) e_j) + sum_{i != j} min(-c_i e_i), e_i at l_i or u_i
    own, largest = (torch.minimum(factor * lower, factor * upper) for factor in (-c, a - c))
    falling = own.sum(3, keepdim=True) - own + largest
    return torch.where(a[..., 0] >= 0, rising.amin(3), falling.amin(3)).sum(2)
