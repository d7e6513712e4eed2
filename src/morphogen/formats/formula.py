"""What a property says: a tree of ands and ors over bounds on inputs and rows over outputs, and its
cases, one at a time.

    All      bounds, rows and choices that hold together          (an `and`)
    Choice   parts of which one holds                             (an `or`)
    Case     what has been decided, and the choices that are left

Nothing is multiplied out: `cases(case)` walks the tree when asked. Nothing recurses, since files
nest as deep as they like.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

MANY = 2**62  # clauses beyond it are not counted


class Bound(NamedTuple):
    """X_number <= exact (upper) or >= exact; strict: < or >. near: the float64 nearest to it.
    exact: a decimal as written, or a fraction.
    """

    number: int
    upper: bool
    near: float
    exact: str | Fraction
    strict: bool = False


class Constraint(NamedTuple):
    """The sum of weight * Y_number over the terms is <= exact; strict: <. near, exact: as those of
    a bound.
    """

    terms: tuple[tuple[int, float], ...]
    near: float
    exact: str | Fraction
    strict: bool = False

    @property
    def limit(self) -> float:
        """The nearest float64; of a strict row the least that is not below it: every float64 is
        below both or neither.
        """
        return math.nextafter(self.near, math.inf) if self.strict and _off(self) > 0 else self.near


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class All:
    """All of it holds; nothing is true. count: of clauses, were they multiplied out."""

    bounds: tuple[Bound, ...] = ()
    rows: tuple[Constraint, ...] = ()
    choices: "tuple[Choice, ...]" = ()

    @property
    def count(self) -> int:
        return _product(self.choices)

    @property
    def boxed(self) -> bool:
        """Whether it says something about inputs."""
        return bool(self.bounds) or any(choice.boxed for choice in self.choices)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Choice:
    """One of the parts holds; none is false. boxed: some part says something about inputs."""

    parts: tuple[All, ...]
    count: int
    boxed: bool


FALSE = Choice((), 0, False)


def choice(parts: Iterable[All]) -> Choice:
    """One of the parts."""
    if not (kept := tuple(parts)):
        return FALSE
    return Choice(
        kept, min(MANY, sum(part.count for part in kept)), any(part.boxed for part in kept)
    )


def _product(choices: Iterable[Choice]) -> int:
    count = 1
    for each in choices:
        count = min(MANY, count * each.count)
    return count


# ----------------------------------------------------------------------------------
# bounds


def _off(end: Bound | Constraint) -> int:
    """On which side of the float64 nearest to it an end lies: -1, 0 (it is that number) or 1."""
    if isinstance(end.exact, str):
        exact = Decimal(end.exact)
        near = Decimal(end.near)
        return (exact > near) - (exact < near)
    return (end.exact > Fraction(end.near)) - (end.exact < Fraction(end.near))


def fraction(end: Bound | Constraint) -> Fraction:
    """What a bound or a row's limit says, exactly."""
    return Fraction(Decimal(end.exact)) if isinstance(end.exact, str) else end.exact


def _compared(one: Bound | Constraint, other: Bound | Constraint) -> int:
    """-1, 0 or 1: which of two values is less."""
    if one.near != other.near or one.exact == other.exact:
        return (one.near > other.near) - (one.near < other.near)
    a = fraction(one)
    b = fraction(other)
    return (a > b) - (a < b)


def tighter(one: Bound, other: Bound) -> bool:
    """Whether the first of two bounds on one side of one input says more."""
    order = _compared(one, other)
    if order == 0:
        return one.strict and not other.strict
    return (order < 0) == one.upper


