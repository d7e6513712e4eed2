"""Linear bounds: every value between two linear functions of the input, found from the output back:
`crown(net, box)`.

Source: CROWN, Zhang et al. 2018 (arXiv 1811.00866), on graphs as in Xu et al. 2020 (arXiv
2002.12920).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from morphogen.activations import RELU
from morphogen.bounds.box import Box, Boxes, InputSet
from morphogen.bounds.interval import IBP
from morphogen.bounds.maximum import added_up, lined, windows
from morphogen.bounds.propagate import Rules, propagate
from morphogen.bounds.relaxation import linear_relaxation
from morphogen.bounds.rounding import magnitude, magnitudes, of_input, slack
from morphogen.bounds.rules import WEIGHTED, activation, affine, applied
from morphogen.bounds.sums import dot, total
from morphogen.tracing.program import Program, Step, run

# numbers in the coefficients of as many bounds as are found at once: a cache's worth
_CHUNK = 2**22


class Bound(Protocol):
    """(net, boxes, spec, name of the value, `magnitudes`) -> the least values, as `lower_bound`."""

    def __call__(
        self,
        net: Program,
        boxes: Boxes,
        spec: Tensor,
        name: str,
        sizes: Mapping[str, Tensor],
    ) -> Tensor: ...


def crown(net: Program, box: InputSet, bound: Bound | None = None) -> dict[str, InputSet]:
    """Bounds on every value by name, at least as tight as `interval`. What activations read, and
    the output, is bounded by linear functions of the input, everything else from what it reads.
    box: of inputs, (batch, *net.shapes[net.input]). bound: how those functions are found,
    `lower_bound` by default.
    """
    boxes: dict[str, InputSet] = {net.input: box.as_input(net.dtype)}
    sizes = {net.input: of_input(boxes[net.input])}
    wanted = {name for step in net.steps if not affine(step) for name in step.reads} | {net.output}
    # values that are no affine function of the input: their intervals are not exact
    nonlinear: set[str] = set()
    for step, bounds in propagate(net, IBP, boxes):
        boxes[step.name] = bounds
        sizes[step.name] = magnitude(step, boxes)
        if not affine(step) or nonlinear.intersection(step.reads):
            nonlinear.add(step.name)
        # intervals are exact
        first = step.kind in WEIGHTED and step.reads == (net.input,) and boxes[net.input].is_box
        if step.name in wanted and (step.name in nonlinear or not first):
            tighter = _tightened(net, step.name, boxes, bound or _plain, sizes)
            boxes[step.name] = bounds.intersect(tighter)
            sizes[step.name] = magnitude(step, boxes)
    return boxes


def _plain(
    net: Program, boxes: Boxes, spec: Tensor, name: str, sizes: Mapping[str, Tensor]
) -> Tensor:
    return bounded(net, boxes, spec, name, sizes=sizes).least


def _tightened(
    net: Program, name: str, boxes: Boxes, bound: Bound, sizes: Mapping[str, Tensor]
) -> Box:
    """Linear bounds on a value; on those of its entries alone that are used with both signs, where
    it goes into ReLUs.
    """
    box = boxes[name]
    lower = box.lower.flatten(1)
    upper = box.upper.flatten(1)
    for entries in _entries(net, name, box):
        # z_i >= min z_i, z_i <= -min (-z_i)
        one = lower.new_zeros(len(lower), entries.shape[1], lower.shape[1])
        one = one.scatter(2, entries[..., None], 1)
        spec = torch.cat([one, -one], 1).unflatten(2, net.shapes[name])
        below, above = bound(net, boxes, spec, name, sizes).chunk(2, 1)
        lower = lower.scatter(1, entries, below)
        upper = upper.scatter(1, entries, -above)
    return Box(
        torch.minimum(lower, upper).view_as(box.lower),
        torch.maximum(lower, upper).view_as(box.upper),
    )


def _entries(net: Program, name: str, box: InputSet) -> Iterator[Tensor]:
    """The places of a value's entries that are worth a linear bound, (batch, some), as many at once
    as a cache holds.
    """
    lower = box.lower.flatten(1)
    wanted = torch.ones_like(lower, dtype=torch.bool)
    if name != net.output and all(activation(step) is RELU for step in net.consumers(name)):
        wanted = (lower < 0) & (box.upper.flatten(1) > 0)
    most = int(wanted.sum(1).amax()) if len(lower) else 0
    if most:
        # each example's own, and some that it does not need
        entries = wanted.byte().topk(most, 1).indices
        yield from entries.split(max(1, _CHUNK // max(1, len(lower) * net.numbers)), 1)


@dataclass(frozen=True)
class Variables:
    """What a linear bound may choose, all of it sound; alpha and beta are those of the papers.

    alpha: slopes, by activation, (lines, batch, 1 or count, *shape): of the lines below and above
    it; a ReLU has one, below. beta: by value, (batch, 1 or count, *shape): functions that are at
    least 0 on the set in question, given by their coefficients on that value, and taken away.
    mixing: (batch, count), weights of several bounds for one, see `alpha_crown.optimised`. duals:
    for the rules of `dual`, by activation, (batch, count, *shape): coefficients on what it reads;
    of a maximum (batch, count, values, k), on the entries of its windows.
    """

    alpha: Mapping[str, Tensor] = field(default_factory=dict)
    beta: Mapping[str, Tensor] = field(default_factory=dict)
    mixing: Tensor | None = None
    duals: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Backward:
    """The state of a pass from a value back to the input. coefficients: (batch, count, *shape), of
    a linear function, on each value that waits to be replaced by what it is computed from. count:
    called with a value's name and the coefficients that each of its readers gives it.
    """

    net: Program
    boxes: Boxes
    free: Variables
    count: Callable[[str, Tensor], None]
    coefficients: dict[str, Tensor]

    def reached(self, name: str) -> Iterator[Step]:
        """The steps from the one that makes a value back that have coefficients, of which their
        multiplier is taken away.
        """
        for step in self.net.back(name):
            if step.name not in self.coefficients:
                continue
            if step.name in self.free.beta:
                self.coefficients[step.name] = (
                    self.coefficients[step.name] - self.free.beta[step.name]
                )
            yield step

    def add(self, name: str, a: Tensor) -> None:
        """Coefficients that a reader of a value gives it."""
        self.net.timed(a)
        self.count(name, a)
        earlier = self.coefficients.get(name)
        self.coefficients[name] = a if earlier is None else earlier + a


Below = tuple[Mapping[str, Tensor], Tensor | float]
"""(coefficients on what a step reads, a constant) of functions that are at most the step's own
coefficients times its value.
"""


def lower_bound(
    net: Program,
    boxes: Boxes,
    spec: Tensor,
    name: str | None = None,
    free: Variables | None = None,
) -> Tensor:
    """The least values, (batch, count), that linear functions of a value (the output's by default)
    can have.

    spec: their coefficients, (batch or 1, count, *shape of the value). boxes: of what activations
    read, from `crown`. free: without it a ReLU's line below has the slope 1 where most of the
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
    boxes: Boxes,
    spec: Tensor,
    name: str | None = None,
    free: Variables | None = None,
    sizes: Mapping[str, Tensor] | None = None,
    coefficients_out: dict[str, Tensor] | None = None,
    rules: "Rules[Backward, Below] | None" = None,
) -> Bounded:
    """`lower_bound`, with what it was found by. sizes: `rounding.magnitudes`, where they are known.
    coefficients_out, rules: see `backward`.
    """
    known = magnitudes(net, boxes) if sizes is None else sizes
    off = spec.new_zeros(len(boxes[net.input].lower), spec.shape[1], dtype=net.dtype)

    def count(value: str, a: Tensor) -> None:
        off.add_(dot(a.detach().abs(), known[value][:, None]))

    coefficients, constant = backward(net, boxes, spec, name, free, coefficients_out, count, rules)
    least = constant + boxes[net.input].lowest(coefficients) - slack(net) * off
    return Bounded(least, coefficients)


