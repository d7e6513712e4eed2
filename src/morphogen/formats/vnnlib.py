"""Properties in VNN-LIB 1.0, read as a disjunction: `read_vnnlib(path) -> Property`.

A file asserts what is unsafe: it is satisfied by an input inside a box whose output lies in some half-spaces. Source: the
VNN-LIB standard of VNN-COMP 2021 to 2023 (an SMT-LIB subset: declarations of X_i and Y_i, `and`, `or`, `<=`, `>=` over linear
terms).
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from morphogen.errors import DataError
from morphogen.formats.compressed import read_bytes


@dataclass(frozen=True)
class Clause:
    """lower <= x <= upper and rows @ y <= limits. lower, upper: (inputs,); rows: (k, outputs); limits: (k,)."""

    lower: np.ndarray
    upper: np.ndarray
    rows: np.ndarray
    limits: np.ndarray


@dataclass(frozen=True)
class Property:
    """Unsafe is what satisfies any of the clauses."""

    inputs: int
    outputs: int
    clauses: tuple[Clause, ...]


def read_vnnlib(path: str | Path) -> Property:
    """The property in a file, perhaps compressed (.gz).

    Raises `DataError` with line and column for what is malformed, uses an undeclared variable or is no box and half-spaces, and
    for an input without bounds or with none between.
    """
    path = Path(path)
    try:
        text = read_bytes(path)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a VNN-LIB file") from error
    return parse_vnnlib(text.decode("utf-8", "replace"), str(path))


def parse_vnnlib(text: str, name: str = "vnnlib") -> Property:
    """The property in a text; name: what errors call it."""
    reader = _Reader(text, name)
    counts = {"X": 0, "Y": 0}
    formulas: list[_Alternatives] = []
    for form in reader.forms():
        match form:
            case [_Word("declare-const"), _Word(variable) as at, _Word()] if _VARIABLE.fullmatch(variable):
                kind, number = variable.split("_")
                if int(number) != counts[kind]:
                    reader.fail(
                        at, f"{variable} is declared where {kind}_{counts[kind]} comes next; declare each once, in order"
                    )
                counts[kind] += 1
            case [_Word("assert"), formula]:
                formulas.append(_alternatives(formula, reader, counts))
            case [_Word() as at, *_]:
                reader.fail(at, f"'{at.text}' here; declare-const X_0 Real, or assert (...), was expected")
            case _:
                reader.fail(reader.end, "a declaration or an assertion was expected")
    if not counts["X"] or not counts["Y"]:
        raise DataError(
            f"{name}: declares {counts['X']} inputs and {counts['Y']} outputs; at least one X_i and one Y_i are needed"
        )
    # what holds in every clause first, so that a thousand bounds are not gone through once for each
    common = [row for formula in formulas if len(formula) == 1 for row in formula[0]]
    choices = [formula for formula in formulas if len(formula) != 1]
    clauses = [_clause([*common, *itertools.chain(*chosen)], counts, name) for chosen in itertools.product(*choices)]
    return Property(counts["X"], counts["Y"], tuple(clauses))


@dataclass(frozen=True)
class _Word:
    """A word of the text and where it begins."""

    text: str
    line: int = 0
    column: int = 0

    __match_args__ = ("text",)


_VARIABLE = re.compile(r"[XY]_\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TOKEN = re.compile(r"\s+|;[^\n]*|[()]|[^\s();]+")


class _Reader:
    """Parentheses and words, with their places."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.tokens = list(self._tokens(text))
        lines = text.split("\n")
        self.end = _Word("", len(lines), len(lines[-1]) + 1)

    def _tokens(self, text: str) -> Iterator[_Word]:
        line, start = 1, 0
        for match in _TOKEN.finditer(text):
            token = match.group()
            if not token.isspace() and token[0] != ";":
                yield _Word(token, line, match.start() - start + 1)
            if "\n" in token:
                line += token.count("\n")
                start = match.start() + token.rindex("\n") + 1

    def forms(self) -> Iterator[list]:  # type: ignore[type-arg]
        """The top-level lists."""
        at = 0
        while at < len(self.tokens):
            if self.tokens[at].text != "(":
                self.fail(self.tokens[at], f"'{self.tokens[at].text}' here; '(' was expected")
            form, at = self._form(at)
            yield form

    def _form(self, at: int) -> tuple[list, int]:  # type: ignore[type-arg]
        opened, stack = self.tokens[at], [[]]  # type: ignore[var-annotated]
        for place in range(at, len(self.tokens)):
            token = self.tokens[place]
            if token.text == "(":
                stack.append([])
            elif token.text == ")":
                done = stack.pop()
                stack[-1].append(done)
                if len(stack) == 1:
                    return done, place + 1
            else:
                stack[-1].append(token)
        self.fail(opened, "this '(' is never closed")

    def fail(self, at: _Word, what: str) -> NoReturn:
        raise DataError(f"{self.name}, line {at.line}, column {at.column}: {what}")


