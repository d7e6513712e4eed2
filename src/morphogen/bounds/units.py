"""A complete search over the signs of ReLUs: parts whose bounds do not decide are cut where one unit is 0, `split_units`.

Complete where a network is piecewise linear, whatever the number of inputs: once every unit has its sign, a linear program
decides. Parts are bounded in batches, the worst first; the unit that is cut is the one of a few likely ones whose two halves
have the best worse bound.

Source: beta-CROWN, Wang et al. 2021 (arXiv 2103.06624); the choice of the unit: filtered smart branching, De Palma et al. 2021
(arXiv 2104.06718).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count

import torch
from torch import Tensor

from morphogen.bounds.activation import RELU
from morphogen.bounds.alpha import Found, alpha, optimised
from morphogen.bounds.attack import attack
from morphogen.bounds.box import Box
from morphogen.bounds.linear import Free, linear, lower_bound
from morphogen.bounds.lp import least_of
from morphogen.bounds.program import Program
from morphogen.bounds.rounding import magnitudes
from morphogen.bounds.rules import activation, affine
from morphogen.bounds.unsafe import MARGIN, Unsafe, Verdict, stacked

Signs = Mapping[str, Tensor]
"""By value, (batch, *shape): 1 where it is at least 0, -1 where at most, 0 where nothing is known."""

_STEPS = 12  # of ascent for a part
_EXACT = 1e-9  # a loss below it is rounding
_TRIED = 4  # units that may be cut are compared by their halves


@dataclass(frozen=True)
class Part:
    """One part of the inputs: those with these signs (int8, without a batch). clause: which of the unsafe sets is in question.
    bound: of its excess. free: for its halves to begin from. seen: see `alpha.Found`."""

    clause: int
    signs: dict[str, Tensor]
    bound: float
    free: Free
    seen: dict[str, Tensor]


def splittable(net: Program) -> bool:
    """Whether every step that is not affine is a ReLU."""
    return all(affine(step) or activation(step) is RELU for step in net.steps)


def split_units(
    net: Program, unsafe: Sequence[Unsafe], box: Box, seconds: float, batch: int = 32,
    tell: Callable[[float, int], None] | None = None,
) -> Verdict:  # fmt: skip
    """Prove that no input of a box is in any of the unsafe sets, or find one that is; arguments as for `split_inputs`."""
    return _Search(net, unsafe, box.as_input(net.dtype), seconds, tell).run(batch)


class _Search:
    """What stays the same during one search, and what it has seen."""

    def __init__(
        self, net: Program, unsafe: Sequence[Unsafe], box: Box, seconds: float, tell: Callable[[float, int], None] | None
    ) -> None:
        self.net, self.unsafe, self.box, self.tell = net, unsafe, box, tell
        self.began, self.limit = time.perf_counter(), seconds
        rows, self.limits = (t.to(net.dtype) for t in stacked(unsafe))
        self.rows = rows.unflatten(2, net.shapes[net.output])
        self.reads = {step.name: step.reads[0] for step in net.steps if activation(step) is RELU}
        self.seen, self.proved = 0, torch.inf
        self.witness: tuple[Tensor, float] | None = None

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.began

    def run(self, batch: int) -> Verdict:
        heap: list[tuple[float, int, Part]] = []
        number = count()
        for part in self.roots():
            heappush(heap, (part.bound, next(number), part))
        while heap and self.witness is None and self.spent < self.limit:
            worst = [heappop(heap)[2] for _ in range(min(batch, len(heap)))]
            for part in self.halved(worst):
                heappush(heap, (part.bound, next(number), part))
            if self.tell:
                self.tell(heap[0][0] if heap else self.proved, len(heap))
        if self.witness is not None:
            return Verdict("sat", self.witness[1], self.witness[0], self.seen, self.spent)
        least = min(self.proved, heap[0][0] if heap else torch.inf)
        return Verdict("unknown" if heap else "unsat", least, None, self.seen, self.spent)

    def roots(self) -> Iterator[Part]:
        """The clauses that cheaper ways leave open: linear bounds, an attack, then bounds with the best lines."""
        clauses, rows = self.limits.shape
        spec = self.rows.flatten(0, 1)[None]
        self.boxes = linear(self.net, self.box)
        surplus = (lower_bound(self.net, self.boxes, spec).view(clauses, rows) - self.limits).amax(1)
        open_ = (~(surplus > MARGIN)).nonzero()[:, 0].tolist()  # what is no number proves nothing
        self.settle(surplus)
        for clause in open_:
            if self.spent > self.limit:
                break
            self.look(attack(self.net, self.unsafe[clause], self.box)[0], clause)
            if self.witness is not None:
                return
        if open_ and self.spent > self.limit:
            yield from (Part(clause, {}, float(surplus[clause]), Free(), {}) for clause in open_)
            return
        if not open_:
            return
        self.boxes = alpha(self.net, self.box, _STEPS, self.limit - self.spent)
        self.sizes = magnitudes(self.net, self.boxes)
        whole = [Part(clause, {}, -torch.inf, Free(), {}) for clause in open_]
        yield from self.parts(self.bounded(whole, [{} for _ in open_], 2 * _STEPS), open_, [{} for _ in open_])

    def halved(self, parts: Sequence[Part]) -> Iterator[Part]:
        """The halves of each part that remain open."""
        chosen = self.choices(parts)
        undecided = [part for part, units in zip(parts, chosen, strict=True) if not units]
        for part in undecided:
            yield from self.decided(part)
        owners, signs = self.best_cuts([(part, units) for part, units in zip(parts, chosen, strict=True) if units])
        if owners:
            found = self.bounded(owners, signs, _STEPS)
            yield from self.parts(found, [part.clause for part in owners], signs)

    def parts(self, found: Found, clauses: Sequence[int], signs: Sequence[dict[str, Tensor]]) -> Iterator[Part]:
        """Those that are not proved, after a look at the points where their bounds are attained."""
        surplus = found.bound[:, 0]
        self.seen += len(surplus)
        self.settle(surplus)
        corners = self.box.repeated(len(surplus)).lowest_at(found.coefficients[:, 0])
        for i, clause in enumerate(clauses):
            self.look(corners[i : i + 1], clause)
            if not float(surplus[i]) > MARGIN:
                free = Free(
                    {n: s[:, i] for n, s in found.free.slopes.items()}, {v: s[i] for v, s in found.free.shifts.items()},
                    None if found.free.mix is None else found.free.mix[i],
                )  # fmt: skip
                seen = {n: a[i, 0] for n, a in found.seen.items()}
                yield Part(clause, signs[i], float(surplus[i]), free, seen)

    def choices(self, parts: Sequence[Part]) -> list[list[tuple[str, int]]]:
        """A few units of each part, by what their lines may lose; none where no line loses anything."""
        found: list[list[tuple[str, int]]] = []
        for part in parts:
            names, scores, sizes = [], [], []
            for step, read in self.reads.items():
                if step not in part.seen:
                    continue
                box = _cut(self.boxes[read], part.signs.get(read))
                lower, upper = box.lower[0], box.upper[0]
                a, bends = part.seen[step], (lower < 0) & (upper > 0)
                chord = upper * -lower / (upper - lower).clamp_min(1e-300)
                share = part.free.slopes[step][0, 0] if step in part.free.slopes else torch.zeros_like(lower)
                loss = a.clamp_max(0).abs() * chord + a.clamp_min(0) * torch.maximum(share * -lower, (1 - share) * upper)
                names.append(read)
                scores.append(torch.where(bends, loss, 0.0).flatten())
                sizes.append(loss.numel())
            if not names:
                found.append([])
                continue
            score, places = torch.cat(scores).topk(min(_TRIED, sum(sizes)))
            found.append([_place(names, sizes, int(p)) for s, p in zip(score.tolist(), places, strict=True) if s > _EXACT])
        return found

    def best_cuts(self, chosen: Sequence[tuple[Part, Sequence[tuple[str, int]]]]) -> tuple[list[Part], list[dict[str, Tensor]]]:
        """Each part twice, with its two halves by the unit whose worse half has the best bound."""
        owners = [part for part, units in chosen for _ in units for _ in (1, -1)]
        signs = [self.with_sign(part, unit, sign) for part, units in chosen for unit in units for sign in (1, -1)]
        if not owners:
            return [], []
        worse = self.bounded(owners, signs, 0).bound.view(-1, 2).amin(1)
        kept, first = [], 0
        for _, units in chosen:
            at = 2 * (first + int(worse[first : first + len(units)].argmax()))
            kept += [at, at + 1]
            first += len(units)
        return [owners[i] for i in kept], [signs[i] for i in kept]

    def with_sign(self, part: Part, unit: tuple[str, int], sign: int) -> dict[str, Tensor]:
        name, place = unit
        old = part.signs.get(name)
        new = torch.zeros(self.net.shapes[name], dtype=torch.int8) if old is None else old.clone()
        new.view(-1)[place] = sign
        return {**part.signs, name: new}

    def bounded(self, parts: Sequence[Part], signs: Sequence[dict[str, Tensor]], steps: int) -> Found:
        """Bounds of parts, each with the signs given."""
        size = len(parts)
        names = {name for each in signs for name in each}
        every = {
            name: torch.stack([each.get(name, torch.zeros(self.net.shapes[name], dtype=torch.int8)) for each in signs])
            for name in names
        }  # fmt: skip
        wanted = {read for step in self.net.steps if not affine(step) for read in step.reads} | {self.net.input}
        boxes = {name: _cut(self.boxes[name].repeated(size), every.get(name)) for name in wanted}
        slopes = {n: torch.stack([part.free.slopes[n] for part in parts], 1) for n in _common(p.free.slopes for p in parts)}
        shifts = {
            v: torch.stack([
                part.free.shifts[v] if v in part.free.shifts else torch.zeros(1, *self.net.shapes[v], dtype=self.net.dtype)
                for part in parts
            ])
            for v in names
        }  # fmt: skip
        mixes = [part.free.mix for part in parts if part.free.mix is not None]
        mix = torch.stack(mixes) if len(mixes) == size else None
        clauses = torch.tensor([part.clause for part in parts])
        free, limits = Free(slopes, shifts, mix), self.limits[clauses]
        return optimised(self.net, boxes, self.rows[clauses], None, every, free, steps, MARGIN, limits, self.sizes)

    def decided(self, part: Part) -> Iterator[Part]:
        """No line loses anything, as where every unit has its sign: a linear program decides, case by case if need be."""
        boxes = {name: _cut(box, part.signs.get(name)) for name, box in self.boxes.items()}
        rows, limits = self.rows[part.clause], self.limits[part.clause]
        bound, point = least_of(self.net, boxes, rows, limits, False, max(1.0, self.limit - self.spent))
        if bound <= MARGIN:
            bound, point = least_of(self.net, boxes, rows, limits, True, self.limit - self.spent, 2 * MARGIN)
        if point is not None:
            self.look(point, part.clause)
        if bound > MARGIN:
            self.proved = min(self.proved, bound)
        elif self.witness is None:  # within rounding of the limit: nobody can tell
            self.limit = 0.0
            yield replace(part, seen={})

    def settle(self, surplus: Tensor) -> None:
        safe = surplus[surplus > MARGIN]
        if len(safe):
            self.proved = min(self.proved, float(safe.min()))

    def look(self, x: Tensor, clause: int) -> None:
        x = self.box.inside(x)
        excess = float(self.unsafe[clause].excess(self.net(x)))
        if excess <= 0 and self.witness is None:
            self.witness = x[0], excess


def _cut(box: Box, sign: Tensor | None) -> Box:
    """What of a box has the signs."""
    if sign is None or type(box) is not Box:  # no more is known of another set than it says
        return box
    lower = torch.where(sign > 0, box.lower.clamp_min(0), box.lower)
    upper = torch.where(sign < 0, box.upper.clamp_max(0), box.upper)
    return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))


def _common(names: Iterator[Mapping[str, Tensor]]) -> set[str]:
    first, *others = (set(each) for each in names)
    return first.intersection(*others)


def _place(names: Sequence[str], sizes: Sequence[int], place: int) -> tuple[str, int]:
    """(value, place in it) of a place in all values one behind the other."""
    for name, size in zip(names, sizes, strict=True):
        if place < size:
            return name, place
        place -= size
    raise IndexError(place)