def backward(
    net: Program,
    boxes: Boxes,
    spec: Tensor,
    name: str | None = None,
    free: Variables | None = None,
    coefficients_out: dict[str, Tensor] | None = None,
    count: Callable[[str, Tensor], None] = lambda value, a: None,
    rules: "Rules[Backward, Below] | None" = None,
) -> tuple[Tensor, Tensor]:
    """A, (batch, count, *input), and d, (batch, count), such that A x + d is at most spec . value
    for every input x.

    coefficients_out: receives the coefficients on each step that is not affine, by name. count: see
    `Backward`. rules: `CROWN` by default.
    """
    name = name or net.output
    batch = len(boxes[net.input].lower)
    state = Backward(net, boxes, free or Variables(), count, {})
    state.coefficients[name] = spec.to(net.dtype).expand(batch, *spec.shape[1:])
    count(name, state.coefficients[name])
    constant = spec.new_zeros(batch, spec.shape[1], dtype=net.dtype)
    for step, (below, added) in propagate(net, rules or CROWN, state, state.reached(name)):
        a = state.coefficients.pop(step.name)
        if coefficients_out is not None and not affine(step):
            coefficients_out[step.name] = a
        constant = constant + added
        for read, coefficient in below.items():
            state.add(read, coefficient)
    if net.input not in state.coefficients:
        shape = net.shapes[net.input]
        return spec.new_zeros(batch, spec.shape[1], *shape, dtype=net.dtype), constant
    return state.coefficients[net.input], constant


