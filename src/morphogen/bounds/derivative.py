"""Ranges of the derivative on a box, `derivative(net, boxes)`: how much each input can count,
wherever in the box one is.

Source: the smear of Wang et al. 2018 (ReluVal, arXiv 1804.10829), which cuts the input that may
change the output the most. Differs: found from the input on. From the output back, ranges are wide
by the time they come to the inputs, and tell them apart less well: on ACAS Xu searches take 1.1 to
2.2 times as many boxes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from morphogen.activations import RELU
from morphogen.bounds.box import Box
from morphogen.bounds.crown import places
from morphogen.bounds.maximum import looked_at, windows
from morphogen.bounds.rules import abs_jacobian, activation, affine
from morphogen.tracing.program import Program, Step, run

# numbers in the ranges of one value that are found at once, so that no single step takes long
_CHUNK = 2**20


def derivative(net: Program, boxes: Mapping[str, Box]) -> Box:
    """The least and the largest derivative of each output by each input, (batch, inputs, *outputs),
    on boxes from `linear`.

    Rounding is left out, and the slopes of curved activations are looked up in 17 places: this
    ranks inputs, it proves nothing.
    """
    inputs = math.prod(net.shapes[net.input])
    widest = max(map(math.prod, net.shapes.values()))
    rows = torch.arange(len(boxes[net.input].lower)).split(max(1, _CHUNK // (inputs * widest)))
    places = torch.arange(inputs).split(max(1, _CHUNK // widest))
    found = [
        _joined(
            [
                _derivative(net, {name: box[part] for name, box in boxes.items()}, which)
                for which in places
            ],
            1,
        )
        for part in rows
    ]
    return _joined(found, 0)


def _joined(boxes: Sequence[Box], dim: int) -> Box:
    return Box(
        *(torch.cat([getattr(box, end) for box in boxes], dim) for end in ("lower", "upper"))
    )


def _derivative(net: Program, boxes: Mapping[str, Box], which: Tensor) -> Box:
    """By some inputs, given by their places."""
    batch = len(boxes[net.input].lower)
    inputs = len(which)
    eye = torch.eye(math.prod(net.shapes[net.input]), dtype=net.dtype)[which]
    eye = eye.repeat(batch, 1).view(-1, *net.shapes[net.input])
    known = {net.input: Box(eye, eye)}
    for step in net.forth():
        known[step.name] = _next(step, known, boxes, inputs)
    ends = known[net.output]
    return Box(*(end.unflatten(0, (batch, inputs)) for end in (ends.lower, ends.upper)))


def _next(step: Step, known: Mapping[str, Box], boxes: Mapping[str, Box], inputs: int) -> Box:
    """The ranges of a step's derivative, (batch * inputs, *shape), from those of what it reads."""
    if affine(step):
        added = run(step, {n: torch.zeros_like(known[n].lower[:1]) for n in step.reads})
        centre = run(step, {n: known[n].centre for n in step.reads}) - added
        radius = abs_jacobian(step, {n: known[n].radius for n in step.reads})
        return Box(centre - radius, centre + radius)
    (read,) = (known[n] for n in step.reads)
    h = activation(step)
    box = boxes[step.reads[0]]
    if h is None:  # a maximum: the derivative of one of the entries that may be the largest
        at = windows(step, box.lower.shape[1:])
        floor = run(step, {step.reads[0]: box.lower}).flatten(1)[..., None]
        may = (looked_at(at, box.upper, -torch.inf) >= floor).repeat_interleave(inputs, 0)
        lower, upper = (looked_at(at, end, 0.0) for end in (read.lower, read.upper))
        ends = (
            torch.where(may, lower, torch.inf).amin(2),
            torch.where(may, upper, -torch.inf).amax(2),
        )
        return Box(*(end.view(len(end), *step.shape) for end in ends))
    slopes = h.slope(
        torch.stack([box.lower, box.upper]) if h is RELU else places(box.lower, box.upper)
    )
    low, high = (s.repeat_interleave(inputs, 0) for s in (slopes.amin(0), slopes.amax(0)))
    products = torch.stack(
        [low * read.lower, low * read.upper, high * read.lower, high * read.upper]
    )
    return Box(products.amin(0), products.amax(0))
