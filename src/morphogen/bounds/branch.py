"""A complete search over the input: boxes whose bounds do not decide are cut in two, `split_inputs(net, unsafe, box, ...)`.

Complete where a network is piecewise linear and inputs are few, such as the five of ACAS Xu; anytime elsewhere. All open boxes
are bounded in batches, the worst first, each is cut across the input that may change the output the most, and at every box the
network is run at the point where its bound is attained, which is how counterexamples are found.
"""

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from morphogen.bounds.box import Box
from morphogen.bounds.derivative import derivative
from morphogen.bounds.linear import bounded, linear
from morphogen.bounds.program import Program
from morphogen.bounds.unsafe import MARGIN, Unsafe, Verdict


def split_inputs(
    net: Program, unsafe: Unsafe, box: Box, seconds: float, batch: int = 256, tell: Callable[[float, int], None] | None = None
) -> Verdict:
    """Prove that no input of a box is unsafe, or find one that is.

    box: of one example, (1, *shape). seconds: after which the answer is "unknown". tell: called with the least bound and the
    number of open boxes as the search goes on.
    """
    began, seen = time.perf_counter(), 0
    lower, upper = box.lower.to(net.dtype), box.upper.to(net.dtype)
    bounds = lower.new_full((1,), -torch.inf)
    spec = unsafe.rows.view(1, len(unsafe.rows), *net.shapes[net.output]).to(net.dtype)
    proved = torch.inf  # the least bound of the boxes that are
    while len(lower):
        spent = time.perf_counter() - began
        if spent > seconds:
            return Verdict("unknown", min(proved, float(bounds.min())), None, seen, spent)
        worst = bounds.topk(min(batch, len(bounds)), largest=False).indices
        rest = torch.ones(len(bounds), dtype=torch.bool).index_fill(0, worst, False)
        here = Box(lower[worst], upper[worst])
        boxes = linear(net, here)
        found, coefficients = _bounded(net, unsafe, spec, boxes)
        seen += len(worst)
        points = torch.where(coefficients > 0, here.lower, here.upper)
        tried = torch.cat([points, here.centre])
        excess = unsafe.excess(net(tried))
        if float(excess.min()) <= 0:
            return Verdict("sat", float(excess.min()), tried[excess.argmin()], seen, time.perf_counter() - began)
        open_ = ~(found > MARGIN)  # what is no number proves nothing
        proved = min(proved, float(found[~open_].min())) if bool((~open_).any()) else proved
        halves = _halves(here[open_], _effects(net, unsafe, {name: box[open_] for name, box in boxes.items()}))
        lower, upper = torch.cat([lower[rest], halves.lower]), torch.cat([upper[rest], halves.upper])
        bounds = torch.cat([bounds[rest], found[open_].repeat(2)])
        if tell:
            tell(float(bounds.min()) if len(bounds) else proved, len(bounds))
    return Verdict("unsat", proved, None, seen, time.perf_counter() - began)


def _bounded(net: Program, unsafe: Unsafe, spec: Tensor, boxes: Mapping[str, Box]) -> tuple[Tensor, Tensor]:
    """(the best lower bound on any row's surplus, (batch,), and that row's coefficients on the input, (batch, *shape))."""
    found = bounded(net, boxes, spec)
    surplus, best = (found.least - unsafe.limits).max(1)
    return surplus, found.coefficients[torch.arange(len(best)), best]


def _effects(net: Program, unsafe: Unsafe, boxes: Mapping[str, Box]) -> Tensor:
    """By how much any row may change when one input alone goes from end to end of its edge, (batch, inputs)."""
    ranges, rows = derivative(net, boxes), unsafe.rows.to(net.dtype).T
    change = (ranges.centre.flatten(2) @ rows).abs() + ranges.radius.flatten(2) @ rows.abs()
    return change.amax(2) * boxes[net.input].width.flatten(1)


def _halves(box: Box, effects: Tensor) -> Box:
    """Each box cut in two across the edge of the largest effect: first all lower halves, then all upper."""
    edge = effects.argmax(1)
    rows = torch.arange(len(edge))
    middle = box.centre.flatten(1)[rows, edge]
    below, above = box.upper.flatten(1).clone(), box.lower.flatten(1).clone()
    below[rows, edge], above[rows, edge] = middle, middle
    shape = box.lower.shape
    return Box(torch.cat([box.lower, above.view(shape)]), torch.cat([below.view(shape), box.upper]))
