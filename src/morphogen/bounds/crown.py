"""Linear bounds: every value between two linear functions of the input, found from the output back:
`linear(net, box)`.

Source: CROWN, Zhang et al. 2018 (arXiv 1811.00866), on graphs as in Xu et al. 2020 (arXiv
2002.12920). Differs: lines of an activation other than ReLU are those of least area, found by
search over the slope instead of case by case.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from morphogen.activations import RELU, Activation, extremes
from morphogen.bounds.box import Box
from morphogen.bounds.interval import interval_step
from morphogen.bounds.maximum import added_up, lined, relaxed, windows
from morphogen.bounds.rounding import magnitude, magnitudes, of_input, slack
from morphogen.bounds.rules import MAXIMA, WEIGHTED, activation, affine, refuse
from morphogen.bounds.sums import dot, total
from morphogen.tracing.program import RESHAPES, Program, Step, run

# numbers in the coefficients of as many bounds as are found at once: a cache's worth
_CHUNK = 2**22


@dataclass(frozen=True)
class LinearRelaxation:
    """On an interval, elementwise:

    lower_slope z + lower_bias <= h(z) <= upper_slope z + upper_bias.
    """

    lower_slope: Tensor
    lower_bias: Tensor
    upper_slope: Tensor
    upper_bias: Tensor


class Bound(Protocol):
    """(net, boxes, spec, name of the value, `magnitudes`) -> the least values, as `lower_bound`."""

    def __call__(
        self,
        net: Program,
        boxes: Mapping[str, Box],
        spec: Tensor,
        name: str,
        sizes: Mapping[str, Tensor],
    ) -> Tensor: ...


def crown(net: Program, box: Box, bound: Bound | None = None) -> dict[str, Box]:
    """Bounds on every value by name, at least as tight as `interval`. What activations read, and
    the output, is bounded by linear functions of the input, everything else from what it reads.
    box: of inputs, (batch, *net.shapes[net.input]). bound: how those functions are found,
    `lower_bound` by default.
    """
    boxes: dict[str, Box] = {net.input: box.as_input(net.dtype)}
    sizes = {net.input: of_input(boxes[net.input])}
    wanted = {name for step in net.steps if not affine(step) for name in step.reads} | {net.output}
    # values that are no affine function of the input: their intervals are not exact
    nonlinear: set[str] = set()
    for step in net.forth():
        boxes[step.name] = interval_step(step, boxes)
        sizes[step.name] = magnitude(step, boxes)
        if not affine(step) or nonlinear.intersection(step.reads):
            nonlinear.add(step.name)
        # intervals are exact
        first = step.kind in WEIGHTED and step.reads == (net.input,) and boxes[net.input].whole
        if step.name in wanted and (step.name in nonlinear or not first):
            boxes[step.name] = boxes[step.name].intersect(
                _tightened(net, step.name, boxes, bound or _plain, sizes)
            )
            sizes[step.name] = magnitude(step, boxes)
    return boxes


def _plain(
    net: Program, boxes: Mapping[str, Box], spec: Tensor, name: str, sizes: Mapping[str, Tensor]
) -> Tensor:
    return bounded(net, boxes, spec, name, sizes=sizes).least


def _tightened(
    net: Program, name: str, boxes: Mapping[str, Box], bound: Bound, sizes: Mapping[str, Tensor]
) -> Box:
    """Linear bounds on a value; on those of its entries alone that are used with both signs, where
    it goes into ReLUs.
    """
    box = boxes[name]
    shape = net.shapes[name]
    lower = box.lower.flatten(1)
    upper = box.upper.flatten(1)
    wanted = torch.ones_like(lower, dtype=torch.bool)
    if name != net.output and all(activation(step) is RELU for step in net.consumers(name)):
        wanted = (lower < 0) & (upper > 0)
    most = int(wanted.sum(1).amax()) if len(lower) else 0
    # each example's own, and some that it does not need
    entries = wanted.byte().topk(most, 1).indices
    size = max(1, _CHUNK // max(1, len(lower) * net.numbers))
    for part in entries.split(size, 1) if most else ():
        one = lower.new_zeros(len(lower), part.shape[1], lower.shape[1]).scatter(
            2, part[..., None], 1
        )
        spec = torch.cat([one, -one], 1).unflatten(2, shape)
        below, above = bound(net, boxes, spec, name, sizes).chunk(2, 1)
        lower = lower.scatter(1, part, below)
        upper = upper.scatter(1, part, -above)
    return Box(
        torch.minimum(lower, upper).view_as(box.lower),
        torch.maximum(lower, upper).view_as(box.upper),
    )


@dataclass(frozen=True)
class Variables:
    """What a linear bound may choose, all of it sound; alpha and beta are those of the papers.

    alpha: slopes, by activation, (lines, batch, 1 or count, *shape): of the lines below and above
    it; a ReLU has one, below. beta: by value, (batch, 1 or count, *shape): functions that are at
    least 0 on the set in question, given by their coefficients on that value, and taken away.
    mixing: (batch, count), weights of several bounds for one, see `alpha_crown.optimised`. duals:
    by activation, (batch, count, *shape): coefficients on what it reads, in the place of those that
    lines give; of a maximum (batch, count, values, k), on the entries of its windows.
    """

    alpha: Mapping[str, Tensor] = field(default_factory=dict)
    beta: Mapping[str, Tensor] = field(default_factory=dict)
    mixing: Tensor | None = None
    duals: Mapping[str, Tensor] = field(default_factory=dict)


def lower_bound(
    net: Program,
    boxes: Mapping[str, Box],
    spec: Tensor,
    name: str | None = None,
    free: Variables | None = None,
) -> Tensor:
    """The least values, (batch, count), that linear functions of a value (the output's by default)
    can have.

    spec: their coefficients, (batch or 1, count, *shape of the value). boxes: of what activations
    read, from `linear`. free: without it a ReLU's line below has the slope 1 where most of the
    interval is positive, else 0, and other activations have the two lines with the least area
    between them.
    """
    return bounded(net, boxes, spec, name, free).least


@dataclass(frozen=True)
class Bounded:
    """least: (batch, count), moved outward by what rounding may do. coefficients: (batch, count,
    *input), of the function of the input whose least value it is.
    """

    least: Tensor
    coefficients: Tensor


def bounded(
    net: Program,
    boxes: Mapping[str, Box],
    spec: Tensor,
    name: str | None = None,
    free: Variables | None = None,
    sizes: Mapping[str, Tensor] | None = None,
    coefficients_out: dict[str, Tensor] | None = None,
) -> Bounded:
    """`lower_bound`, with what it was found by. sizes: `rounding.magnitudes`, where they are known.
    coefficients_out: receives the coefficients on each activation and maximum, by name.
    """
    known = magnitudes(net, boxes) if sizes is None else sizes
    off = spec.new_zeros(len(boxes[net.input].lower), spec.shape[1], dtype=net.dtype)

    def count(value: str, a: Tensor) -> None:
        off.add_(dot(a.detach().abs(), known[value][:, None]))

    coefficients, constant = backward(net, boxes, spec, name, free, coefficients_out, count)
    return Bounded(
        constant + boxes[net.input].lowest(coefficients) - slack(net) * off, coefficients
    )


def backward(
    net: Program,
    boxes: Mapping[str, Box],
    spec: Tensor,
    name: str | None = None,
    free: Variables | None = None,
    coefficients_out: dict[str, Tensor] | None = None,
    count: Callable[[str, Tensor], None] = lambda value, a: None,
) -> tuple[Tensor, Tensor]:
    """A, (batch, count, *input), and d, (batch, count), such that A x + d is at most spec . value
    for every input x.

    coefficients_out: receives the coefficients on each activation and maximum, by name. count:
    called with a value's name and the coefficients that each of its readers gives it.
    """
    name = name or net.output
    batch = len(boxes[net.input].lower)
    free = free or Variables()
    waiting = {name: spec.to(net.dtype).expand(batch, *spec.shape[1:])}
    count(name, waiting[name])
    constant = spec.new_zeros(batch, spec.shape[1], dtype=net.dtype)
    for step in net.back(name):
        if (a := waiting.pop(step.name, None)) is None:
            continue
        if step.name in free.beta:
            a = a - free.beta[step.name]
        if coefficients_out is not None and not affine(step):
            coefficients_out[step.name] = a
        c = free.duals.get(step.name)
        slope = free.alpha.get(step.name)
        found, added = (
            _back(step, a, net, boxes, slope) if c is None else _relaxed(step, a, c, boxes, count)
        )
        constant = constant + added
        for read, coefficient in found.items():
            net.timed(coefficient)
            count(read, coefficient)
            waiting[read] = waiting[read] + coefficient if read in waiting else coefficient
    if net.input not in waiting:
        return spec.new_zeros(
            batch, spec.shape[1], *net.shapes[net.input], dtype=net.dtype
        ), constant
    return waiting[net.input], constant


def _back(
    step: Step, a: Tensor, net: Program, boxes: Mapping[str, Box], slope: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | float]:
    """(coefficients on what a step reads, the constant) of functions that are at most a . step."""
    h = activation(step)
    if h is not None:
        (read,) = step.reads
        found = linear_relaxation(h, boxes[read], slope)
        # a below-line where a is positive, the other one elsewhere, in as few passes as can be
        down = a.clamp_max(0)
        constant = dot(down, found.upper_bias - found.lower_bias)
        if bool(found.lower_bias.any()):
            constant = constant + dot(a, found.lower_bias)
        return {
            read: torch.addcmul(a * found.lower_slope, down, found.upper_slope - found.lower_slope)
        }, constant
    if step.kind in MAXIMA:
        (read,) = step.reads
        at = windows(step, net.shapes[read])
        c, constant = lined(at, a, boxes[read])
        return {read: added_up(at, c, net.shapes[read])}, constant
    if not affine(step):
        raise refuse(step, "linear")
    if step.kind in RESHAPES:
        (read,) = step.reads
        return {read: a.reshape(*a.shape[:2], *net.shapes[read])}, 0.0
    if step.kind == "linear":
        weight = step.args[1]
        bias = step.args[2] if len(step.args) > 2 else None
        (read,) = step.reads
        return {read: a @ weight}, 0.0 if bias is None else total(a * bias)
    return _transposed(step, a, net)


def _relaxed(
    step: Step, a: Tensor, c: Tensor, boxes: Mapping[str, Box], count: Callable[[str, Tensor], None]
) -> tuple[dict[str, Tensor], Tensor]:
    """a . h(z) is at least c . z + the least of a h(z) - c z: any c will do."""
    h, (read,) = activation(step), step.reads
    if h is None:
        shape = boxes[read].lower.shape[1:]
        at = windows(step, shape)
        # where windows overlap, what is rounded adds up, what goes on may cancel
        count(read, added_up(at, c.abs(), shape))
        return {read: added_up(at, c, shape)}, relaxed(at, a, c, boxes[read])
    lower = boxes[read].lower[:, None]
    upper = boxes[read].upper[:, None]
    with torch.no_grad():
        inside = [torch.nan_to_num(z).clamp(lower, upper) for z in h.stationary(c / a)]
    values = torch.stack([a * h.value(z) - c * z for z in (lower, upper, *inside)])
    return {read: c}, total(values.amin(0))


def _transposed(step: Step, a: Tensor, net: Program) -> tuple[dict[str, Tensor], Tensor]:
    """Through any affine step, by its own derivative."""
    flat = a.flatten(0, 1)
    with torch.enable_grad():
        zeros = {
            n: flat.new_zeros(len(flat), *net.shapes[n], requires_grad=True) for n in step.reads
        }
        value = run(step, zeros)
        found = torch.autograd.grad(value, list(zeros.values()), flat, create_graph=a.requires_grad)
    offset = value[:1].detach()
    return {n: b.unflatten(0, a.shape[:2]) for n, b in zip(zeros, found, strict=True)}, total(
        a * offset
    )


def linear_relaxation(h: Activation, box: Box, slope: Tensor | None = None) -> LinearRelaxation:
    """Two lines around h on a box of (batch, ...), as (batch, 1, ...). slope: see `Variables`."""
    lower = box.lower[:, None]
    upper = box.upper[:, None]
    if h is RELU:
        chord = upper / (upper - lower).clamp_min(1e-300)
        both = (lower < 0) & (upper > 0)
        active = (lower >= 0).to(lower.dtype)
        free = (upper > -lower).to(lower.dtype) if slope is None else slope[0]
        above = torch.where(both, chord, active)
        zero = torch.zeros_like(lower)
        return LinearRelaxation(
            torch.where(both, free, active), zero, above, torch.where(both, -chord * lower, zero)
        )
    below, above = tightest(h, lower, upper) if slope is None else slope
    return LinearRelaxation(
        below, extremes(h, below, lower, upper)[0], above, extremes(h, above, lower, upper)[1]
    )


def places(lower: Tensor, upper: Tensor) -> Tensor:
    """17 of them, from end to end of each interval, the first dimension."""
    share = torch.linspace(0, 1, 17, dtype=lower.dtype, device=lower.device).view(
        -1, *[1] * lower.dim()
    )
    return lower + (upper - lower) * share


_TURNS = 20
_GOLDEN = 0.6180339887498949


def tightest(h: Activation, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of the lines below and above h with the least area between: that of the line below
    is highest in the middle.

    The height in the middle is concave in the slope below, and convex above, so a search by golden
    section finds it. It looks at h in 17 places; whatever slope it ends with, `extremes` then makes
    the line sound.
    """
    z = places(lower, upper)
    value = h.value(z)
    slope = h.slope(z)
    middle = (lower + upper) / 2

    def search(side: int) -> Tensor:
        a = slope.amin(0)
        b = slope.amax(0)
        for _ in range(_TURNS):
            width = _GOLDEN * (b - a)
            one = b - width
            other = a + width
            low, high = (
                (value - s * (z - middle)).amin(0)
                if side == 0
                else -(value - s * (z - middle)).amax(0)
                for s in (one, other)
            )
            a = torch.where(low < high, one, a)
            b = torch.where(low < high, b, other)
        return (a + b) / 2

    return search(0), search(1)
