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

from morphogen.bounds.box import Box
from morphogen.bounds.crown import linear_relaxation
from morphogen.bounds.interval import interval_step
from morphogen.bounds.rules import abs_jacobian, activation, affine, linear_step
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


def forward(net: Program, box: Box) -> dict[str, Box]:
    """Bounds on every value by name, at least as tight as those that follow from bounds on what it
    reads.
    """
    box = box.as_input(net.dtype)
    flat = Box(box.lower.flatten(1), box.upper.flatten(1))
    batch, inputs = flat.lower.shape
    middle = torch.cat(
        [flat.lower.new_zeros(1, inputs), torch.eye(inputs, dtype=net.dtype)]
    ).expand(batch, -1, -1)
    start = middle.unflatten(2, net.shapes[net.input])
    known = {net.input: Between(start, torch.zeros_like(start))}
    boxes = {net.input: box}
    for step in net.forth():
        boxes[step.name] = interval_step(step, boxes)
        known[step.name] = _next(step, known, boxes)
        boxes[step.name] = boxes[step.name].intersect(known[step.name].box(flat))
    return boxes


def _next(step: Step, known: dict[str, Between], boxes: dict[str, Box]) -> Between:
    read = {name: known[name] for name in step.reads}
    first = read[step.reads[0]].middle
    if affine(step):
        middle = linear_step(step, {name: value.middle for name, value in read.items()})
        half = abs_jacobian(step, {name: value.half.flatten(0, 1) for name, value in read.items()})
        return Between(middle, half.unflatten(0, first.shape[:2]))
    h = activation(step)
    if h is None:  # a maximum: between two numbers
        box = boxes[step.name]
        zeros = box.lower[:, None].expand(-1, first.shape[1] - 1, *box.lower.shape[1:]) * 0
        return Between(
            torch.cat([box.centre[:, None], zeros], 1), torch.cat([box.radius[:, None], zeros], 1)
        )
    found, (value,) = linear_relaxation(h, boxes[step.reads[0]]), read.values()
    below = found.lower_slope * value.middle - found.lower_slope.abs() * value.half
    above = found.upper_slope * value.middle + found.upper_slope.abs() * value.half
    below = torch.cat([below[:, :1] + found.lower_bias, below[:, 1:]], 1)
    above = torch.cat([above[:, :1] + found.upper_bias, above[:, 1:]], 1)
    return Between((above + below) / 2, (above - below) / 2)
