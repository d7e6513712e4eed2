"""Interval bounds: every value in a box of its own, `interval(program, box)`.

Source: Moore 1966; for networks Gowal et al. 2018 (arXiv 1810.12715). The loosest bounds and the
cheapest: three passes, of which one is for what rounding may do.
"""

from collections.abc import Mapping

from morphogen.activations import RELU, extremes
from morphogen.bounds.box import Box
from morphogen.bounds.rounding import outward, rounded
from morphogen.bounds.rules import MAXIMA, abs_jacobian, activation, affine, refuse
from morphogen.tracing.program import RESHAPES, Program, Step, run


def interval(net: Program, box: Box) -> dict[str, Box]:
    """Bounds on every value by name. box: of inputs, (batch, *net.shapes[net.input])."""
    found: dict[str, Box] = {net.input: box.as_input(net.dtype)}
    for step in net.forth():
        found[step.name] = interval_step(step, found)
    return found


def interval_step(step: Step, boxes: Mapping[str, Box]) -> Box:
    """Bounds on a step's value from those on what it reads. Raises `Unsupported` where no rule
    does.
    """
    lower = {n: boxes[n].lower for n in step.reads}
    upper = {n: boxes[n].upper for n in step.reads}
    h = activation(step)
    if step.kind in MAXIMA or step.kind in RESHAPES or h is RELU:  # nothing is rounded
        return Box(run(step, lower), run(step, upper))
    if h is not None:
        (box,) = (boxes[n] for n in step.reads)
        ends = (
            (run(step, lower), run(step, upper))
            if h.monotone
            else extremes(h, 0 * box.lower, box.lower, box.upper)
        )
        return outward(Box(*ends), box)
    if not affine(step):
        raise refuse(step, "interval")
    centre = run(step, {n: boxes[n].centre for n in step.reads})
    radius = abs_jacobian(step, {n: boxes[n].radius for n in step.reads}) + rounded(step, boxes)
    return Box(centre - radius, centre + radius)
