"""Linear bounds found from the input on, `forward(net, box)`: one pass, cheap where inputs are few.

Every value lies between two linear functions of the input, kept as their middle and half their
difference: an affine step takes the middle through itself and the other through its absolute
derivative, as intervals do with numbers.

Source: forward mode of Xu et al. 2020 (arXiv 2002.12920); DeepPoly, Singh et al. 2019, keeps the
same two functions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.bounds.box import Box, InputSet
from morphogen.bounds.interval import interval_step
from morphogen.bounds.jacobian import abs_jacobian, linear_step
from morphogen.bounds.propagate import Rules, propagate
from morphogen.bounds.relaxation import linear_relaxation
from morphogen.bounds.rules import applied
from morphogen.tracing.program import Program, Step


@dataclass(frozen=True)
class Between:
    """middle(x) - half(x) <= value <= middle(x) + half(x). Both (batch, 1 + inputs, *shape):
    constants, then coefficients.
    """

    middle: Tensor
    half: Tensor

    def box(self, x: Box) -> Box:
        """The least and the largest value on a box of inputs, (batch, inputs)."""
        lower = self.middle - self.half
        upper = self.middle + self.half
        return Box(_least(lower, x.lower, x.upper), -_least(-upper, x.lower, x.upper))


def _least(function: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    constant = function[:, 0]
    slopes = function[:, 1:]
    wide = (*lower.shape, *[1] * (function.dim() - 2))
    return constant + (
        slopes.clamp_min(0) * lower.view(wide) + slopes.clamp_max(0) * upper.view(wide)
    ).sum(1)


@dataclass(frozen=True)
class _Known:
    """What was found so far, by name of a value: functions of the input, and bounds."""

    functions: dict[str, Between]
    boxes: dict[str, InputSet]


def forward(net: Program, box: InputSet) -> dict[str, InputSet]:
    """Bounds on every value by name, at least as tight as those that follow from bounds on what it
    reads.
    """
    box = box.as_input(net.dtype)
    flat = Box(box.lower.flatten(1), box.upper.flatten(1))
    known = _Known({net.input: _identity(net, flat)}, {net.input: box})
    for step, function in propagate(net, FORWARD, known):
        known.functions[step.name] = function
        bounds = interval_step(step, known.boxes)
        known.boxes[step.name] = bounds.intersect(function.box(flat))
    return known.boxes


def _identity(net: Program, flat: Box) -> Between:
    """x between x and x."""
    batch, inputs = flat.lower.shape
    constant = flat.lower.new_zeros(1, inputs)
    middle = torch.cat([constant, torch.eye(inputs, dtype=net.dtype)]).expand(batch, -1, -1)
    middle = middle.unflatten(2, net.shapes[net.input])
    return Between(middle, torch.zeros_like(middle))


def _affine(step: Step, known: _Known) -> Between:
    """J (middle -+ half) + f(0) = f(middle) -+ |J| half."""
    read = {name: known.functions[name] for name in step.reads}
    middle = linear_step(step, {name: value.middle for name, value in read.items()})
    half = abs_jacobian(step, {name: value.half.flatten(0, 1) for name, value in read.items()})
    return Between(middle, half.unflatten(0, middle.shape[:2]))


def _activation(step: Step, known: _Known) -> Between:
    """With lines b z + c <= h(z) <= B z + C and z in middle -+ half,

    b middle - |b| half + c <= h(z) <= B middle + |B| half + C.
    """
    (read,) = step.reads
    value = known.functions[read]
    line = linear_relaxation(applied(step), known.boxes[read])
    below = line.lower_slope * value.middle - line.lower_slope.abs() * value.half
    above = line.upper_slope * value.middle + line.upper_slope.abs() * value.half
    below = torch.cat([below[:, :1] + line.lower_bias, below[:, 1:]], 1)
    above = torch.cat([above[:, :1] + line.upper_bias, above[:, 1:]], 1)
    return Between((above + below) / 2, (above - below) / 2)


def _constant(step: Step, known: _Known) -> Between:
    """Between the two numbers of its interval."""
    box = interval_step(step, known.boxes)
    first = known.functions[step.reads[0]].middle
    zeros = box.lower[:, None].expand(-1, first.shape[1] - 1, *box.lower.shape[1:]) * 0
    middle = torch.cat([box.centre[:, None], zeros], 1)
    half = torch.cat([box.radius[:, None], zeros], 1)
    return Between(middle, half)


FORWARD: Rules[_Known, Between] = Rules(
    "forward",
    {"affine": _affine, "activation": _activation, "max_pool": _constant},
)
