"""alpha-CROWN, linear bounds whose relaxations are optimized: `alpha_crown(net, box)`, and under
splits `optimised(net, boxes, spec, signs=...)`.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from morphogen.bounds.box import Boxes, InputSet
from morphogen.bounds.crown import Bounded, Variables, bounded, crown
from morphogen.bounds.propagate import Rules, propagate
from morphogen.bounds.relaxation import places, relu_slope, tightest
from morphogen.bounds.rounding import magnitudes, unit
from morphogen.bounds.rules import applied
from morphogen.bounds.sums import dot
from morphogen.deadline import Deadline
from morphogen.tracing.program import Program, Step

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
    net: Program, box: InputSet, steps: int = 20, seconds: float = math.inf
) -> dict[str, InputSet]:
    """Bounds on every value by name, at least as tight as those of `crown`; arguments as there.
    steps: of ascent, of which there are none once `seconds` have gone.
    """
    until = Deadline.after(seconds, net.until.now)

    def bound(
        net: Program, boxes: Boxes, spec: Tensor, name: str, sizes: Mapping[str, Tensor]
    ) -> Tensor:
        left = steps if until.left() > 0 else 0
        return optimised(net, boxes, spec, name, steps=left, sizes=sizes).bound

    plain = crown(net, box)
    best = crown(net, box, bound=bound)
    # tighter bounds inside make for other lines behind, which are not better for every one
    both = {}
    for name, bounds in best.items():
        net.until.check()
        both[name] = bounds.intersect(plain[name])
    return both


def optimised(
    net: Program,
    boxes: Boxes,
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
    freedom = _freedom(net, boxes)
    shares = _begun(net, boxes, freedom, known, spec, limits, start or Variables())
    optimizer = _ascent(shares)
    sizes = magnitudes(net, boxes) if sizes is None else sizes
    lowest = spec.new_full(_shape(net, boxes, spec, limits), -torch.inf, dtype=net.dtype)
    best = OptimisedBound(lowest, shares, spec, {})
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps and optimizer is not None):
            free = _allowed(freedom, known, shares)
            seen: dict[str, Tensor] = {}
            wanted = spec if limits is None else _mean(spec, shares)
            result = bounded(net, boxes, wanted, name, free, sizes, seen)
            bound = result.least
            if limits is not None:
                bound = bound - _mean_limit(net, spec, limits, shares, sizes[name or net.output])
        net.until.check()
        best = _better(best, bound.detach(), shares, result, seen)
        if optimizer is None or not bound.requires_grad or bool((best.bound > stop_above).all()):
            break
        _step(net, optimizer, -bound[best.bound <= stop_above].sum(), shares)
    return best


def _step(net: Program, optimizer: Adam, loss: Tensor, shares: Variables) -> None:
    """One step of descent, and back into what is sound."""
    optimizer.zero_grad()
    loss.backward()
    net.until.check()
    optimizer.step()
    net.until.check()
    _project(shares)
    for group in optimizer.param_groups:
        group["lr"] *= _DECAY


def _shape(net: Program, boxes: Boxes, spec: Tensor, limits: Tensor | None) -> tuple[int, int]:
    """(batch, count) of the bounds: one for each function, or one for all that have limits."""
    return len(boxes[net.input].lower), spec.shape[1] if limits is None else 1


def _begun(
    net: Program,
    boxes: Boxes,
    freedom: Mapping[str, "Freedom"],
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
    for name, slopes in freedom.items():
        earlier = start.alpha.get(name)
        alpha[name] = slopes.plain(batch, count) if earlier is None else earlier
    beta = {}
    for name, sign in known.items():
        earlier = start.beta.get(name)
        beta[name] = sign.new_zeros(batch, count, *sign.shape[2:]) if earlier is None else earlier
    mixing = start.mixing
    if mixing is None:
        mixing = spec.new_full((batch, rows), 1 / rows, dtype=net.dtype)
    weighed = limits is not None and rows > 1
    return Variables(
        {name: _leaf(share) for name, share in alpha.items()},
        {name: _leaf(multiplier) for name, multiplier in beta.items()},
        _leaf(mixing).requires_grad_(weighed),
    )


def _leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


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
    freedom: Mapping[str, "Freedom"], known: Mapping[str, Tensor], shares: Variables
) -> Variables:
    """What the shares stand for: alpha = low + (high - low) share, beta = sign multiplier."""
    slopes = {}
    for name, share in shares.alpha.items():
        low = freedom[name].low
        slopes[name] = low + (freedom[name].high - low) * share
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
class Freedom:
    """The slopes that the lines around an activation may have: from low to high, shaped as
    `Variables.alpha`. lines: those of `crown`, with a first dimension for the lines.
    """

    low: Tensor
    high: Tensor
    lines: Callable[[], Tensor]

    def plain(self, batch: int, count: int) -> Tensor:
        """The shares of the lines of `crown`: (slope - low) / (high - low)."""
        slopes = self.lines()[:, :, None]
        share = (slopes - self.low) / (self.high - self.low).clamp_min(1e-12)
        return share.clamp(0, 1).expand(-1, batch, count, *slopes.shape[3:])


def _freedom(net: Program, boxes: Boxes) -> dict[str, Freedom]:
    """By name of the activation."""
    there = (step for step in net.forth() if step.reads[0] in boxes)
    chosen = propagate(net, ALPHA_CROWN, boxes, there)
    return {step.name: slopes for step, slopes in chosen if slopes is not None}


def _none(step: Step, boxes: Boxes) -> None:
    """Its line, or function, is as `crown` has it."""


def _relu(step: Step, boxes: Boxes) -> Freedom | None:
    """Any slope from 0 to 1 below; above there is the chord alone."""
    box = boxes[step.reads[0]]
    if not bool(((box.lower < 0) & (box.upper > 0)).any()):
        return None
    zero = torch.zeros_like(box.lower)[None, :, None]
    return Freedom(zero, zero + 1, lambda: relu_slope(box.lower, box.upper)[None])


def _activation(step: Step, boxes: Boxes) -> Freedom:
    """The slopes that it has on its interval, below and above."""
    box = boxes[step.reads[0]]
    h = applied(step)
    slopes = h.slope(places(box.lower, box.upper))
    low = slopes.amin(0)[None, :, None].expand(2, *[-1] * (slopes.dim()))
    high = slopes.amax(0)[None, :, None].expand(2, *[-1] * (slopes.dim()))
    return Freedom(low, high, lambda: torch.stack(tightest(h, box.lower, box.upper)))


ALPHA_CROWN: Rules[Boxes, Freedom | None] = Rules(
    "alpha-CROWN",
    {"affine": _none, "activation": _activation, "activation relu": _relu, "max_pool": _none},
)


def _better(
    best: OptimisedBound,
    bound: Tensor,
    free: Variables,
    result: Bounded,
    seen: Mapping[str, Tensor],
) -> OptimisedBound:
    """The best of each bound, with what it was found by."""
    better = bound > best.bound

    def chosen(new: Tensor, old: Tensor, ahead: int) -> Tensor:
        where = better.view(*(1,) * ahead, *better.shape, *(1,) * (new.dim() - ahead - 2))
        return torch.where(where, new.detach(), old.detach())

    assert free.mixing is not None
    assert best.free.mixing is not None
    alpha = {n: chosen(share, best.free.alpha[n], 1) for n, share in free.alpha.items()}
    beta = {v: chosen(multiplier, best.free.beta[v], 0) for v, multiplier in free.beta.items()}
    mixing = torch.where(better[:, :1], free.mixing.detach(), best.free.mixing.detach())
    return OptimisedBound(
        torch.maximum(bound, best.bound),
        Variables(alpha, beta, mixing),
        result.coefficients.detach(),
        {name: a.detach() for name, a in seen.items()},
    )