@dataclass(frozen=True)
class _Row:
    """sum of terms <= limit, terms by (kind, number); where it stands."""

    terms: tuple[tuple[tuple[str, int], float], ...]
    limit: float
    at: _Word
    reader: _Reader


_Alternatives = list[list[_Row]]
"""Or of ands."""


def _alternatives(formula: object, reader: _Reader, counts: dict[str, int]) -> _Alternatives:
    match formula:
        case [_Word("and"), *parts] if parts:
            each = [_alternatives(part, reader, counts) for part in parts]
            return [list(itertools.chain(*chosen)) for chosen in itertools.product(*each)]
        case [_Word("or"), *parts] if parts:
            return [chosen for part in parts for chosen in _alternatives(part, reader, counts)]
        case [_Word("<=" | ">=" | "<" | ">") as sign, left, right]:
            way = -1.0 if sign.text[0] == ">" else 1.0
            terms, constant = _sum([(way, left), (-way, right)], reader, counts)
            return [[_Row(tuple(terms.items()), -constant, sign, reader)]]
        case [_Word() as at, *_]:
            reader.fail(at, f"'{at.text}' here; and, or, <= or >= with two sides was expected")
        case _Word() as at:
            reader.fail(at, f"'{at.text}' here; a formula in parentheses was expected")
    reader.fail(_first(formula) or reader.end, "a formula was expected")


def _linear(term: object, reader: _Reader, counts: dict[str, int]) -> tuple[dict[tuple[str, int], float], float]:
    """(coefficients, constant) of a linear term."""
    match term:
        case _Word(text) as at:
            if _VARIABLE.fullmatch(text):
                kind, number = text.split("_")
                if int(number) >= counts[kind]:
                    reader.fail(at, f"{text} is not declared")
                return {(kind, int(number)): 1.0}, 0.0
            if not _NUMBER.fullmatch(text):
                reader.fail(at, f"'{text}' is neither a number nor a variable X_i or Y_i")
            return {}, float(text)
        case [_Word("+"), *parts] if parts:
            return _sum([(1.0, part) for part in parts], reader, counts)
        case [_Word("-"), only]:
            return _sum([(-1.0, only)], reader, counts)
        case [_Word("-"), first, *parts]:
            return _sum([(1.0, first), *((-1.0, part) for part in parts)], reader, counts)
        case [_Word("*") as at, one, other]:
            (a, x), (b, y) = _linear(one, reader, counts), _linear(other, reader, counts)
            if a and b:
                reader.fail(at, "a product of two variables; only linear terms can be read")
            factor, (terms, value) = (x, (b, y)) if not a else (y, (a, x))
            return {variable: factor * weight for variable, weight in terms.items()}, factor * value
    reader.fail(_first(term) or reader.end, "a number, a variable or a sum was expected")


def _sum(
    parts: list[tuple[float, object]], reader: _Reader, counts: dict[str, int]
) -> tuple[dict[tuple[str, int], float], float]:
    terms: dict[tuple[str, int], float] = {}
    constant = 0.0
    for factor, part in parts:
        found, value = _linear(part, reader, counts)
        constant += factor * value
        for variable, weight in found.items():
            terms[variable] = terms.get(variable, 0.0) + factor * weight
    return terms, constant


def _first(form: object) -> _Word | None:
    if isinstance(form, _Word):
        return form
    return next((word for part in form if (word := _first(part))), None) if isinstance(form, list) else None


def _clause(rows: list[_Row], counts: dict[str, int], name: str) -> Clause:
    """The box and the half-spaces."""
    lower, upper = np.full(counts["X"], -np.inf), np.full(counts["X"], np.inf)
    spaces, limits = [], []
    for row in rows:
        kinds = {kind for (kind, _), weight in row.terms if weight}
        if kinds == {"X"} and len(row.terms) == 1:
            ((_, number), weight) = row.terms[0]
            bound = row.limit / weight
            if weight > 0:
                upper[number] = min(upper[number], bound)
            else:
                lower[number] = max(lower[number], bound)
        elif kinds <= {"Y"}:
            space = np.zeros(counts["Y"])
            for (_, number), weight in row.terms:
                space[number] += weight
            spaces.append(space)
            limits.append(row.limit)
        else:
            row.reader.fail(
                row.at, "several inputs, or inputs and outputs, in one constraint; only a bound on one X_i can be read"
            )
    for number in range(counts["X"]):
        if not np.isfinite([lower[number], upper[number]]).all():
            raise DataError(f"{name}: X_{number} has no {'lower' if np.isinf(lower[number]) else 'upper'} bound; assert one")
        if lower[number] > upper[number]:
            raise DataError(f"{name}: X_{number} is asserted to be at least {lower[number]:g} and at most {upper[number]:g}")
    return Clause(lower, upper, np.array(spaces).reshape(-1, counts["Y"]), np.array(limits))
