"""A complete search over the signs of ReLUs: parts whose bounds do not decide are cut where one
unit is 0, `split_relus`.

Complete where a network is piecewise linear, whatever the number of inputs: once every unit has its
sign, a linear program decides. Parts are bounded in batches, the worst first; the unit that is cut
is the one of a few likely ones whose two halves have the best worse bound.

Source: beta-CROWN, Wang et al. 2021 (arXiv 2103.06624); the choice of the unit: filtered smart
branching, De Palma et al. 2021 (arXiv 2104.06718).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count

import torch
from torch import Tensor

from morphogen.activations import RELU
from morphogen.bounds.alpha_crown import OptimisedBound, alpha_crown, optimised
from morphogen.bounds.box import InputSet
from morphogen.bounds.crown import Variables, crown, lower_bound
from morphogen.bounds.interval import interval
from morphogen.bounds.lp import LEAST, lp_minimum
from morphogen.bounds.rounding import magnitudes, size
from morphogen.bounds.rules import activation, affine
from morphogen.deadline import Deadline
from morphogen.tracing.program import Program
from morphogen.verification.branch_and_bound import Callback, Question, Witness, question, solved
from morphogen.verification.pgd import attack
from morphogen.verification.unsafe import Unsafe, Verdict

Signs = Mapping[str, Tensor]
"""By value, (batch, *shape): 1 where it is at least 0, -1 where at most, 0 where nothing is known.
"""

_STEPS = 12  # of ascent for a part
_EXACT = 1e-9  # a loss below it is rounding, relative to the size of what is bounded
_TRIED = 4  # units that may be cut are compared by their halves


@dataclass(frozen=True)
class Subproblem:
    """One part of the inputs: those with these signs (int8, without a batch). clause: which of the
    unsafe sets is in question. bound: of its margin. free: for its halves to begin from. seen: see
    `alpha_crown.OptimisedBound`.
    """

    clause: int
    signs: dict[str, Tensor]
    bound: float
    free: Variables
    seen: dict[str, Tensor]


def splittable(net: Program) -> bool:
    """Whether every step that is not affine is a ReLU."""
    return all(affine(step) or activation(step) is RELU for step in net.steps)


def split_relus(
    net: Program,
    unsafe: Sequence[Unsafe],
    box: InputSet,
    seconds: float | Deadline,
    batch: int = 32,
    callback: Callback | None = None,
) -> Verdict:
    """Prove that no input of a box is in any of the unsafe sets, or find one that is; arguments as
    for `split_inputs`.
    """
    asked = question(net, unsafe, box, seconds)
    return solved(asked, _Search(asked), batch, callback)


class _Search:
    """Open parts, the worst first; see `branch_and_bound.Search`."""

    def __init__(self, asked: Question) -> None:
        net = asked.net
        self.net = net
        self.unsafe = asked.unsafe
        self.box = asked.box
        self.until = asked.until
        self.rows = asked.rows.unflatten(2, net.shapes[net.output])
        self.limits = asked.limits
        self.reads = {step.name: step.reads[0] for step in net.steps if activation(step) is RELU}
        self.witness: Witness | None = None
        self.seen = 0
        self.stuck = False
        self.safe = torch.inf  # the least bound of what is proved
        self.first = -torch.inf  # of all that is open, before there are parts
        self.heap: list[tuple[float, int, Subproblem]] = []
        self.worst: list[Subproblem] = []  # that are being halved
        self.number = count()

    @property
    def open(self) -> int:
        return len(self.heap)

    @property
    def least(self) -> float:
        return self.heap[0][0] if self.heap else self.safe

    @property
    def proved(self) -> float:
        # a part that was left in the middle is open, whatever of it is not
        return min([self.first, self.safe, self.least, *(part.bound for part in self.worst)])

    def begin(self) -> None:
        self.keep(self.roots())
        self.first = torch.inf

    def advance(self, batch: int) -> None:
        self.worst = [heappop(self.heap)[2] for _ in range(min(batch, len(self.heap)))]
        self.keep(self.halved(self.worst))
        self.worst = []

    def keep(self, parts: Iterator[Subproblem]) -> None:
        """Open parts, as they come."""
        for part in parts:
            heappush(self.heap, (part.bound, next(self.number), part))

    def roots(self) -> Iterator[Subproblem]:
        """The clauses that cheaper ways leave open: intervals and one linear bound, linear bounds
        of every value, an attack, then alpha-CROWN.
        """
        for technique in (interval, crown):
            self.boxes = technique(self.net, self.box)
            surplus = self.surplus()
            open_ = (~(surplus > 0)).nonzero()[:, 0].tolist()  # NaN proves nothing
            if not open_:
                self.settle(surplus)
                return
            self.first = max(self.first, float(surplus.nan_to_num(-torch.inf).min()))
        self.settle(surplus)
        for clause in open_:
            self.look(attack(self.net, self.unsafe[clause], self.box)[0], clause)
            if self.witness is not None:
                return
        self.boxes = alpha_crown(self.net, self.box, _STEPS, self.until.left())
        self.sizes = magnitudes(self.net, self.boxes)
        whole = [Subproblem(clause, {}, -torch.inf, Variables(), {}) for clause in open_]
        yield from self.parts(
            self.bounded(whole, [{} for _ in open_], 2 * _STEPS), open_, [{} for _ in open_]
        )

    def surplus(self) -> Tensor:
        """Of each clause the best lower bound on any row's surplus, by linear functions of the
        input.
        """
        bounds = lower_bound(self.net, self.boxes, self.rows.flatten(0, 1)[None])
        return (bounds.view(self.limits.shape) - self.limits).amax(1)

    def halved(self, parts: Sequence[Subproblem]) -> Iterator[Subproblem]:
        """The halves of each part that remain open."""
        chosen = self.choices(parts)
        undecided = [part for part, units in zip(parts, chosen, strict=True) if not units]
        for part in undecided:
            yield from self.decided(part)
        owners, signs = self.best_cuts(
            [(part, units) for part, units in zip(parts, chosen, strict=True) if units]
        )
        if owners:
            result = self.bounded(owners, signs, _STEPS)
            yield from self.parts(result, [part.clause for part in owners], signs)

    def parts(
        self, result: OptimisedBound, clauses: Sequence[int], signs: Sequence[dict[str, Tensor]]
    ) -> Iterator[Subproblem]:
        """Those that are not proved, after a look at the points where their bounds are attained."""
        surplus = result.bound[:, 0]
        self.seen += len(surplus)
        self.settle(surplus)
        corners = self.box.repeated(len(surplus)).lowest_at(result.coefficients[:, 0])
        for i, clause in enumerate(clauses):
            self.look(corners[i : i + 1], clause)
            if not float(surplus[i]) > 0:
                seen = {name: a[i, 0] for name, a in result.seen.items()}
                free = _of_part(result.free, i)
                yield Subproblem(clause, signs[i], float(surplus[i]), free, seen)

    def choices(self, parts: Sequence[Subproblem]) -> list[list[tuple[str, int]]]:
        """A few units of each part, by what their lines may lose; none where no line loses
        anything.
        """
        chosen: list[list[tuple[str, int]]] = []
        for part in parts:
            losses = [
                (read, self.loss(part, step).flatten())
                for step, read in self.reads.items()
                if step in part.seen
            ]
            if not losses:
                chosen.append([])
                continue
            every = torch.cat([loss for _, loss in losses])
            score, places = every.topk(min(_TRIED, len(every)))
            exact = _EXACT * self.scale(part.clause)
            sizes = [(read, len(loss)) for read, loss in losses]
            chosen.append([_place(sizes, int(place)) for place in places[score > exact]])
        return chosen

    def loss(self, part: Subproblem, step: str) -> Tensor:
        """By how much the lines of a ReLU's units may lower the bound of a part, (*shape):

        |a-| times the chord's height at 0, and a+ max(s |l|, (1 - s) u) with the slope s below.
        """
        read = self.reads[step]
        box = _signed(self.boxes[read], part.signs.get(read))
        lower = box.lower[0]
        upper = box.upper[0]
        a = part.seen[step]
        alpha = part.free.alpha.get(step)
        share = torch.zeros_like(lower) if alpha is None else alpha[0, 0]
        chord = upper * -lower / (upper - lower).clamp_min(1e-300)
        below = torch.maximum(share * -lower, (1 - share) * upper)
        loss = a.clamp_max(0).abs() * chord + a.clamp_min(0) * below
        return torch.where((lower < 0) & (upper > 0), loss, 0.0)

    def scale(self, clause: int) -> float:
        """How large the rows and limits of a clause can be."""
        reach = self.rows[clause].abs().flatten(1) @ size(self.boxes[self.net.output])[0].flatten()
        return float((reach + self.limits[clause].abs()).amax())

    def best_cuts(
        self, chosen: Sequence[tuple[Subproblem, Sequence[tuple[str, int]]]]
    ) -> tuple[list[Subproblem], list[dict[str, Tensor]]]:
        """Each part twice, with its two halves by the unit whose worse half has the best bound."""
        owners = [part for part, units in chosen for _ in units for _ in (1, -1)]
        signs = [
            self.with_sign(part, unit, sign)
            for part, units in chosen
            for unit in units
            for sign in (1, -1)
        ]
        if not owners:
            return [], []
        worse = self.bounded(owners, signs, 0).bound.view(-1, 2).amin(1)
        kept = []
        first = 0
        for _, units in chosen:
            at = 2 * (first + int(worse[first : first + len(units)].argmax()))
            kept += [at, at + 1]
            first += len(units)
        return [owners[i] for i in kept], [signs[i] for i in kept]

    def with_sign(self, part: Subproblem, unit: tuple[str, int], sign: int) -> dict[str, Tensor]:
        name, place = unit
        old = part.signs.get(name)
        new = torch.zeros(self.net.shapes[name], dtype=torch.int8) if old is None else old.clone()
        new.view(-1)[place] = sign
        return {**part.signs, name: new}

    def bounded(
        self, parts: Sequence[Subproblem], signs: Sequence[dict[str, Tensor]], steps: int
    ) -> OptimisedBound:
        """Bounds of parts, each with the signs given."""
        names = {name for each in signs for name in each}
        every = {name: self.stacked_signs(name, signs) for name in names}
        wanted = {read for step in self.net.steps if not affine(step) for read in step.reads}
        boxes = {
            name: _signed(self.boxes[name].repeated(len(parts)), every.get(name))
            for name in wanted | {self.net.input}
        }
        clauses = torch.tensor([part.clause for part in parts])
        return optimised(
            self.net,
            boxes,
            self.rows[clauses],
            None,
            every,
            self.stacked_free([part.free for part in parts], names),
            steps,
            0.0,
            self.limits[clauses],
            self.sizes,
        )

    def stacked_signs(self, name: str, signs: Sequence[dict[str, Tensor]]) -> Tensor:
        none = torch.zeros(self.net.shapes[name], dtype=torch.int8)
        return torch.stack([each.get(name, none) for each in signs])

    def stacked_free(self, free: Sequence[Variables], names: set[str]) -> Variables:
        """What parts begin from, as one; what one of them lacks is 0, or left to be begun anew."""
        alpha = {
            name: torch.stack([each.alpha[name] for each in free], 1)
            for name in _common(each.alpha for each in free)
        }
        beta = {}
        for name in names:
            zero = torch.zeros(1, *self.net.shapes[name], dtype=self.net.dtype)
            beta[name] = torch.stack([each.beta.get(name, zero) for each in free])
        mixing = [each.mixing for each in free if each.mixing is not None]
        return Variables(alpha, beta, torch.stack(mixing) if len(mixing) == len(free) else None)

    def decided(self, part: Subproblem) -> Iterator[Subproblem]:
        """No line loses anything, as where every unit has its sign: a linear program decides, case
        by case if need be.
        """
        boxes = {name: _signed(box, part.signs.get(name)) for name, box in self.boxes.items()}
        rows = self.rows[part.clause]
        limits = self.limits[part.clause]
        bound, point = lp_minimum(self.net, boxes, rows, limits)
        if not bound > 0:
            bound, point = lp_minimum(self.net, boxes, rows, limits, True, stop_above=LEAST)
        if point is not None:
            self.look(point, part.clause)
        if bound > 0:
            self.safe = min(self.safe, bound)
        elif self.witness is None:  # within rounding of the limit: nobody can tell
            self.stuck = True
            yield replace(part, seen={})

    def settle(self, surplus: Tensor) -> None:
        safe = surplus[surplus > 0]
        if len(safe):
            self.safe = min(self.safe, float(safe.min()))

    def look(self, x: Tensor, clause: int) -> None:
        x = self.box.inside(x)
        margin = float(self.unsafe[clause].margin(self.net(x)))
        if margin <= 0 and self.witness is None:
            self.witness = x[0], margin


def _signed(box: InputSet, signs: Tensor | None) -> InputSet:
    return box if signs is None else box.with_signs(signs)


def _common(names: Iterator[Mapping[str, Tensor]]) -> set[str]:
    first, *others = (set(each) for each in names)
    return first.intersection(*others)


def _place(sizes: Sequence[tuple[str, int]], place: int) -> tuple[str, int]:
    """(value, place in it) of a place in all values one behind the other."""
    for name, length in sizes:
        if place < length:
            return name, place
        place -= length
    raise IndexError(place)


def _of_part(free: Variables, i: int) -> Variables:
    """Those of one part of a batch."""
    return Variables(
        {name: share[:, i] for name, share in free.alpha.items()},
        {name: multiplier[i] for name, multiplier in free.beta.items()},
        None if free.mixing is None else free.mixing[i],
    )