@dataclass(frozen=True, eq=False)
class Ends:
    """The bounds on every input, None where there is none."""

    lower: tuple[Bound | None, ...]
    upper: tuple[Bound | None, ...]

    def narrowed(self, bounds: Iterable[Bound]) -> "Ends":
        """With more bounds."""
        lower = list(self.lower)
        upper = list(self.upper)
        changed = False
        for bound in bounds:
            side = upper if bound.upper else lower
            old = side[bound.number]
            if old is None or tighter(bound, old):
                side[bound.number] = bound
                changed = True
        return Ends(tuple(lower), tuple(upper)) if changed else self

    @cached_property
    def empty(self) -> int | None:
        """The first input that no number is left for."""
        for number, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if low is not None and high is not None and low.near >= high.near:
                order = _compared(low, high)
                if order > 0 or (order == 0 and (low.strict or high.strict)):
                    return number
        return None

    @property
    def open(self) -> list[tuple[int, bool]]:
        """The (input, whether above) without a bound."""
        sides = ((self.lower, False), (self.upper, True))
        return [
            (number, upper)
            for side, upper in sides
            for number, bound in enumerate(side)
            if bound is None
        ]

    @cached_property
    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) as the float64 nearest to what is written, (inputs,)."""
        low = np.array([-math.inf if bound is None else bound.near for bound in self.lower])
        high = np.array([math.inf if bound is None else bound.near for bound in self.upper])
        return low, high

    @cached_property
    def outer(self) -> tuple[np.ndarray, np.ndarray]:
        """The least float64 box that holds all that is meant: what is proved on it is proved."""
        return self._moved(lambda bound: _off(bound) == (1 if bound.upper else -1), outward=True)

    @cached_property
    def inner(self) -> tuple[np.ndarray, np.ndarray]:
        """The largest float64 box in what is meant; lower above upper where no float64 is."""
        return self._moved(
            lambda bound: (
                (off := _off(bound)) == (-1 if bound.upper else 1) or (bound.strict and off == 0)
            ),
            outward=False,
        )

    def written(self, x: Sequence[float]) -> tuple[str, ...]:
        """Decimals of numbers that lie within the bounds as they are written; where a number does
        not, since none of its type does, a bound next to it is there in its place.
        """
        return tuple(map(_written, x, self.lower, self.upper))

    def _moved(
        self, moves: Callable[[Bound], bool], outward: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        narrowed = []
        for side, ends, far in (
            (self.lower, self.nearest[0], -math.inf),
            (self.upper, self.nearest[1], math.inf),
        ):
            moved = np.array([bound is not None and moves(bound) for bound in side])
            narrowed.append(np.where(moved, np.nextafter(ends, far if outward else -far), ends))
        return narrowed[0], narrowed[1]


def _written(x: float, low: Bound | None, high: Bound | None) -> str:
    sides = [bound for bound in (low, high) if bound is not None]
    bounds = [
        str(bound.exact) if isinstance(bound.exact, str) else repr(bound.near) for bound in sides
    ]
    for text in (repr(x), str(Decimal(x)), *bounds):
        if all(_allowed(bound, Fraction(Decimal(text))) for bound in sides):
            return text
    return repr(x)


def _allowed(bound: Bound, value: Fraction) -> bool:
    exact = fraction(bound)
    return not bound.strict if value == exact else (value < exact) == bound.upper


# ----------------------------------------------------------------------------------
# cases


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs within ends, rows that hold, and choices of which each must hold: two parts or more
    each.
    """

    ends: Ends
    rows: tuple[Constraint, ...] = ()
    choices: tuple[Choice, ...] = ()

    @property
    def count(self) -> int:
        """Of clauses in it, those without an input included."""
        return _product(self.choices)

    def joined(self, part: All) -> "Case | None":
        """With a part that holds as well; None where that cannot be."""
        bounds: list[Bound] = []
        rows = list(self.rows)
        choices = list(self.choices)
        waiting = [part]
        while waiting:
            here = waiting.pop()
            bounds += here.bounds
            rows += here.rows
            for each in here.choices:
                if not each.parts:
                    return None
                if len(each.parts) == 1:
                    waiting.append(each.parts[0])
                else:
                    choices.append(each)
        if len(rows) > max(1, len(self.rows)) and opposed(rows):
            return None
        ends = self.ends.narrowed(bounds) if bounds else self.ends
        return None if ends.empty is not None else Case(ends, tuple(rows), tuple(choices))

    def without(self, place: int) -> "Case":
        """Without one of its choices: more than it."""
        return Case(self.ends, self.rows, self.choices[:place] + self.choices[place + 1 :])

    def split(self, place: int) -> Iterator["Case"]:
        """What is left of it for each part of one of its choices."""
        rest = self.without(place)
        cases = (rest.joined(part) for part in self.choices[place].parts)
        return (case for case in cases if case is not None)