def _reshape(step: Step, state: Backward) -> Below:
    (read,) = step.reads
    a = state.coefficients[step.name]
    return {read: a.reshape(*a.shape[:2], *state.net.shapes[read])}, 0.0


def _linear(step: Step, state: Backward) -> Below:
    """a (W z + b) = (a W) z + a b."""
    (read,) = step.reads
    a = state.coefficients[step.name]
    weight = step.args[1]
    bias = step.args[2] if len(step.args) > 2 else None
    return {read: a @ weight}, 0.0 if bias is None else total(a * bias)


def _affine(step: Step, state: Backward) -> Below:
    """a f(z) = (J^T a) z + a f(0), by the step's own derivative."""
    a = state.coefficients[step.name]
    flat = a.flatten(0, 1)
    zeros = {}
    with torch.enable_grad():
        for name in step.reads:
            shape = state.net.shapes[name]
            zeros[name] = flat.new_zeros(len(flat), *shape, requires_grad=True)
        value = run(step, zeros)
        gradients = torch.autograd.grad(
            value, list(zeros.values()), flat, create_graph=a.requires_grad
        )
    offset = value[:1].detach()
    transposed = {
        name: gradient.unflatten(0, a.shape[:2])
        for name, gradient in zip(zeros, gradients, strict=True)
    }
    return transposed, total(a * offset)


def _activation(step: Step, state: Backward) -> Below:
    """a h(z) >= (a+ b + a- B) z + a+ c + a- C, from lines b z + c <= h(z) <= B z + C, a+ = max(a,
    0) and a- = min(a, 0).
    """
    (read,) = step.reads
    a = state.coefficients[step.name]
    line = linear_relaxation(applied(step), state.boxes[read], state.free.alpha.get(step.name))
    # in as few passes as can be: a b + a- (B - b)
    down = a.clamp_max(0)
    constant = dot(down, line.upper_bias - line.lower_bias)
    if bool(line.lower_bias.any()):
        constant = constant + dot(a, line.lower_bias)
    below = torch.addcmul(a * line.lower_slope, down, line.upper_slope - line.lower_slope)
    return {read: below}, constant


def _max_pool(step: Step, state: Backward) -> Below:
    """See `maximum.lined`."""
    (read,) = step.reads
    shape = state.net.shapes[read]
    at = windows(step, shape)
    c, constant = lined(at, state.coefficients[step.name], state.boxes[read])
    return {read: added_up(at, c, shape)}, constant


CROWN: Rules[Backward, Below] = Rules(
    "CROWN",
    {
        "affine": _affine,
        "affine linear": _linear,
        "affine reshape": _reshape,
        "activation": _activation,
        "max_pool": _max_pool,
    },
)
