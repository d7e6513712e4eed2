"""A complete search over the input: boxes whose bounds do not decide are cut in two,
`split_inputs(net, unsafe, box, ...)`.

Complete where a network is piecewise linear and inputs are few, such as the five of ACAS Xu;
anytime elsewhere. All open boxes are bounded in batches, the worst first; each is cut across the
input that may change the output the most, or left to linear programs where few ReLUs bend. In each
a descent from where its bound is attained looks for a counterexample.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from morphogen.activations import RELU
from morphogen.bounds.box import Box, Boxes
from morphogen.bounds.crown import bounded, crown
from morphogen.bounds.derivative import derivative
from morphogen.bounds.lp import LEAST, lp_minimum
from morphogen.bounds.rules import activation, affine
from morphogen.deadline import Deadline, OutOfTime, deadline
from morphogen.tracing.program import Program
from morphogen.verification.pgd import attack, nearest
from morphogen.verification.unsafe import Unsafe, Verdict, margin_of, stacked

_RESTARTS = 1024  # of an attack on the whole box; inputs are few
_SHARE = 0.1  # of the time goes into such attacks, of which there is one before the search
_STEPS = 5  # of the descent in each box
_FEW = 4  # ReLUs of both signs in a box that is left to linear programs
_SECONDS = 1.0  # for one of them


def split_inputs(
    net: Program,
    unsafe: Sequence[Unsafe],
    box: Box,
    seconds: float | Deadline,
    batch: int = 256,
    callback: Callable[[float, int], None] | None = None,
) -> Verdict:
    """Prove that no input of a box is in any of the unsafe sets, or find one that is.

    box: of one example, (1, *shape). seconds: after which the answer is "unknown", wherever the
    search is then; or a deadline. callback: called with the least bound and the number of open
    boxes as the search goes on.
    """
    until = deadline(seconds)
    return _Search(replace(net, until=until), unsafe, box.as_input(net.dtype), until, callback).run(
        batch
    )


class _Search:
    """What stays the same during one search, and what it has seen."""

    def __init__(
        self,
        net: Program,
        unsafe: Sequence[Unsafe],
        box: Box,
        until: Deadline,
        callback: Callable[[float, int], None] | None,
    ) -> None:
        self.net = net
        self.unsafe = unsafe
        self.box = box
        self.until = until
        self.callback = callback
        self.began = until.now()
        self.seen = 0
        self.rows, self.limits = (t.to(net.dtype) for t in stacked(unsafe))
        self.open = box  # boxes that are not proved
        self.bounds = box.lower.new_full((1,), -torch.inf)  # of theirs
        self.proved = torch.inf  # the least bound of the boxes that are
        self.draw = torch.Generator().manual_seed(0)
        self.attacks = 0.0

    @property
    def spent(self) -> float:
        return self.until.now() - self.began

    def run(self, batch: int) -> Verdict:
        try:
            while len(self.bounds):
                self.until.check()
                witness = self.attacked() or self.halved(batch)
                if witness is not None:
                    return Verdict("sat", witness[1], witness[0][0], self.seen, self.spent)
                if self.callback:
                    self.callback(
                        float(self.bounds.min()) if len(self.bounds) else self.proved,
                        len(self.bounds),
                    )
        except OutOfTime:
            least = min(self.proved, float(self.bounds.min()))
            return Verdict("unknown", least, None, self.seen, self.spent)
        return Verdict("unsat", self.proved, None, self.seen, self.spent)

    def attacked(self) -> tuple[Tensor, float] | None:
        """An unsafe point of the whole box and its margin, where it is time to look for one, and
        there is one.
        """
        if self.attacks > _SHARE * (began := self.spent):
            return None
        for each in self.unsafe:
            point, margin = attack(self.net, each, self.box, _RESTARTS, generator=self.draw)
            if margin <= 0:
                return point, margin
        self.attacks += self.spent - began
        return None

    def halved(self, batch: int) -> tuple[Tensor, float] | None:
        """Bound the worst boxes and cut those that stay open, or find an unsafe point in one of
        them, and its margin.
        """
        net = self.net
        rows = self.rows
        limits = self.limits
        worst = self.bounds.topk(min(batch, len(self.bounds)), largest=False).indices
        rest = torch.ones(len(self.bounds), dtype=torch.bool).index_fill(0, worst, False)
        here = self.open[worst]
        boxes = crown(net, here)
        surplus, coefficients = _bounded(net, boxes, rows, limits)
        self.seen += len(worst)
        surplus, points = _programmed(net, boxes, rows, limits, surplus)
        least = surplus.amin(1)
        # in every box from its centre and from the corner where its bound is attained
        share = torch.cat([(coefficients <= 0).to(net.dtype), torch.full_like(coefficients, 0.5)])
        twice = here[torch.arange(len(worst)).repeat(2)]
        point, margin = nearest(lambda x: margin_of(self.unsafe, net(x)), twice, share, _STEPS)
        for other in points:
            if (value := float(margin_of(self.unsafe, net(other)))) < margin:
                point = other
                margin = value
        if margin <= 0:
            return point, margin
        open_ = ~(least > 0)  # NaN proves nothing
        effects = _effects(
            net, rows, ~(surplus > 0)[open_], {name: each[open_] for name, each in boxes.items()}
        )
        halves = _halves(here[open_], effects)
        # all at once, so that whatever is interrupted leaves what was known
        self.proved = (
            min(self.proved, float(least[~open_].min())) if bool((~open_).any()) else self.proved
        )
        self.open = Box(
            torch.cat([self.open.lower[rest], halves.lower]),
            torch.cat([self.open.upper[rest], halves.upper]),
        )
        self.bounds = torch.cat([self.bounds[rest], least[open_].nan_to_num(-torch.inf).repeat(2)])
        return None


def _bounded(net: Program, boxes: Boxes, rows: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """(of each set the best lower bound on any row's surplus, (batch, sets); the coefficients on
    the input of the row that has the least of them, (batch, *shape)).
    """
    spec = rows.flatten(0, 1).unflatten(1, net.shapes[net.output])[None]
    found = bounded(net, boxes, spec)
    surplus, best = (found.least.unflatten(1, limits.shape) - limits).max(2)
    clause = surplus.argmin(1, keepdim=True)
    row = clause * limits.shape[1] + best.gather(1, clause)
    return surplus, found.coefficients[torch.arange(len(row)), row[:, 0]]


def _programmed(
    net: Program, boxes: Boxes, rows: Tensor, limits: Tensor, surplus: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """(the surplus, anew where it is open and few ReLUs have both signs: from linear programs, case
    by case where lines are not enough; the inputs (1, *shape) where those are attained).
    """
    bent = torch.zeros(len(surplus), dtype=torch.long)
    points = []
    for step in net.forth():
        if activation(step) is RELU:
            box = boxes[step.reads[0]]
            bent += ((box.lower < 0) & (box.upper > 0)).flatten(1).sum(1)
        elif not affine(step):
            return surplus, []
    for i, k in ((bent <= _FEW)[:, None] & ~(surplus > 0)).nonzero().tolist():
        one = {name: box[i : i + 1] for name, box in boxes.items()}
        row = rows[k].unflatten(1, net.shapes[net.output])
        bound, point = lp_minimum(net, one, row, limits[k])
        if not bound > 0:
            bound, point = lp_minimum(net, one, row, limits[k], True, _SECONDS, LEAST)
        surplus[i, k] = torch.fmax(surplus[i, k], surplus.new_tensor(bound))
        points += [] if point is None else [point]
    return surplus, points


def _effects(net: Program, rows: Tensor, open_: Tensor, boxes: Boxes) -> Tensor:
    """By how much a row of the open sets may change when one input alone goes from end to end of
    its edge, (batch, inputs).
    """
    ranges = derivative(net, boxes)
    across = rows.flatten(0, 1).T
    change = (ranges.centre.flatten(2) @ across).abs() + ranges.radius.flatten(2) @ across.abs()
    change = change.unflatten(2, rows.shape[:2]).amax(3) * open_[:, None]
    effects: Tensor = change.amax(2) * boxes[net.input].box.width.flatten(1)
    return effects


def _halves(box: Box, effects: Tensor) -> Box:
    """Each box cut in two across the edge of the largest effect: first all lower halves, then all
    upper.
    """
    edge = effects.argmax(1)
    rows = torch.arange(len(edge))
    middle = box.centre.flatten(1)[rows, edge]
    below = box.upper.flatten(1).clone()
    above = box.lower.flatten(1).clone()
    below[rows, edge], above[rows, edge] = middle, middle
    shape = box.lower.shape
    return Box(torch.cat([box.lower, above.view(shape)]), torch.cat([below.view(shape), box.upper]))
