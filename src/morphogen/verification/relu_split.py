"""A complete search over the signs of ReLUs: parts whose bounds do not decide are cut where one
unit is 0, `split_relus`.

Complete where a network is piecewise linear, whatever the number of inputs: once every unit has its
sign, a linear program decides. Parts are bounded in batches, the worst first; the unit that is cut
is the one of a few likely ones whose two halves have the best worse bound.

Source: beta-CROWN, Wang et al. 2021 (arXiv 2103.06624); the choice of the unit: filtered smart
branching, De Palma et al. 2021 (arXiv 2104.06718).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from morphogen.deadline import Deadline, OutOfTime, deadline
from morphogen.tracing.program import Program
from morphogen.verification.pgd import attack
from morphogen.verification.unsafe import Unsafe, Verdict, stacked

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
    callback: Callable[[float, int], None] | None = None,
) -> Verdict:
    """Prove that no input of a box is in any of the unsafe sets, or find one that is; arguments as
    for `split_inputs`.
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
        box: InputSet,
        until: Deadline,
        callback: Callable[[float, int], None] | None,
    ) -> None:
        self.net = net
        self.unsafe = unsafe
        self.box = box
        self.callback = callback
        self.until = until
        self.began = until.now()
        self.stuck = False
        rows, self.limits = (t.to(net.dtype) for t in stacked(unsafe))
        self.rows = rows.unflatten(2, net.shapes[net.output])
        self.reads = {step.name: step.reads[0] for step in net.steps if activation(step) is RELU}
        self.seen = 0
        self.proved = torch.inf
        self.witness: tuple[Tensor, float] | None = None
        self.least = -torch.inf  # of what is open, before there are parts
        self.heap: list[tuple[float, int, Subproblem]] = []
        self.number = count()

    @property
    def spent(self) -> float:
        return self.until.now() - self.began

    def run(self, batch: int) -> Verdict:
        worst: list[Subproblem] = []
        try:
            self.keep(self.roots())
            self.least = torch.inf
            while self.heap and self.witness is None and not self.stuck:
                self.until.check()
                worst = [heappop(self.heap)[2] for _ in range(min(batch, len(self.heap)))]
                self.keep(self.halved(worst))
                worst = []
                if self.callback:
                    self.callback(self.heap[0][0] if self.heap else self.proved, len(self.heap))
            open_ = bool(self.heap)
        except OutOfTime:
            open_ = True
        if self.witness is not None:
            return Verdict("sat", self.witness[1], self.witness[0], self.seen, self.spent)
        # a part that was left in the middle is open, whatever of it is not
        least = min(
            [
                self.least,
                self.proved,
                *(part.bound for part in worst),
                *(bound for bound, _, _ in self.heap[:1]),
            ]
        )
        return Verdict("unknown" if open_ else "unsat", least, None, self.seen, self.spent)

    def keep(self, parts: Iterator[Subproblem]) -> None:
        """Open parts, as they come."""
        for part in parts:
            heappush(self.heap, (part.bound, next(self.number), part))

    def roots(self) -> Iterator[Subproblem]:
        """The clauses that cheaper ways leave open: intervals and one linear bound, linear bounds
        of every value, an attack, then bounds with the best lines.
        """
        for technique in (interval, crown):
            self.boxes = technique(self.net, self.box)
            surplus = self.surplus()
            open_ = (~(surplus > 0)).nonzero()[:, 0].tolist()  # NaN proves nothing
            if not open_:
                self.settle(surplus)
                return
            self.least = max(self.least, float(surplus.nan_to_num(-torch.inf).min()))
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
        found = lower_bound(self.net, self.boxes, self.rows.flatten(0, 1)[None])
        return (found.view(self.limits.shape) - self.limits).amax(1)

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
            found = self.bounded(owners, signs, _STEPS)
            yield from self.parts(found, [part.clause for part in owners], signs)

    def parts(
        self, found: OptimisedBound, clauses: Sequence[int], signs: Sequence[dict[str, Tensor]]
    ) -> Iterator[Subproblem]:
        """Those that are not proved, after a look at the points where their bounds are attained."""
        surplus = found.bound[:, 0]
        self.seen += len(surplus)
        self.settle(surplus)
        corners = self.box.repeated(len(surplus)).lowest_at(found.coefficients[:, 0])
        for i, clause in enumerate(clauses):
            self.look(corners[i : i + 1], clause)
            if not float(surplus[i]) > 0:
                free = Variables(
                    {n: s[:, i] for n, s in found.free.alpha.items()},
                    {v: s[i] for v, s in found.free.beta.items()},
                    None if found.free.mixing is None else found.free.mixing[i],
                )
                seen = {n: a[i, 0] for n, a in found.seen.items()}
                yield Subproblem(clause, signs[i], float(surplus[i]), free, seen)

    def choices(self, parts: Sequence[Subproblem]) -> list[list[tuple[str, int]]]:
        """A few units of each part, by what their lines may lose; none where no line loses
        anything.
        """
        found: list[list[tuple[str, int]]] = []
        for part in parts:
            names = []
            scores = []
            sizes = []
            exact = _EXACT * self.scale(part.clause)
            for step, read in self.reads.items():
                if step not in part.seen:
                    continue
                box = _signed(self.boxes[read], part.signs.get(read))
                lower = box.lower[0]
                upper = box.upper[0]
                a = part.seen[step]
                unstable = (lower < 0) & (upper > 0)
                chord = upper * -lower / (upper - lower).clamp_min(1e-300)
                share = (
                    part.free.alpha[step][0, 0]
                    if step in part.free.alpha
                    else torch.zeros_like(lower)
                )
                loss = a.clamp_max(0).abs() * chord + a.clamp_min(0) * torch.maximum(
                    share * -lower, (1 - share) * upper
                )
                names.append(read)
                scores.append(torch.where(unstable, loss, 0.0).flatten())
                sizes.append(loss.numel())
            if not names:
                found.append([])
                continue
            score, places = torch.cat(scores).topk(min(_TRIED, sum(sizes)))
            found.append(
                [
                    _place(names, sizes, int(p))
                    for s, p in zip(score.tolist(), places, strict=True)
                    if s > exact
                ]
            )
        return found

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
        size = len(parts)
        names = {name for each in signs for name in each}
        every = {
            name: torch.stack(
                [
                    each.get(name, torch.zeros(self.net.shapes[name], dtype=torch.int8))
                    for each in signs
                ]
            )
            for name in names
        }
        wanted = {read for step in self.net.steps if not affine(step) for read in step.reads} | {
            self.net.input
        }
        boxes = {name: _signed(self.boxes[name].repeated(size), every.get(name)) for name in wanted}
        slopes = {
            n: torch.stack([part.free.alpha[n] for part in parts], 1)
            for n in _common(p.free.alpha for p in parts)
        }
        beta = {
            v: torch.stack(
                [
                    part.free.beta[v]
                    if v in part.free.beta
                    else torch.zeros(1, *self.net.shapes[v], dtype=self.net.dtype)
                    for part in parts
                ]
            )
            for v in names
        }
        mixes = [part.free.mixing for part in parts if part.free.mixing is not None]
        mix = torch.stack(mixes) if len(mixes) == size else None
        clauses = torch.tensor([part.clause for part in parts])
        free = Variables(slopes, beta, mix)
        limits = self.limits[clauses]
        return optimised(
            self.net, boxes, self.rows[clauses], None, every, free, steps, 0.0, limits, self.sizes
        )

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
            self.proved = min(self.proved, bound)
        elif self.witness is None:  # within rounding of the limit: nobody can tell
            self.stuck = True
            yield replace(part, seen={})

    def settle(self, surplus: Tensor) -> None:
        safe = surplus[surplus > 0]
        if len(safe):
            self.proved = min(self.proved, float(safe.min()))

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


def _place(names: Sequence[str], sizes: Sequence[int], place: int) -> tuple[str, int]:
    """(value, place in it) of a place in all values one behind the other."""
    for name, count_ in zip(names, sizes, strict=True):
        if place < count_:
            return name, place
        place -= count_
    raise IndexError(place)
