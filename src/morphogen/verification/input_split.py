"""A complete search over the input: boxes whose bounds do not decide are cut in two,
`split_inputs(net, unsafe, box, ...)`.

Complete where a network is piecewise linear and inputs are few, such as the five of ACAS Xu;
anytime elsewhere. All open boxes are bounded in batches, the worst first; each is cut across the
input that may change the output the most, or left to linear programs where few ReLUs bend. In each
a descent from where its bound is attained looks for a counterexample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from morphogen.activations import RELU
from morphogen.bounds.box import Box, Boxes
from morphogen.bounds.crown import bounded, crown
from morphogen.bounds.derivative import derivative
from morphogen.bounds.lp import LEAST, lp_minimum
from morphogen.bounds.rules import activation, affine
from morphogen.deadline import Deadline
from morphogen.tracing.program import Program
from morphogen.verification.branch_and_bound import Callback, Question, Witness, question, solved
from morphogen.verification.pgd import attack, nearest
from morphogen.verification.unsafe import Unsafe, Verdict, margin_of

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
    callback: Callback | None = None,
) -> Verdict:
    """Prove that no input of a box is in any of the unsafe sets, or find one that is.

    box: of one example, (1, *shape). seconds: after which the answer is "unknown", wherever the
    search is then; or a deadline. callback: called with the least bound and the number of open
    boxes as the search goes on.
    """
    asked = question(net, unsafe, box, seconds)
    return solved(asked, _Search(asked), batch, callback)


class _Search:
    """Open boxes with their bounds, (boxes,); see `branch_and_bound.Search`."""

    def __init__(self, asked: Question) -> None:
        self.asked = asked
        self.net = asked.net
        self.witness: Witness | None = None
        self.seen = 0
        self.stuck = False
        self.boxes = asked.box.box
        self.bounds = self.boxes.lower.new_full((1,), -torch.inf)
        self.safe = torch.inf  # the least bound of the boxes that are proved
        self.draw = torch.Generator().manual_seed(0)
        self.attacks = 0.0

    @property
    def open(self) -> int:
        return len(self.bounds)

    @property
    def least(self) -> float:
        return float(self.bounds.min()) if len(self.bounds) else self.safe

    @property
    def proved(self) -> float:
        return min(self.safe, self.least)

    def begin(self) -> None:
        """The whole box is open."""

    def advance(self, batch: int) -> None:
        """Look for an unsafe point where it is time to, then bound the worst boxes and halve those
        that stay open.
        """
        self.witness = self.attacked()
        if self.witness is None:
            self.halve(batch)

    def attacked(self) -> Witness | None:
        """An unsafe point of the whole box, where it is time to look for one, and there is one."""
        began = self.asked.spent
        if self.attacks > _SHARE * began:
            return None
        for each in self.asked.unsafe:
            point, margin = attack(self.net, each, self.asked.box, _RESTARTS, generator=self.draw)
            if margin <= 0:
                return point[0], margin
        self.attacks += self.asked.spent - began
        return None

    def halve(self, batch: int) -> None:
        """Bound the worst boxes and cut those that stay open, or find an unsafe point in one of
        them.
        """
        net = self.net
        rows = self.asked.rows
        worst = self.bounds.topk(min(batch, len(self.bounds)), largest=False).indices
        here = self.boxes[worst]
        boxes = crown(net, here)
        surplus, coefficients = _bounded(net, boxes, rows, self.asked.limits)
        self.seen += len(worst)
        surplus, points = _programmed(net, boxes, rows, self.asked.limits, surplus)
        self.witness = self.descended(here, coefficients, points)
        if self.witness is not None:
            return
        least = surplus.amin(1)
        open_ = ~(least > 0)  # NaN proves nothing
        of_open = {name: each[open_] for name, each in boxes.items()}
        effects = _effects(net, rows, ~(surplus > 0)[open_], of_open)
        halves = _halves(here[open_], effects)
        self.replace(worst, halves, least, open_)

    def descended(
        self, here: Box, coefficients: Tensor, points: Sequence[Tensor]
    ) -> Witness | None:
        """An unsafe point among some, or on a descent in every box: from its centre and from the
        corner where its bound is attained.
        """
        corners = (coefficients <= 0).to(self.net.dtype)
        share = torch.cat([corners, torch.full_like(coefficients, 0.5)])
        twice = here[torch.arange(len(here.lower)).repeat(2)]

        def score(x: Tensor) -> Tensor:
            return margin_of(self.asked.unsafe, self.net(x))

        point, margin = nearest(score, twice, share, _STEPS)
        for other in points:
            if (value := float(score(other))) < margin:
                point = other
                margin = value
        return (point[0], margin) if margin <= 0 else None

    def replace(self, worst: Tensor, halves: Box, least: Tensor, open_: Tensor) -> None:
        """The worst boxes by the halves of those that stay open: all at once, so that whatever is
        interrupted leaves what was known.
        """
        rest = torch.ones(len(self.bounds), dtype=torch.bool).index_fill(0, worst, False)
        proved = least[~open_]
        if len(proved):
            self.safe = min(self.safe, float(proved.min()))
        self.boxes = Box(
            torch.cat([self.boxes.lower[rest], halves.lower]),
            torch.cat([self.boxes.upper[rest], halves.upper]),
        )
        halved = least[open_].nan_to_num(-torch.inf).repeat(2)
        self.bounds = torch.cat([self.bounds[rest], halved])


def _bounded(net: Program, boxes: Boxes, rows: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """(of each set the best lower bound on any row's surplus, (batch, sets); the coefficients on
    the input of the row that has the least of them, (batch, *shape)).
    """
    spec = rows.flatten(0, 1).unflatten(1, net.shapes[net.output])[None]
    result = bounded(net, boxes, spec)
    surplus, best = (result.least.unflatten(1, limits.shape) - limits).max(2)
    clause = surplus.argmin(1, keepdim=True)
    row = clause * limits.shape[1] + best.gather(1, clause)
    return surplus, result.coefficients[torch.arange(len(row)), row[:, 0]]


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
