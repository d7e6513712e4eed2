"""Ranges of the derivative on a box, `derivative(net, boxes)`: how much each input can count,
wherever in the box one is.

Source: the smear of Wang et al. 2018 (ReluVal, arXiv 1804.10829), which cuts the input that may
change the output the most. Differs: found from the input on. From the output back, ranges are wide
by the time they come to the inputs, and tell them apart less well: on ACAS Xu searches take 1.1 to
2.2 times as many boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.bounds.box import Box, Boxes
from morphogen.bounds.jacobian import abs_jacobian, offset
from morphogen.bounds.maximum import looked_at, windows
from morphogen.bounds.propagate import Rules, propagate
from morphogen.bounds.relaxation import places
from morphogen.bounds.rules import applied
from morphogen.tracing.program import Program, Step, run

# numbers in the ranges of one value that are found at once, so that no single step takes long
_CHUNK = 2**20


def derivative(net: Program, boxes: Boxes) -> Box:
    """The least and the largest derivative of each output by each input, (batch, inputs, *outputs),
    on boxes from `crown`.

    Rounding is left out, and the slopes of curved activations are looked up in 17 places: this
    ranks inputs, it proves nothing.
    """
    inputs = math.prod(net.shapes[net.input])
    widest = max(map(math.prod, net.shapes.values()))
    rows = torch.arange(len(boxes[net.input].lower)).split(max(1, _CHUNK // (inputs * widest)))
    columns = torch.arange(inputs).split(max(1, _CHUNK // widest))
    ranges = []
    for part in rows:
        of_part = {name: box[part] for name, box in boxes.items()}
        ranges.append(_joined([_by_inputs(net, of_part, some) for some in columns], 1))
    return _joined(ranges, 0)


def _joined(boxes: Sequence[Box], dim: int) -> Box:
    lower = torch.cat([box.lower for box in boxes], dim)
    upper = torch.cat([box.upper for box in boxes], dim)
    return Box(lower, upper)


@dataclass(frozen=True)
class _Ranges:
    """boxes: of values, (batch, *shape). slopes: by name, of the value's derivative by each of so
    many inputs, (batch * inputs, *shape).
    """

    boxes: Boxes
    inputs: int
    slopes: dict[str, Box]


def _by_inputs(net: Program, boxes: Boxes, which: Tensor) -> Box:
    """By some inputs, given by their places."""
    batch = len(boxes[net.input].lower)
    eye = torch.eye(math.prod(net.shapes[net.input]), dtype=net.dtype)[which]
    eye = eye.repeat(batch, 1).view(-1, *net.shapes[net.input])
    ranges = _Ranges(boxes, len(which), {net.input: Box(eye, eye)})
    for step, slope in propagate(net, DERIVATIVE, ranges):
        ranges.slopes[step.name] = slope
    ends = ranges.slopes[net.output]
    shape = (batch, len(which))
    return Box(ends.lower.unflatten(0, shape), ends.upper.unflatten(0, shape))


def _affine(step: Step, ranges: _Ranges) -> Box:
    """J centre -+ |J| radius."""
    read = {name: ranges.slopes[name] for name in step.reads}
    centres = {name: box.centre for name, box in read.items()}
    centre = run(step, centres) - offset(step, centres)
    radius = abs_jacobian(step, {name: box.radius for name, box in read.items()})
    return Box(centre - radius, centre + radius)


def _relu(step: Step, ranges: _Ranges) -> Box:
    box = ranges.boxes[step.reads[0]]
    return _chained(step, ranges, torch.stack([box.lower, box.upper]))


def _activation(step: Step, ranges: _Ranges) -> Box:
    box = ranges.boxes[step.reads[0]]
    return _chained(step, ranges, places(box.lower, box.upper))


def _chained(step: Step, ranges: _Ranges, z: Tensor) -> Box:
    """h'(z) z', each factor in its range; that of h' from its values in some places."""
    slopes = applied(step).slope(z)
    low = slopes.amin(0).repeat_interleave(ranges.inputs, 0)
    high = slopes.amax(0).repeat_interleave(ranges.inputs, 0)
    read = ranges.slopes[step.reads[0]]
    products = torch.stack(
        [low * read.lower, low * read.upper, high * read.lower, high * read.upper]
    )
    return Box(products.amin(0), products.amax(0))


def _max_pool(step: Step, ranges: _Ranges) -> Box:
    """The derivative of one of the entries that may be the largest."""
    (read,) = step.reads
    box = ranges.boxes[read]
    slope = ranges.slopes[read]
    at = windows(step, box.lower.shape[1:])
    floor = run(step, {read: box.lower}).flatten(1)[..., None]
    largest = looked_at(at, box.upper, -torch.inf) >= floor
    largest = largest.repeat_interleave(ranges.inputs, 0)
    lower = torch.where(largest, looked_at(at, slope.lower, 0.0), torch.inf).amin(2)
    upper = torch.where(largest, looked_at(at, slope.upper, 0.0), -torch.inf).amax(2)
    return Box(lower.view(-1, *step.shape), upper.view(-1, *step.shape))


DERIVATIVE: Rules[_Ranges, Box] = Rules(
    "derivative",
    {
        "affine": _affine,
        "activation": _activation,
        "activation relu": _relu,
        "max_pool": _max_pool,
    },
)
