"""Properties in VNN-LIB 1.0, read as a tree of ands and ors: `read_vnnlib(path) -> Property`.

A file asserts what is unsafe: it is satisfied by an input inside a box whose output lies in some
half-spaces. Source: the VNN-LIB standard of VNN-COMP 2021 to 2023 (an SMT-LIB subset: declarations
of X_i and Y_i, `and`, `or`, `<=`, `>=`, `<`, `>` and `=` over linear terms).
"""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np

from morphogen.deadline import NEVER, Deadline
from morphogen.errors import DataError, Unsupported
from morphogen.formats.compressed import read_bytes
from morphogen.formats.formula import (
    FALSE,
    All,
    Bound,
    Case,
    Choice,
    Constraint,
    Ends,
    arrays,
    cases,
    choice,
    everything,
    folded,
)
from morphogen.formats.tokens import Tokens


@dataclass(frozen=True)
class Clause:
    """lower <= x <= upper and rows @ y <= limits, < where strict. lower, upper: (inputs,), the
    float64 nearest to what is written; rows: (k, outputs); limits, strict: (k,).
    """

    lower: np.ndarray
    upper: np.ndarray
    rows: np.ndarray
    limits: np.ndarray
    strict: np.ndarray


@dataclass(frozen=True, eq=False)
class Property:
    """Unsafe is what satisfies the formula."""

    inputs: int
    outputs: int
    formula: All = field(repr=False)

    @cached_property
    def case(self) -> Case | None:
        """The formula with nothing decided; None where nothing satisfies it."""
        return everything(self.inputs).joined(self.formula)

    def clauses(self) -> Iterator[Clause]:
        """Unsafe is what satisfies any of them. There may be very many: they are made as they are
        asked for; none has an empty box.
        """
        for case in cases(self.case) if self.case else ():
            yield Clause(*case.ends.nearest, *arrays(case.rows, self.outputs))


def read_vnnlib(path: str | Path, until: Deadline = NEVER) -> Property:
    """The property in a file, perhaps compressed (.gz). until: by when it must be read, else
    `OutOfTime` is raised.

    Raises `DataError` with line and column for what is malformed, uses an undeclared variable or is
    no box and half-spaces, for an input without bounds, and where no input is left by any
    alternative. Raises `Unsupported` for VNN-LIB 2.0.
    """
    path = Path(path)
    try:
        content = read_bytes(path)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a VNN-LIB file") from error
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    return parse_vnnlib(content.decode("utf-16" if wide else "utf-8", "replace"), str(path), until)


def parse_vnnlib(text: str, name: str = "vnnlib", until: Deadline = NEVER) -> Property:
    """The property in a text; name: what errors call it. until: see `read_vnnlib`."""
    reader = _Reader(text, name, until)
    root = _Open("and")
    declared = dict[str, int]()
    asked = False
    at = 0
    while reader.tokens[at]:
        if reader.tokens[at] != "(":
            reader.source.fail(at, f"'{reader.tokens[at]}' here; '(' was expected")
        opened = at
        head = reader.tokens[at + 1]
        if head == "assert":
            if asked:
                reader.source.fail(
                    at + 1,
                    "an assertion after check-sat asks a second question; give each a file of its "
                    "own",
                )
            at = reader.formula(at + 2, opened, root)
        elif head in _DECLARATIONS:
            at = reader.declared(at, declared)
        elif head in _COMMANDS:
            asked = asked or head == "check-sat"
            at = reader.source.end(at)
        else:
            reader.outside(at + 1)
        if reader.tokens[at] != ")":
            reader.source.missing(at, opened)
        at += 1
    return _checked(
        Property(*reader.counts(declared), root.together() or All(choices=(FALSE,))), name
    )


