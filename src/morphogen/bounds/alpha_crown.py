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
class Found:
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
    """Bounds on every value by name, at least as tight as those of `linear`; arguments as there.
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
) -> Found:
    """The best lower bounds on linear functions of a value that the steps come by; arguments as for
    `lower_bound`.

    boxes: cut to what the signs say. signs: by value, (batch, *shape), 1 where it is at least 0, -1
    where it is at most 0, and 0 where nothing is known. start: of an earlier call, shares and
    multipliers. stop_above: bounds above it need not rise. limits: (batch, count); with them there
    is one bound, (batch, 1), on the largest of spec . value - limits: that of the best mean. sizes:
    `rounding.magnitudes` of these boxes, or of larger ones.
    """
    batch = len(boxes[net.input].lower)
    rows = spec.shape[1]
    count = rows if limits is None else 1
    known = {
        v: sign.to(net.dtype)[:, None] for v, sign in (signs or {}).items() if bool(sign.any())
    }
    ends = _ends(net, boxes)
    begun = start or Variables()
    shares = {
        n: begun.alpha[n] if n in begun.alpha else _plain(h, low, high, boxes[read], batch, count)
        for n, (h, read, low, high) in ends.items()
    }
    multipliers = {
        v: begun.beta[v] if v in begun.beta else sign.new_zeros(batch, count, *sign.shape[2:])
        for v, sign in known.items()
    }
    shares, multipliers = (
        {k: t.detach().clone().requires_grad_() for k, t in of.items()}
        for of in (shares, multipliers)
    )
    mix = (
        spec.new_full((batch, rows), 1 / rows, dtype=net.dtype)
        if begun.mixing is None
        else begun.mixing
    )
    mix = mix.detach().clone().requires_grad_(limits is not None and rows > 1)
    free = [*shares.values(), mix] if mix.requires_grad else [*shares.values()]
    groups: list[dict[str, Any]] = [
        {"params": free},
        {"params": [*multipliers.values()], "lr": _SPLIT_RATE},
    ]
    optimizer = Adam(groups, lr=_RATE) if free or multipliers else None
    best = Found(
        spec.new_full((batch, count), -torch.inf, dtype=net.dtype),
        Variables(shares, multipliers, mix),
        spec,
        {},
    )
    sizes = magnitudes(net, boxes) if sizes is None else sizes
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps and optimizer is not None):
            slopes = {
                n: ends[n][2] + (ends[n][3] - ends[n][2]) * share for n, share in shares.items()
            }
            beta = {v: known[v] * m for v, m in multipliers.items()}
            wanted = (
                spec
                if limits is None
                else torch.einsum("bk,bk...->b...", mix, spec.expand(batch, *spec.shape[1:]))[
                    :, None
                ]
            )
            seen: dict[str, Tensor] = {}
            found = bounded(net, boxes, wanted, name, Variables(slopes, beta), sizes, seen)
            bound = found.least
            bound = (
                bound
                if limits is None
                else bound - _mixed(net, spec, limits, mix, sizes[name or net.output])
            )
        net.until.check()
        best = _better(
            best,
            bound.detach(),
            Variables(shares, multipliers, mix),
            found.coefficients.detach(),
            seen,
        )
        if optimizer is None or not bound.requires_grad or bool((best.bound > stop_above).all()):
            break
        optimizer.zero_grad()
        (-bound[best.bound <= stop_above].sum()).backward()
        net.until.check()
        optimizer.step()
        net.until.check()
        with torch.no_grad():
            for share in shares.values():
                share.clamp_(0, 1)
            for multiplier in multipliers.values():
                multiplier.clamp_min_(0)
            mix.copy_(mix.clamp_min(1e-6) / mix.clamp_min(1e-6).sum(1, keepdim=True))
        for group in optimizer.param_groups:
            group["lr"] *= _DECAY
    return best


def _mixed(net: Program, spec: Tensor, limits: Tensor, mix: Tensor, sizes: Tensor) -> Tensor:
    """The mean of the limits, (batch, 1), and what the sums in it and in the mean of the rows may
    be off.
    """
    weights = mix.detach()
    rows = torch.einsum("bk,bk...->b...", weights, spec.abs().expand(len(mix), *spec.shape[1:]))[
        :, None
    ]
    off = dot(rows, sizes[:, None]) + (weights * limits.abs()).sum(1, keepdim=True)
    return (mix * limits).sum(1, keepdim=True) + unit(net.dtype, mix.shape[1]) * off


def _ends(
    net: Program, boxes: Mapping[str, Box]
) -> dict[str, tuple[Activation, str, Tensor, Tensor]]:
    """For each activation that is unstable on its interval: (it, what it reads, the least and the
    largest slope of a line that may touch it there), shaped as `Variables.alpha`.
    """
    found = {}
    for step in net.forth():
        h = activation(step)
        if h is None or step.reads[0] not in boxes:
            continue
        box = boxes[step.reads[0]]
        if h is RELU:
            if bool(((box.lower < 0) & (box.upper > 0)).any()):
                zero = torch.zeros_like(box.lower)[None, :, None]
                found[step.name] = (h, step.reads[0], zero, zero + 1)
        else:
            slopes = h.slope(places(box.lower, box.upper))
            low, high = (
                t[None, :, None].expand(2, *(-1,) * 2, *t.shape[1:])
                for t in (slopes.amin(0), slopes.amax(0))
            )
            found[step.name] = (h, step.reads[0], low, high)
    return found


def _plain(h: Activation, low: Tensor, high: Tensor, box: Box, batch: int, count: int) -> Tensor:
    """The shares at which lines are those of `lower_bound`."""
    if h is RELU:
        share = (box.upper > -box.lower).to(low.dtype)[None, :, None]
    else:
        share = (torch.stack(tightest(h, box.lower, box.upper))[:, :, None] - low) / (
            high - low
        ).clamp_min(1e-12)
    return share.clamp(0, 1).expand(len(low), batch, count, *box.lower.shape[1:])


def _better(
    best: Found, bound: Tensor, free: Variables, coefficients: Tensor, seen: Mapping[str, Tensor]
) -> Found:
    """The best of each bound, with what it was found by."""
    better = bound > best.bound

    def chosen(new: Tensor, old: Tensor, linear_relaxation: int) -> Tensor:
        where = better.view(
            *(1,) * linear_relaxation, *better.shape, *(1,) * (new.dim() - linear_relaxation - 2)
        )
        return torch.where(where, new.detach(), old.detach())

    slopes = {n: chosen(share, best.free.alpha[n], 1) for n, share in free.alpha.items()}
    beta = {v: chosen(m, best.free.beta[v], 0) for v, m in free.beta.items()}
    assert free.mixing is not None
    assert best.free.mixing is not None
    mix = torch.where(better[:, :1], free.mixing.detach(), best.free.mixing.detach())
    read = {n: a.detach() for n, a in seen.items()}
    return Found(torch.maximum(bound, best.bound), Variables(slopes, beta, mix), coefficients, read)
