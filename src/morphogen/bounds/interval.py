"""Interval bounds: every value in a box of its own, `interval(program, box)`.

Source: Moore 1966; for networks interval bound propagation (IBP), Gowal et al. 2018 (arXiv
1810.12715). The loosest bounds and the cheapest: three passes, of which one is for what rounding
may do.
"""

from morphogen.activations import extremes
from morphogen.bounds.box import Box, Boxes, InputSet
from morphogen.bounds.jacobian import abs_jacobian
from morphogen.bounds.propagate import Rules, propagate
from morphogen.bounds.rounding import outward, rounded
from morphogen.bounds.rules import applied
from morphogen.tracing.program import Program, Step, run


def interval(net: Program, box: InputSet) -> dict[str, InputSet]:
    """Bounds on every value by name. box: of inputs, (batch, *net.shapes[net.input])."""
    boxes: dict[str, InputSet] = {net.input: box.as_input(net.dtype)}
    for step, bounds in propagate(net, IBP, boxes):
        boxes[step.name] = bounds
    return boxes


def interval_step(step: Step, boxes: Boxes) -> Box:
    """Bounds on a step's value from those on what it reads. Raises `Unsupported` where no rule
    does.
    """
    return IBP.of(step)(step, boxes)


def _ends(step: Step, boxes: Boxes) -> Box:
    """[f(l), f(u)] of a function that does not fall and rounds nothing."""
    lower = run(step, {name: boxes[name].lower for name in step.reads})
    upper = run(step, {name: boxes[name].upper for name in step.reads})
    return Box(lower, upper)


def _range(step: Step, boxes: Boxes) -> Box:
    """[min h, max h] on [l, u], moved outward by what h rounds."""
    (read,) = step.reads
    h = applied(step)
    box = boxes[read]
    if h.monotone:
        return outward(_ends(step, boxes), box)
    return outward(Box(*extremes(h, 0 * box.lower, box.lower, box.upper)), box)


def _affine(step: Step, boxes: Boxes) -> Box:
    """f(centre) -+ (|J| radius + rounding)."""
    centre = run(step, {name: boxes[name].box.centre for name in step.reads})
    radius = abs_jacobian(step, {name: boxes[name].box.radius for name in step.reads})
    radius = radius + rounded(step, boxes)
    return Box(centre - radius, centre + radius)


IBP: Rules[Boxes, Box] = Rules(
    "IBP",
    {
        "affine": _affine,
        "affine reshape": _ends,
        "activation": _range,
        "activation relu": _ends,
        "max_pool": _ends,
    },
)
