"""Linear bounds with the best lines, `alpha(net, box)`, and under splits, `optimised(net, boxes,
spec, signs=...)`.

Which line lies below an activation is free where it is unstable (a ReLU's may have any slope from 0
to 1), and where a unit's sign is known, any multiple of that fact may be added. Both are found for
every bound by gradient ascent; each step is sound, the best one counts, and the first is the plain
linear bound.

Source: alpha-CROWN, Xu et al. 2021 (arXiv 2011.13824); beta-CROWN, Wang et al. 2021 (arXiv
2103.06624). Differs: bounds inside the network are made as tight as they can be one after the
other, each for its own sake, where the original moves all of them for the last one's: tighter
bounds never loosen what follows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from morphogen.activations import RELU, Activation
from morphogen.bounds.box import Box
from morphogen.bounds.crown import Variables, bounded, crown, places, tightest
from morphogen.bounds.rounding import magnitudes, unit
from morphogen.bounds.rules import activation
from morphogen.bounds.sums import dot
from morphogen.deadline import Deadline
from morphogen.tracing.program import Program

_RATE = 0.5
_SPLIT_RATE = 0.05
_DECAY = 0.98


@dataclass(frozen=True)
class OptimisedBound:
    """bound: (batch, count). free: of the best step, slopes as shares of what is allowed.
    coefficients (batch, count, *input): of the last step's function of the input. seen: that step's
    coefficients on each activation, by name.
    """

    bound: Tensor
    free: Variables
    coefficients: Tensor
    seen: Mapping[str, Tensor]


def alpha_crown(
    net: Program, box: Box, steps: int = 20, seconds: float = math.inf
) -> dict[str, Box]:
    """Bounds on every value by name, at least as tight as those of `crown`; arguments as there.
    steps: of ascent, of which there are none once `seconds` have gone.
    """
    until = Deadline.after(seconds, net.until.now)

    def bound(
        net: Program, boxes: Mapping[str, Box], spec: Tensor, name: str, sizes: Mapping[str, Tensor]
    ) -> Tensor:
        return optimised(
            net, boxes, spec, name, steps=steps if until.left() > 0 else 0, sizes=sizes
        ).bound

    plain = crown(net, box)
    best = crown(net, box, bound=bound)
    # tighter bounds inside make for other lines behind, which are not better for every one
    met = {}
    for name, found in best.items():
        net.until.check()
        met[name] = found.intersect(plain[name])
    return met


def optimised(
    net: Program,
    boxes: Mapping[str, Box],
    spec: Tensor,
    name: str | None = None,
    signs: Mapping[str, Tensor] | None = None,
    start: Variables | None = None,
    steps: int = 20,
    stop_above: float = torch.inf,
    limits: Tensor | None = None,
    sizes: Mapping[str, Tensor] | None = None,
) -> OptimisedBound:
    """The best lower bounds on linear functions of a value that the steps come by; arguments as for
    `lower_bound`.

    boxes: cut to what the signs say. signs: by value, (batch, *shape), 1 where it is at least 0, -1
    where it is at most 0, and 0 where nothing is known. start: of an earlier call, shares and
    multipliers. stop_above: bounds above it need not rise. limits: (batch, count); with them there
    is one bound, (batch, 1), on the largest of spec . value - limits: that of the best mean. sizes:
    `rounding.magnitudes` of these boxes, or of larger ones.
    """
    known = {
        value: sign.to(net.dtype)[:, None]
        for value, sign in (signs or {}).items()
        if bool(sign.any())
    }
    ends = _ends(net, boxes)
    shares = _begun(net, boxes, ends, known, spec, limits, start or Variables())
    optimizer = _ascent(shares)
    sizes = magnitudes(net, boxes) if sizes is None else sizes
    lowest = spec.new_full(_shape(net, boxes, spec, limits), -torch.inf, dtype=net.dtype)
    best = OptimisedBound(lowest, shares, spec, {})
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps and optimizer is not None):
            free = _allowed(ends, known, shares)
            seen: dict[str, Tensor] = {}
            wanted = spec if limits is None else _mean(spec, shares)
            found = bounded(net, boxes, wanted, name, free, sizes, seen)
            bound = found.least
            if limits is not None:
                bound = bound - _mean_limit(net, spec, limits, shares, sizes[name or net.output])
        net.until.check()
        best = _better(best, bound.detach(), shares, found.coefficients.detach(), seen)
        if optimizer is None or not bound.requires_grad or bool((best.bound > stop_above).all()):
            break
        optimizer.zero_grad()
        (-bound[best.bound <= stop_above].sum()).backward()
        net.until.check()
        optimizer.step()
        net.until.check()
        _project(shares)
        for group in optimizer.param_groups:
            group["lr"] *= _DECAY
    return best


def _shape(
    net: Program, boxes: Mapping[str, Box], spec: Tensor, limits: Tensor | None
) -> tuple[int, int]:
    """(batch, count) of the bounds: one for each function, or one for all that have limits."""
    return len(boxes[net.input].lower), spec.shape[1] if limits is None else 1


def _begun(
    net: Program,
    boxes: Mapping[str, Box],
    ends: Mapping[str, "_Ends"],
    known: Mapping[str, Tensor],
    spec: Tensor,
    limits: Tensor | None,
    start: Variables,
) -> Variables:
    """Where the ascent begins: at those of an earlier call, else at the lines of `lower_bound`, at
    multipliers of 0 and at equal weights.
    """
    batch, count = _shape(net, boxes, spec, limits)
    rows = spec.shape[1]
    alpha = {}
    for name, end in ends.items():
        earlier = start.alpha.get(name)
        alpha[name] = _plain(end, boxes[end.read], batch, count) if earlier is None else earlier
    beta = {}
    for name, sign in known.items():
        earlier = start.beta.get(name)
        beta[name] = sign.new_zeros(batch, count, *sign.shape[2:]) if earlier is None else earlier
    mixing = start.mixing
    if mixing is None:
        mixing = spec.new_full((batch, rows), 1 / rows, dtype=net.dtype)
    return Variables(
        {name: share.detach().clone().requires_grad_() for name, share in alpha.items()},
        {name: multiplier.detach().clone().requires_grad_() for name, multiplier in beta.items()},
        mixing.detach().clone().requires_grad_(limits is not None and rows > 1),
    )


def _ascent(shares: Variables) -> Adam | None:
    """None where nothing is free."""
    assert shares.mixing is not None
    free = [*shares.alpha.values(), *([shares.mixing] if shares.mixing.requires_grad else [])]
    groups: list[dict[str, Any]] = [
        {"params": free},
        {"params": [*shares.beta.values()], "lr": _SPLIT_RATE},
    ]
    return Adam(groups, lr=_RATE) if free or shares.beta else None


def _allowed(
    ends: Mapping[str, "_Ends"], known: Mapping[str, Tensor], shares: Variables
) -> Variables:
    """What the shares stand for."""
    # slope = low + (high - low) share; beta = sign multiplier
    slopes = {
        name: ends[name].low + (ends[name].high - ends[name].low) * share
        for name, share in shares.alpha.items()
    }
    beta = {name: known[name] * multiplier for name, multiplier in shares.beta.items()}
    return Variables(slopes, beta)


@torch.no_grad()
def _project(shares: Variables) -> None:
    """Back into what is sound: shares in [0, 1], multipliers at least 0, weights that add up to
    1.
    """
    assert shares.mixing is not None
    for share in shares.alpha.values():
        share.clamp_(0, 1)
    for multiplier in shares.beta.values():
        multiplier.clamp_min_(0)
    weights = shares.mixing.clamp_min(1e-6)
    shares.mixing.copy_(weights / weights.sum(1, keepdim=True))


def _mean(spec: Tensor, shares: Variables) -> Tensor:
    """sum_k mixing_k spec_k, (batch, 1, *shape)."""
    assert shares.mixing is not None
    every = spec.expand(len(shares.mixing), *spec.shape[1:])
    return torch.einsum("bk,bk...->b...", shares.mixing, every)[:, None]


def _mean_limit(
    net: Program, spec: Tensor, limits: Tensor, shares: Variables, sizes: Tensor
) -> Tensor:
    """The mean of the limits, (batch, 1), and what the sums in it and in the mean of the rows may
    be off.
    """
    mixing = shares.mixing
    assert mixing is not None
    weights = mixing.detach()
    rows = _mean(spec.abs(), Variables(mixing=weights))
    off = dot(rows, sizes[:, None]) + (weights * limits.abs()).sum(1, keepdim=True)
    return (mixing * limits).sum(1, keepdim=True) + unit(net.dtype, mixing.shape[1]) * off


@dataclass(frozen=True)
class _Ends:
    """Of an activation h that is unstable on its interval: what it reads, and the least and the
    largest slope of a line that may touch it there, shaped as `Variables.alpha`.
    """

    h: Activation
    read: str
    low: Tensor
    high: Tensor


def _ends(net: Program, boxes: Mapping[str, Box]) -> dict[str, _Ends]:
    """By name of the activation."""
    found = {}
    for step in net.forth():
        h = activation(step)
        if h is None or step.reads[0] not in boxes:
            continue
        box = boxes[step.reads[0]]
        if h is RELU:
            if bool(((box.lower < 0) & (box.upper > 0)).any()):
                zero = torch.zeros_like(box.lower)[None, :, None]
                found[step.name] = _Ends(h, step.reads[0], zero, zero + 1)
        else:
            slopes = h.slope(places(box.lower, box.upper))
            low, high = (
                t[None, :, None].expand(2, *(-1,) * 2, *t.shape[1:])
                for t in (slopes.amin(0), slopes.amax(0))
            )
            found[step.name] = _Ends(h, step.reads[0], low, high)
    return found


def _plain(ends: _Ends, box: Box, batch: int, count: int) -> Tensor:
    """The shares at which lines are those of `lower_bound`."""
    low, high = ends.low, ends.high
    if ends.h is RELU:
        share = (box.upper > -box.lower).to(low.dtype)[None, :, None]
    else:
        slopes = torch.stack(tightest(ends.h, box.lower, box.upper))[:, :, None]
        share = (slopes - low) / (high - low).clamp_min(1e-12)
    return share.clamp(0, 1).expand(len(low), batch, count, *box.lower.shape[1:])


def _better(
    best: OptimisedBound,
    bound: Tensor,
    free: Variables,
    coefficients: Tensor,
    seen: Mapping[str, Tensor],
) -> OptimisedBound:
    """The best of each bound, with what it was found by."""
    better = bound > best.bound

    def chosen(new: Tensor, old: Tensor, ahead: int) -> Tensor:
        where = better.view(*(1,) * ahead, *better.shape, *(1,) * (new.dim() - ahead - 2))
        return torch.where(where, new.detach(), old.detach())

    slopes = {n: chosen(share, best.free.alpha[n], 1) for n, share in free.alpha.items()}
    beta = {v: chosen(m, best.free.beta[v], 0) for v, m in free.beta.items()}
    assert free.mixing is not None
    assert best.free.mixing is not None
    mix = torch.where(better[:, :1], free.mixing.detach(), best.free.mixing.detach())
    read = {n: a.detach() for n, a in seen.items()}
    return OptimisedBound(
        torch.maximum(bound, best.bound), Variables(slopes, beta, mix), coefficients, read
    )
