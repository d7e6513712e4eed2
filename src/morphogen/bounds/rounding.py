"""By how much bounds may be off because numbers are rounded, so that they can be moved outward by
it.

A sum of n products is off by at most n u / (1 - n u) times the sum of their sizes, u half the
distance from 1 to the next number, in whatever order it is taken. A linear bound is a sum of what
its steps contribute: each step's coefficients, whatever they came out as, times sizes that follow
from the boxes.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1.
"""

import math

import torch
from torch import Tensor

from morphogen.bounds.box import Box, Boxes, InputSet
from morphogen.bounds.jacobian import abs_jacobian, offset
from morphogen.bounds.propagate import Rules, propagate
from morphogen.tracing.program import Program, Step

# an activation's value is off by a few units in the last place; its lines' slopes, offsets and
# products add some more
_FEW = 32


def size(box: InputSet) -> Tensor:
    """The largest absolute value of each entry."""
    return torch.maximum(box.lower.abs(), box.upper.abs())


def unit(dtype: torch.dtype, terms: int) -> float:
    """n u / (1 - n u), twice: for the sum, and for what second-order terms and this very estimate
    lose.
    """
    nu = (terms + _FEW) * torch.finfo(dtype).eps / 2
    return 2 * nu / (1 - nu) if nu < 0.5 else math.inf


def outward(box: Box, read: InputSet) -> Box:
    """An activation's range a little larger: its values are off by a few units in the last place of
    it or of its argument.
    """
    far = unit(box.lower.dtype, 0)
    return Box(
        box.lower - far * (box.lower.abs() + size(read)),
        box.upper + far * (box.upper.abs() + size(read)),
    )


def magnitude(step: Step, boxes: Boxes) -> Tensor:
    """The sum of the sizes of all products that make a value of the step, (batch, *shape); of an
    activation what is added besides its line's product with what it reads, which counts there.
    """
    return MAGNITUDE.of(step)(step, boxes)


def _affine(step: Step, boxes: Boxes) -> Tensor:
    """|J| size(x) + |f(0)|."""
    sizes = {name: size(boxes[name]) for name in step.reads}
    return abs_jacobian(step, sizes) + offset(step, sizes).abs()


def _straight(step: Step, boxes: Boxes) -> Tensor:
    return 2 * size(boxes[step.name])


def _curved(step: Step, boxes: Boxes) -> Tensor:
    return 2 * size(boxes[step.name]) + size(boxes[step.reads[0]])


MAGNITUDE: Rules[Boxes, Tensor] = Rules(
    "magnitude",
    {
        "affine": _affine,
        "activation": _curved,
        "activation relu": _straight,
        "max_pool": _straight,
    },
)


def rounded(step: Step, boxes: Boxes) -> Tensor:
    """By how much an interval of an affine step's value may be off."""
    count = sum(boxes[name].lower[0].numel() for name in step.reads)
    return unit(boxes[step.reads[0]].lower.dtype, count) * magnitude(step, boxes)


def magnitudes(net: Program, boxes: Boxes) -> dict[str, Tensor]:
    """`magnitude` of every step whose boxes are there, and the size of the input."""
    there = (step for step in net.forth() if {*step.reads, step.name} <= boxes.keys())
    sizes = {net.input: of_input(boxes[net.input])}
    for step, terms in propagate(net, MAGNITUDE, boxes, there):
        sizes[step.name] = terms
    return sizes


def of_input(box: InputSet) -> Tensor:
    """The magnitude of the input: a linear function of it is worked out from the box's centre and
    radius.
    """
    return size(box) + box.box.width


def slack(net: Program) -> float:
    """By how much a linear bound may be off, as a share of its terms' sizes: coefficients times
    `magnitudes`, added up.
    """
    return unit(net.dtype, net.longest + len(net.steps))