_SIGNS = {"<=", ">=", "<", ">", "="}
_DECLARATIONS = {"declare-const", "declare-fun"}
_COMMANDS = set(
    "set-logic set-info set-option check-sat get-model get-value get-info get-assignment echo "
    "exit".split()
)
_SECOND = set("vnnlib-version declare-network declare-input declare-output declare-hidden".split())
_VARIABLE = re.compile(r"([XY])_([0-9]{1,9})")
_ELEMENT = re.compile(r"[^\s\[\]]+\[[0-9, ]*\]?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST = 2**16  # bits of a coefficient that products make

_Variable = tuple[str, int]
_Sum = dict[_Variable | None, Fraction]
"""Coefficients of a linear term, the constant's by None."""


class _Open:
    """An `and` or `or` that is being read. One directly in another of its kind adds to it, and is
    counted in `depth`.
    """

    __slots__ = ("bounds", "choices", "depth", "false", "kind", "parts", "rows")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.depth = 0
        self.false = False
        self.bounds: list[Bound] = []
        self.rows: list[Constraint] = []
        self.choices: list[Choice] = []
        self.parts: list[All] = []

    def add(self, part: "Bound | Constraint | All | Choice") -> None:
        if self.kind == "or":
            self.parts.append(_alone(part))
        elif isinstance(part, Bound):
            self.bounds.append(part)
        elif isinstance(part, Constraint):
            self.rows.append(part)
        elif isinstance(part, Choice):
            self.choices.append(part)
            self.false = self.false or not part.parts
        else:  # of one comparison
            self.bounds += part.bounds
            self.rows += part.rows
            self.false = self.false or bool(part.choices)

    def together(self) -> All | None:
        """What an `and` says; None where nothing does."""
        return (
            None if self.false else All(tuple(self.bounds), tuple(self.rows), tuple(self.choices))
        )

    def close(self, into: "_Open") -> None:
        if self.kind == "or":
            into.add(choice(part for part in self.parts if part.choices != (FALSE,)))
        else:
            into.add(self.together() or All(choices=(FALSE,)))


def _alone(part: Bound | Constraint | All | Choice) -> All:
    if isinstance(part, All):
        return part
    if isinstance(part, Bound):
        return All((part,))
    return All((), (part,)) if isinstance(part, Constraint) else All((), (), (part,))


class _Reader:
    """Declarations and formulas from words; what `at` names is the place of a word, or of a
    parenthesis.
    """

    def __init__(self, text: str, name: str, until: Deadline) -> None:
        self.source = Tokens(text, name)
        self.until = until
        self.tokens = self.source.words
        self.variables: dict[str, _Variable] = {}
        self.used: dict[_Variable, int] = {}

    def outside(self, at: int) -> NoReturn:
        """A command that is not known."""
        word = self.tokens[at]
        if word in _SECOND:
            self.second(at)
        if not word:
            self.source.fail(at - 1, "this '(' is never closed")
        self.source.fail(
            at, f"'{word}' here; declare-const X_0 Real, or assert (...), was expected"
        )

    def second(self, at: int) -> NoReturn:
        self.source.fail(
            at,
            f"'{self.tokens[at]}' is VNN-LIB 2.0, which is not read; give the property in VNN-LIB "
            "1.0, with variables X_0, X_1, ... and Y_0, Y_1, ...",
            Unsupported,
        )

    # ----------------------------------------------------------------------------------
    # commands

    def declared(self, at: int, declared: dict[str, int]) -> int:
        """(declare-const X_0 Real) or (declare-fun X_0 () Real): the place of its end."""
        head, word = self.tokens[at + 1 : at + 3]
        sort = at + 3
        if head == "declare-fun":
            if self.tokens[at + 3 : at + 5] != ["(", ")"]:
                self.source.fail(
                    at + 3, f"{head} {word} () Real was expected: a variable takes nothing"
                )
            sort = at + 5
        match = _VARIABLE.fullmatch(word)
        if not match:
            self.source.fail(at + 2, f"'{word}' here; a variable X_i or Y_i was expected")
        if self.tokens[sort] != "Real":
            self.source.fail(
                sort, f"{word} is declared as '{self.tokens[sort]}'; only Real is known"
            )
        variable = f"{match[1]}_{int(match[2])}"
        if variable in declared:
            self.source.fail(at + 2, f"{variable} is declared twice; declare each once")
        declared[variable] = at + 2
        return sort + 1

    def counts(self, declared: dict[str, int]) -> tuple[int, int]:
        """How many inputs and outputs there are; the order of declarations does not matter."""
        counts = {"X": 0, "Y": 0}
        for variable in declared:
            counts[variable[0]] += 1
        for (kind, number), at in self.used.items():
            if f"{kind}_{number}" not in declared:
                self.source.fail(at, f"{kind}_{number} is not declared")
        for variable, at in declared.items():
            kind = variable[0]
            if int(variable[2:]) >= counts[kind]:
                absent = next(i for i in range(counts[kind]) if f"{kind}_{i}" not in declared)
                self.source.fail(
                    at,
                    f"{variable} is declared, and {kind}_{absent} is not; declare {kind}_0 to "
                    f"{variable}",
                )
        if not counts["X"] or not counts["Y"]:
            raise DataError(
                f"{self.source.name}: declares {counts['X']} inputs and {counts['Y']} outputs; at "
                "least one X_i and one Y_i are needed"
            )
        return counts["X"], counts["Y"]

    # ----------------------------------------------------------------------------------
    # formulas

    def formula(self, at: int, opened: int, root: _Open) -> int:
        """Reads one formula into `root`: the place behind it."""
        tokens = self.tokens
        stack = [root]
        while True:
            token = tokens[at]
            head = tokens[at + 1]
            top = stack[-1]
            self.until.check()
            if token == "(" and head in _SIGNS:
                at = self.comparison(at, opened, top)
            elif token == "(" and head in ("and", "or"):
                if tokens[at + 2] == ")":
                    self.source.fail(at + 1, f"'{head}' of nothing; a formula was expected")
                if top.kind == head:
                    top.depth += 1
                else:
                    stack.append(_Open(head))
                at += 2
            elif token == ")" and (len(stack) > 1 or root.depth):
                if top.depth:
                    top.depth -= 1
                else:
                    stack.pop().close(stack[-1])
                at += 1
            else:
                self.no_formula(at, opened)
            if len(stack) == 1 and not root.depth:
                return at

    def no_formula(self, at: int, opened: int) -> NoReturn:
        token = self.tokens[at]
        if token == "(":
            at += 1
            token = self.tokens[at]
            if token and token not in "()":
                self.source.fail(
                    at, f"'{token}' here; and, or, <= or >= with two sides was expected"
                )
        if not token:
            self.source.missing(at, opened)
        if token in "()":
            self.source.fail(at, "a formula was expected")
        self.source.fail(at, f"'{token}' here; a formula in parentheses was expected")

    def comparison(self, at: int, opened: int, into: _Open) -> int:
        """Reads (<= left right) and what is like it into an open formula: the place behind it."""
        sign, left, right = self.tokens[at + 1 : at + 4]
        if self.tokens[at + 4] == ")" and (simple := self.simple(at, sign, left, right)):
            into.add(simple)
            return at + 5
        sides: list[_Sum] = []
        place = at + 2
        while self.tokens[place] != ")":
            side, place = self.linear(place, opened)
            sides.append(side)
        if len(sides) < 2:
            self.source.fail(at + 1, f"'{sign}' here has {len(sides)} sides; two were expected")
        parts = []
        for one, other in itertools.pairwise(sides):
            for less in ("<=", ">=") if sign == "=" else (sign,):
                parts.append(self.compared(at + 1, less, one, other))
        if len(parts) == 1 and not isinstance(parts[0], bool):
            into.add(parts[0])
        elif False in parts:
            into.add(All(choices=(FALSE,)))
        else:
            bounds, rows = (
                [part for part in parts if isinstance(part, kind)] for kind in (Bound, Constraint)
            )
            into.add(All(tuple(bounds), tuple(rows)))  # type: ignore[arg-type]
        return place + 1

    def simple(self, at: int, sign: str, left: str, right: str) -> Bound | Constraint | None:
        """Between a variable and a number, or two outputs, as nearly all are; None for anything
        else.
        """
        if sign == "=":
            return None
        one = self.variable(left, at + 2)
        other = self.variable(right, at + 3)
        below = sign[0] == "<"
        strict = len(sign) == 1
        if one and other:
            if one[0] == other[0] == "Y" and one != other:
                way = 1.0 if below else -1.0
                return Constraint(((one[1], way), (other[1], -way)), 0.0, "0", strict)
            return None
        if other:
            one = other
            right = left
            below = not below
        if not one or (value := self.number(right)) is None:
            return None
        exact = right if value else "0"
        if one[0] == "X":
            return Bound(one[1], below, value, exact, strict)
        if below:
            return Constraint(((one[1], 1.0),), value, exact, strict)
        return Constraint(
            ((one[1], -1.0),),
            -value,
            exact[1:] if exact[0] == "-" else "-" + exact.removeprefix("+"),
            strict,
        )

    def compared(self, at: int, sign: str, left: _Sum, right: _Sum) -> Bound | Constraint | bool:
        """What left <= right says, or what is like it; whether it is so where no variable is in
        it.
        """
        way = -1 if sign[0] == ">" else 1
        total = {key: way * weight for key, weight in left.items()}
        for key, weight in right.items():
            total[key] = total.get(key, Fraction(0)) - way * weight
        limit = -total.pop(None, Fraction(0))
        strict = len(sign) == 1
        terms = {key: weight for key, weight in total.items() if weight and key}
        kinds = {kind for kind, _ in terms}
        if not terms:
            return limit > 0 if strict else limit >= 0
        if kinds == {"Y"}:
            weights = tuple(
                (number, self.rounded(at, weight)) for (_, number), weight in terms.items()
            )
            return Constraint(weights, self.rounded(at, limit), limit, strict)
        if kinds == {"X"} and len(terms) == 1:
            (((_, number), weight),) = terms.items()
            return Bound(
                number, weight > 0, self.rounded(at, limit / weight), limit / weight, strict
            )
        self.source.fail(
            at,
            "several inputs, or inputs and outputs, in one constraint; only a bound on one X_i "
            "can be read",
        )

    def rounded(self, at: int, value: Fraction) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number) or (value and not number):
            self.source.fail(
                at, "a coefficient or a bound here is beyond the range of double precision"
            )
        return number

    # ----------------------------------------------------------------------------------
    # terms

    def variable(self, word: str, at: int) -> _Variable | None:
        """What a word names, and that it is used."""
        variable = self.variables.get(word)
        if not variable and word[:1] in ("X", "Y") and (match := _VARIABLE.fullmatch(word)):
            variable = self.variables[word] = match[1], int(match[2])
            self.used.setdefault(variable, at)
        return variable

    def number(self, word: str) -> float | None:
        """What a word says in float64; None where it is no number, or one beyond its range."""
        if not _NUMBER.fullmatch(word):
            return None
        value = float(word)
        if math.isinf(value) or (not value and re.search("[1-9]", word.lower().split("e")[0])):
            return None
        return value

    def word(self, at: int) -> _Sum:
        word = self.tokens[at]
        if variable := self.variable(word, at):
            return {variable: Fraction(1)}
        if (value := self.number(word)) is not None:
            return {None: Fraction(Decimal(word)) if value else Fraction(0)}
        if _NUMBER.fullmatch(word):
            self.source.fail(at, f"'{word}' is beyond the range of double precision")
        if _ELEMENT.match(word):
            self.second(at)
        self.source.fail(at, f"'{word}' is neither a number nor a variable X_i or Y_i")

    def linear(self, at: int, opened: int) -> tuple[_Sum, int]:
        """(a linear term, the place behind it)."""
        whole: _Sum = {}
        stack = [_Term("+", at, Fraction(1), whole)]
        while True:
            token = self.tokens[at]
            top = stack[-1]
            if token == "(":
                op = self.tokens[at + 1]
                if op not in ("+", "-", "*") or self.tokens[at + 2] == ")":
                    self.no_term(at + 1, opened)
                factor, into = top.operand()
                stack.append(
                    _Term(op, at + 1, -factor if op == "-" and self.unary(at) else factor, into)
                )
                at += 2
            elif token == ")" and len(stack) > 1:
                self.multiplied(stack.pop())
                at += 1
            elif not token or token == ")":
                self.no_term(at, opened)
            else:
                factor, into = top.operand()
                _added(into, self.word(at), factor)
                at += 1
            if len(stack) == 1:
                return whole, at

    def unary(self, at: int) -> bool:
        """Whether the '(' is that of (- term)."""
        behind = self.source.closes.get(at + 2, at + 2) + 1
        return bool(self.tokens[behind] == ")")

    def no_term(self, at: int, opened: int) -> NoReturn:
        if not self.tokens[at]:
            self.source.missing(at, opened)
        self.source.fail(at, "a number, a variable or a sum was expected")

    def multiplied(self, term: "_Term") -> None:
        """Adds a product where it belongs."""
        if term.op != "*":
            return
        factor = term.factor
        varies = None
        for part in term.parts:
            part = {key: weight for key, weight in part.items() if weight}
            if any(part):
                if varies is not None:
                    self.source.fail(
                        term.at, "a product of two variables; only linear terms can be read"
                    )
                varies = part
            else:
                factor *= part.get(None, Fraction(0))
        if max(factor.numerator.bit_length(), factor.denominator.bit_length()) > _LONGEST:
            self.source.fail(
                term.at, "a product of so many digits that it cannot be read; write it out"
            )
        _added(term.into, {None: Fraction(1)} if varies is None else varies, factor)