def opposed(rows: Iterable[Constraint]) -> bool:
    """Whether some row says the opposite of another, such as y <= 1 and y > 1; rounding cannot tell
    such limits apart.
    """
    least: dict[tuple[tuple[int, float], ...], Constraint] = {}
    for row in rows:
        key = tuple(sorted(row.terms))
        old = least.get(key)
        if old is None or (order := _compared(row, old)) < 0 or (order == 0 and row.strict):
            least[key] = row
    for key, row in least.items():
        other = least.get(tuple((number, -weight) for number, weight in key))
        if other is not None and row.near + other.near <= 0:
            total = fraction(row) + fraction(other)
            if total < 0 or (total == 0 and (row.strict or other.strict)):
                return True
    return False


def everything(inputs: int) -> Case:
    """Of which nothing is known."""
    return Case(Ends((None,) * inputs, (None,) * inputs))


def boxes_first(choices: Sequence[Choice]) -> int:
    """The place of the choice to decide next: those that cut inputs come first, so that the rest
    shares its box.
    """
    return next((place for place, each in enumerate(choices) if each.boxed), 0)


def cases(case: Case) -> Iterator[Case]:
    """Those in which everything is decided, as they are asked for; none whose box is empty."""
    waiting = [iter((case,))]
    while waiting:
        here = next(waiting[-1], None)
        if here is None:
            waiting.pop()
        elif here.choices:
            waiting.append(here.split(boxes_first(here.choices)))
        else:
            yield here


T = TypeVar("T")


def folded(
    formula: All, both: Callable[[All, list[T]], T], either: Callable[[Choice, list[T]], T]
) -> T:
    """A value of a tree from the leaves up. both: of an `All` and its choices' values. either: of a
    choice and its parts'.
    """
    stack: list[tuple[All | Choice, list[T]]] = [(formula, [])]
    while True:
        here, values = stack[-1]
        below: Sequence[All | Choice] = here.parts if isinstance(here, Choice) else here.choices
        if len(values) < len(below):
            stack.append((below[len(values)], []))
            continue
        stack.pop()
        value = either(here, values) if isinstance(here, Choice) else both(here, values)
        if not stack:
            return value
        stack[-1][1].append(value)


def within(bound: Bound, x: float) -> bool:
    """Whether a number keeps a bound's nearest float64."""
    if x == bound.near:
        return not bound.strict
    return (x < bound.near) == bound.upper


def margin(row: Constraint, y: Sequence[float]) -> float:
    """By how much outputs miss a row; it holds where it is at most 0, below 0 for a strict one."""
    return sum(weight * y[number] for number, weight in row.terms) - row.limit


def kept(row: Constraint, y: Sequence[float]) -> bool:
    """Whether outputs keep a row; NaN keeps none."""
    far = margin(row, y)
    return far < 0 if row.strict else far <= 0


def holds(formula: All, x: Sequence[float], y: Sequence[float]) -> bool:
    """Whether an input and its outputs are what a formula says."""

    def both(part: All, choices: list[bool]) -> bool:
        return (
            all(choices)
            and all(within(bound, x[bound.number]) for bound in part.bounds)
            and all(kept(row, y) for row in part.rows)
        )

    return folded(formula, both, lambda _, parts: any(parts))


def arrays(rows: Sequence[Constraint], outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows (k, outputs), limits (k,), strict (k,))."""
    matrix = np.zeros((len(rows), outputs))
    for place, row in enumerate(rows):
        for number, weight in row.terms:
            matrix[place, number] = weight
    return (
        matrix,
        np.array([row.limit for row in rows]),
        np.array([row.strict for row in rows], dtype=bool),
    )
