"""Whether a network can do what a formula says: `search(case, ...)`, which multiplies choices out
only as far as it must.

A case is relaxed by leaving its choices away, of which only the box around their parts is kept.
Where the rest is impossible, so is everything that the choices would make of it; where it is
possible, a point shows which choice it misses, and that one is decided next. Cases of few clauses
are left to one search for all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from morphogen.bounds.box import Box
from morphogen.bounds.crown import crown, lower_bound
from morphogen.deadline import Deadline, OutOfTime
from morphogen.formats.formula import (
    All,
    Bound,
    Case,
    Choice,
    Constraint,
    Ends,
    arrays,
    cases,
    choice,
    holds,
    margin,
    tighter,
)
from morphogen.tracing.program import Program
from morphogen.verification.unsafe import Unsafe, Verdict
from morphogen.verification.verify import verify

_FEW = 64  # clauses that one search takes at once
_FLAT = 1024  # that it takes where they are the parts of one choice
# of the time that is left goes into a case with choices left away, and at least _LEAST seconds
_SHARE = 0.05
_LEAST = 1.0
_ROWS = 1024  # that are bounded at once, to see which cannot hold

Agrees = Callable[[Tensor, Sequence[Case]], bool]
"""(an input (*shape), cases with nothing left to decide) -> whether it is one of any of them."""


@dataclass(frozen=True)
class SearchResult:
    """status: "unsat", "sat" or "unknown". bound: every input is safe by at least so much, as far
    as was seen. boxes: how many were bounded.
    """

    status: str
    bound: float
    boxes: int


def search(
    net: Program,
    case: Case,
    outputs: int,
    until: Deadline,
    agrees: Agrees,
    callback: Callable[[float, int], None] | None = None,
) -> SearchResult:
    """Prove that no input is in a case, or find one that is.

    agrees: asked of every counterexample; where it is none after all, the search goes on, and does
    not end with "unsat". until: then the answer is "unknown". callback: see `split_inputs`.
    """
    searching = _Search(replace(net, until=until), outputs, agrees, callback)
    try:
        return searching.run(case)
    except OutOfTime:
        return SearchResult("unknown", -torch.inf, searching.boxes)


class _Search:
    """What stays the same during one search, and what it has seen."""

    def __init__(
        self,
        net: Program,
        outputs: int,
        agrees: Agrees,
        callback: Callable[[float, int], None] | None,
    ) -> None:
        self.net = net
        self.outputs = outputs
        self.agrees = agrees
        self.callback = callback
        self.least = torch.inf
        self.boxes = 0
        self.open = False
        self.impossible: dict[bytes, frozenset[Constraint]] = {}

    def run(self, whole: Case) -> SearchResult:
        waiting = [iter((whole,))]
        while waiting:
            case = next(waiting[-1], None)
            if case is None:
                waiting.pop()
                continue
            self.net.until.check()
            if _few(case):
                if self.decided(case):
                    return SearchResult("sat", self.least, self.boxes)
            elif (parts := self.parts(case)) is None:
                return SearchResult("sat", self.least, self.boxes)
            else:
                waiting.append(parts)
        return SearchResult("unknown" if self.open else "unsat", self.least, self.boxes)

    def decided(self, case: Case) -> bool:
        """Whether a case of few clauses has a counterexample; all with one box are asked for at
        once.
        """
        groups: dict[bytes, list[Case]] = {}
        for leaf in cases(case):
            groups.setdefault(_key(leaf.ends), []).append(leaf)
        for leaves in groups.values():
            self.net.until.check()
            verdict = self.asked(leaves[0].ends, [leaf.rows for leaf in leaves], self.net.until)
            if verdict.witness is not None and self.agrees(verdict.witness, leaves):
                self.least = verdict.bound
                return True
            self.least = min(self.least, verdict.bound if verdict.witness is None else -torch.inf)
            self.open = self.open or verdict.status != "unsat"
        return False

    def asked(self, ends: Ends, sets: Sequence[Sequence[Constraint]], until: Deadline) -> Verdict:
        unsafe = [
            Unsafe(*(torch.tensor(part) for part in arrays(rows, self.outputs))) for rows in sets
        ]
        verdict = verify(self.net, self.box(ends), unsafe, until, self.callback)
        self.boxes += verdict.boxes
        return verdict

    def box(self, ends: Ends) -> Box:
        return Box(
            *(torch.tensor(end).view(1, *self.net.shapes[self.net.input]) for end in ends.outer)
        )

    def parts(self, case: Case) -> Iterator[Case] | None:
        """What is left of a case of many clauses, in parts; None where a counterexample is among
        them.
        """
        alone = len(case.choices) == 1
        if alone and not case.rows:  # nothing to relax it to
            return _branches(case, case.choices[0], None)
        around = _around(case)
        if around.empty is not None:
            return iter(())
        if around.open:
            return _branches(case, _smallest(case.choices), None)
        if not alone:
            narrowed = self.possible(case, around)
            if narrowed is None:
                return iter(())
            if _few(narrowed):
                return iter((narrowed,))
            case = narrowed
        point = self.box(around).centre[0]
        met = True
        if case.rows:
            until = self.net.until
            verdict = self.asked(
                around, [case.rows], until.within(max(_LEAST, _SHARE * until.left()))
            )
            if verdict.status == "unsat":
                self.least = min(self.least, verdict.bound)
                return iter(())
            met = verdict.witness is not None
            point = point if verdict.witness is None else verdict.witness
        x, y = (each.flatten().tolist() for each in (point, self.net(point[None])[0]))
        missed = [each for each in case.choices if not holds(All(choices=(each,)), x, y)]
        if (
            met
            and not missed
            and (leaf := _leaf(case, x, y)) is not None
            and self.agrees(point, [leaf])
        ):
            self.least = max((margin(row, y) for row in leaf.rows), default=0.0)
            return None
        return _branches(case, _smallest(missed or case.choices), y)

    def possible(self, case: Case, around: Ends) -> Case | None:
        """A case without what no input of a box around it does; None where nothing is left."""
        key = _key(around)
        if key not in self.impossible:
            self.impossible[key] = self.excluded(case, around)
        never = self.impossible[key]
        if never.intersection(case.rows):
            return None
        while True:
            for place, each in enumerate(case.choices):
                rest = case.without(place)
                kept = [
                    part
                    for part in each.parts
                    if not never.intersection(part.rows) and rest.joined(part) is not None
                ]
                if len(kept) < len(each.parts):
                    joined = rest.joined(All(choices=(choice(kept),)))
                    if joined is None or never.intersection(joined.rows):
                        return None
                    case = joined
                    break
            else:
                return case

    def excluded(self, case: Case, around: Ends) -> frozenset[Constraint]:
        """The rows of a case that no input of a box around it keeps."""
        rows = list(dict.fromkeys(_rows(case)))[:_ROWS]
        weights, limits, _ = (torch.tensor(part) for part in arrays(rows, self.outputs))
        spec = weights.to(self.net.dtype).unflatten(1, self.net.shapes[self.net.output])[None]
        boxes = crown(self.net, self.box(around))
        surplus = (
            torch.cat([lower_bound(self.net, boxes, part)[0] for part in spec.split(_FEW, 1)])
            - limits
        )
        never = {row: far for row, far in zip(rows, surplus.tolist(), strict=True) if far > 0}
        self.least = min([self.least, *never.values()])
        return frozenset(never)


def _key(ends: Ends) -> bytes:
    """Equal where what is proved and what is found is about the same box."""
    return b"".join(end.tobytes() for end in (*ends.outer, *ends.inner))


def _few(case: Case) -> bool:
    """Whether one search takes all clauses of a case: they are few, or the parts of one choice over
    one box.
    """
    if case.count <= _FEW:
        return True
    flat = len(case.choices) == 1 and case.count == len(case.choices[0].parts)
    return flat and not case.choices[0].boxed and case.count <= _FLAT


def _smallest(choices: Sequence[Choice]) -> Choice:
    return min(choices, key=lambda each: len(each.parts))


def _branches(case: Case, decided: Choice, y: Sequence[float] | None) -> Iterator[Case]:
    """What is left of a case for each part of one of its choices: parts over one box together; over
    outputs alone those first that the outputs y nearly keep.
    """
    rest = case.without(case.choices.index(decided))
    # as many as one search takes
    if not decided.boxed and len(case.choices) == 1 and decided.count == len(decided.parts):
        return (
            joined
            for at in range(0, len(decided.parts), _FLAT)
            if (joined := rest.joined(All(choices=(choice(decided.parts[at : at + _FLAT]),))))
            is not None
        )
    if not decided.boxed:
        parts = decided.parts
        if y is not None:
            parts = tuple(
                sorted(
                    parts, key=lambda part: max((margin(row, y) for row in part.rows), default=0.0)
                )
            )
        return (joined for part in parts if (joined := rest.joined(part)) is not None)
    groups: dict[tuple[Bound, ...], list[All]] = {}
    for part in decided.parts:
        groups.setdefault(part.bounds, []).append(All((), part.rows, part.choices))
    return (
        joined
        for bounds, parts in groups.items()
        if (joined := rest.joined(All(bounds, (), (choice(parts),)))) is not None
    )


def _around(case: Case) -> Ends:
    """A box that holds all that a case does."""
    loosest: list[Bound] = []
    for each in case.choices:
        if each.boxed:
            sides = [case.ends.narrowed(part.bounds) for part in each.parts]
            for low in zip(
                *([*ends.lower, *ends.upper] for ends in sides if ends.empty is None), strict=True
            ):
                if all(bound is not None for bound in low):
                    worst = low[0]
                    for bound in low[1:]:
                        worst = bound if tighter(worst, bound) else worst
                    loosest.append(worst)
    return case.ends.narrowed(loosest)


def _leaf(case: Case, x: Sequence[float], y: Sequence[float]) -> Case | None:
    """The clause of a case that an input keeps, of which it keeps every choice."""
    left: Case | None = case
    while left is not None and left.choices:
        part = next(part for part in left.choices[0].parts if holds(part, x, y))
        left = left.without(0).joined(part)
    return left


def _rows(case: Case) -> Iterator[Constraint]:
    """Every row of a case, in its choices too."""
    yield from case.rows
    waiting: list[Choice] = list(case.choices)
    while waiting:
        for part in waiting.pop().parts:
            yield from part.rows
            waiting += part.choices