class _Term:
    """A sum, difference or product that is being read. Sums go straight into what they are part of,
    times a factor; of a product each part stands for itself.
    """

    __slots__ = ("at", "factor", "first", "into", "op", "parts")

    def __init__(self, op: str, at: int, factor: Fraction, into: _Sum) -> None:
        self.op = op
        self.at = at
        self.factor = factor
        self.into = into
        self.first = True
        self.parts: list[_Sum] = []

    def operand(self) -> tuple[Fraction, _Sum]:
        """(what the next operand is to be multiplied by, what it is to be added to)."""
        if self.op == "*":
            self.parts.append({})
            return Fraction(1), self.parts[-1]
        factor = -self.factor if self.op == "-" and not self.first else self.factor
        self.first = False
        return factor, self.into


def _added(into: _Sum, terms: _Sum, factor: Fraction) -> None:
    for key, weight in terms.items():
        into[key] = into.get(key, Fraction(0)) + factor * weight


# ----------------------------------------------------------------------------------
# the whole


_Sides = frozenset[tuple[int, bool]]


def _checked(prop: Property, name: str) -> Property:
    """The property, in which every input has two bounds in every case, and some case has an
    input.
    """
    whole = everything(prop.inputs)
    ends = whole.ends.narrowed(prop.formula.bounds)
    if (number := ends.empty) is not None:
        raise DataError(f"{name}: {_said(ends, number)}")
    if not (case := prop.case):
        return prop
    for each in case.choices:
        ends = case.ends.narrowed(each.parts[0].bounds)
        if (number := ends.empty) is not None and all(
            case.joined(part) is None for part in each.parts
        ):
            raise DataError(f"{name}: {_said(ends, number)}, and its alternatives are as empty")
    if missing := frozenset(case.ends.open):

        def both(part: All, choices: list[_Sides]) -> _Sides:
            if part.bounds and case.ends.narrowed(part.bounds).empty is not None:
                return missing  # it is dropped
            return frozenset((b.number, b.upper) for b in part.bounds).union(*choices) & missing

        def either(_: Choice, parts: list[_Sides]) -> _Sides:
            return missing.intersection(*parts)

        covered: _Sides = folded(prop.formula, both, either)
        if left := missing - covered:
            number, upper = min(left)
            raise DataError(
                f"{name}: X_{number} has no {'upper' if upper else 'lower'} bound; assert one"
            )
    return prop


def _said(ends: Ends, number: int) -> str:
    low = ends.lower[number]
    high = ends.upper[number]
    assert low is not None
    assert high is not None
    least = "more than" if low.strict else "at least"
    most = "less than" if high.strict else "at most"
    return f"X_{number} is asserted to be {least} {low.near:g} and {most} {high.near:g}"
