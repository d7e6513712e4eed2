"""Properties: what a formula says is what is read, however it nests, and nothing is multiplied out
before it is asked for.
"""

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from morphogen import DataError, Unsupported
from morphogen.deadline import deadline
from morphogen.formats.formula import Case, cases, holds, kept
from morphogen.formats.vnnlib import Clause, Property, parse_vnnlib, read_vnnlib
from morphogen.tracing.program import program
from morphogen.verification import formulas
from morphogen.verification.formulas import search
from morphogen.verification.unsafe import Verdict
from morphogen.verification.vnncomp import inward

HEAD = (
    "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 "
    "Real)\n(declare-const Y_1 Real)\n"
)
BOX = "(assert (and (>= X_0 -1) (<= X_0 1.0) (>= X_1 0) (<= X_1 2e0)))\n"


def inside(clause: Clause, x: Sequence[float], y: Sequence[float]) -> bool:
    surplus = clause.rows @ np.array(y) - clause.limits
    fits = (clause.lower <= x).all() and (x <= clause.upper).all()
    return bool(fits and np.where(clause.strict, surplus < 0, surplus <= 0).all())


# ------------------------------------------------------------------------------ against a slow and
# obvious evaluator

# ("and" or "or", formulas...) or (sign, left, right), with terms as tuples, variables and numbers
# as text
Formula = tuple


def term(draw: random.Random, kind: str, depth: int) -> object:
    if depth == 0:
        return f"{kind}_{draw.randrange(2)}"
    pick = draw.randrange(6)
    if pick == 0:
        return f"{draw.randrange(-2, 3)}"
    if pick == 1:
        return ("*", str(draw.choice([-2, 0, 0.5, 1, 3])), term(draw, kind, depth - 1))
    if pick == 2:
        return ("-", *(term(draw, kind, depth - 1) for _ in range(draw.randrange(1, 4))))
    if pick == 3:
        return ("+", *(term(draw, kind, depth - 1) for _ in range(draw.randrange(1, 4))))
    return f"{kind}_{draw.randrange(2)}"


def compared(draw: random.Random) -> Formula:
    sign = draw.choice(["<=", ">=", "<", ">", "="] if draw.random() < 0.5 else ["<=", ">="])
    if draw.random() < 0.4:
        sides = [f"X_{draw.randrange(2)}", str(draw.choice([-2, -1, 0, 1, 2]))]
        if draw.random() < 0.3:
            sides[0] = ("*", str(draw.choice([0, 2, -1])), sides[0])
    else:
        sides = [
            term(draw, "Y", 2),
            str(draw.randrange(-3, 4)) if draw.random() < 0.6 else term(draw, "Y", 1),
        ]
    draw.shuffle(sides)
    return (sign, *sides)


def formula(draw: random.Random, depth: int) -> Formula:
    if depth == 0 or draw.random() < 0.2:
        return compared(draw)
    return (
        draw.choice(["and", "or"]),
        *(formula(draw, depth - 1) for _ in range(draw.randrange(1, 4))),
    )


def written(part: object) -> str:
    return part if isinstance(part, str) else "(" + " ".join(map(written, part)) + ")"


def value(part: object, at: dict[str, int]) -> Fraction:
    if isinstance(part, str):
        return Fraction(at[part]) if part in at else Fraction(part)
    op, *parts = part
    first, *others = [value(each, at) for each in parts]
    if op == "*":
        return first * others[0]
    return first + sum(others) if op == "+" else first - sum(others) if others else -first


def true(part: Formula, at: dict[str, int]) -> bool:
    op, *parts = part
    if op in ("and", "or"):
        return (all if op == "and" else any)(true(each, at) for each in parts)
    left, right = (value(each, at) for each in parts)
    return {
        "<=": left <= right,
        ">=": left >= right,
        "<": left < right,
        ">": left > right,
        "=": left == right,
    }[op]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_read_is_what_the_formula_says(seed: int) -> None:
    draw = random.Random(seed)
    box = (
        "and",
        *((sign, f"X_{i}", end) for i in range(2) for sign, end in ((">=", "-2"), ("<=", "2"))),
    )
    points = [
        dict(zip(("X_0", "X_1", "Y_0", "Y_1"), at, strict=True))
        for at in itertools.product(range(-2, 3), repeat=4)
    ]
    read = 0
    for _ in range(40):
        whole = [box, *(formula(draw, draw.randrange(4)) for _ in range(draw.randrange(1, 4)))]
        draw.shuffle(whole)
        text = HEAD + "".join(f"(assert {written(part)})\n" for part in whole)
        chosen = draw.sample(points, 40)
        truths = [all(true(part, at) for part in whole) for at in chosen]
        if (found := unless_empty(text)) is None:
            assert not any(truths)
            continue
        read += 1
        few = found.formula.count < 2000
        clauses = list(found.clauses()) if few else []
        leaves = list(cases(found.case)) if few and found.case else []
        for at, truth in zip(chosen, truths, strict=True):
            x, y = [at["X_0"], at["X_1"]], [at["Y_0"], at["Y_1"]]
            assert holds(found.formula, x, y) == truth
            if few:
                assert any(covers(case, x, y) for case in leaves) == truth
                # closed, where an end may be open
                assert any(inside(clause, x, y) for clause in clauses) >= truth
    assert read > 20


def unless_empty(text: str) -> Property | None:
    """The property, or None where it says that no input is left."""
    try:
        return parse_vnnlib(text)
    except DataError as error:
        if "is asserted to be" not in str(error):
            raise
        return None


def covers(case: Case, x: Sequence[float], y: Sequence[float]) -> bool:
    lower, upper = case.ends.inner
    return bool(
        (lower <= x).all() and (x <= upper).all() and all(kept(row, y) for row in case.rows)
    )


# ----------------------------------------------------------------------------------
# what can be said


def test_commands_declarations_and_ways_to_write_that_are_read() -> None:
    text = (
        "\ufeff; a comment (\n(set-logic QF_LRA)(set-info :source |two ) brackets|)(set-option "
        ":produce-models true)\n"
        "(declare-fun Y_0 () Real)(declare-const X_1 Real)(assert (<= X_1 1))(declare-fun X_0 () "
        "Real)\n"
        "(assert (and (<= -1 X_0 1) (>= X_1 (- 1)) (= Y_0 (* 2 0.25 1)) (<= (* 0 X_1) "
        "1)))(check-sat)(get-model)(exit)"
    )
    (clause,) = parse_vnnlib(text).clauses()
    assert (clause.lower.tolist(), clause.upper.tolist()) == ([-1, -1], [1, 1])
    assert (clause.rows.tolist(), clause.limits.tolist()) == ([[1], [-1]], [0.5, -0.5])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_word(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "p.vnnlib").write_text(HEAD + BOX + "(assert (<= Y_0 0))", encoding=encoding)
    assert read_vnnlib(tmp_path / "p.vnnlib").inputs == 2


@pytest.mark.parametrize(
    "text",
    [
        "(vnnlib-version <2.0>)\n(declare-network f (declare-input X float32 [1]) "
        "(declare-output Y float32 [1]))",
        "(declare-network f (declare-input X Real [3]) (declare-output Y Real []))",
        HEAD + BOX + "(assert (<= Y[0] 1))",
        HEAD + BOX + "(assert (<= (+ Y[0, 1] 1) 1))",
    ],
)
def test_the_second_version_is_refused_as_such(text: str) -> None:
    with pytest.raises(
        Unsupported, match=r"line \d+, column \d+: .* is VNN-LIB 2.0, which is not read"
    ):
        parse_vnnlib(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            BOX + "(assert (<= X_0 (- 1e999 1e999)))",
            "'1e999' is beyond the range of double precision",
        ),
        (BOX + "(assert (<= Y_0 1e-999))", "'1e-999' is beyond the range"),
        (BOX + "(assert (<= Y_0 inf))", "'inf' is neither a number nor a variable"),
        (BOX + "(assert (<= (* 1e300 (* 1e300 Y_0)) 1))", "beyond the range of double precision"),
        (BOX + "(assert (<= Y_0 0))(check-sat)(assert (<= Y_1 0))", "an assertion after check-sat"),
        (BOX + "(assert (and))", "'and' of nothing"),
        (BOX + "(assert (<= Y_0))", "'<=' here has 1 sides"),
        (BOX + "(assert (<= Y_0 (+)))", "a number, a variable or a sum was expected"),
        (BOX + "(assert (<= Y_0 0) (<= Y_1 0))", r"'\(' here; '\)' was expected"),
        (BOX + "(assert Y_0)", "'Y_0' here; a formula in parentheses was expected"),
        (BOX + "(assert (not (<= Y_0 0)))", "'not' here; and, or, <= or >="),
        (
            BOX + "(assert (or (and (<= Y_0 0) (<= Y_1",
            "line 6, column 1: this '\\(' is never closed",
        ),
        (BOX + "(set-info :x", "line 6, column 1: this '\\(' is never closed"),
        (BOX + "(declare-const X_0 Real)", "X_0 is declared twice"),
        (BOX + "(declare-const X_3 Real)", "X_3 is declared, and X_2 is not"),
        (BOX + "(declare-const Z_0 Real)", "'Z_0' here; a variable X_i or Y_i was expected"),
        (BOX + "(declare-const X_2 Int)", "X_2 is declared as 'Int'; only Real is known"),
        (BOX + "(declare-fun X_2 (Real) Real)", "a variable takes nothing"),
        (
            "(assert (or (and (<= X_0 1) (<= 0 X_1 1)) (<= 0 X_0 1)))(assert (>= X_0 0))",
            "X_1 has no lower bound",
        ),
        (
            BOX + "(assert (or (>= X_0 2) (and (<= X_0 0) (> X_0 0))))",
            "at most 1, and its alternatives are as empty",
        ),
        (BOX + "(assert (< X_0 -1))", "X_0 is asserted to be at least -1 and less than -1"),
        (
            "(assert (and (<= 0 X_0 0.1) (<= 0 X_1 1) (>= X_0 0.10000000000000001)))",
            "X_0 is asserted to be at least 0.1",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_vnnlib(HEAD + text)


def test_an_alternative_with_an_empty_box_is_dropped() -> None:
    found = parse_vnnlib(
        HEAD + BOX + "(assert (or (and (>= X_0 0.5) (<= X_0 0.25)) (and (<= X_0 0.5) (<= Y_0 0))))"
    )
    assert [clause.upper.tolist() for clause in found.clauses()] == [[0.5, 2]]
    assert list(parse_vnnlib(HEAD + BOX + "(assert (or (<= 1 0) (< 0 (* 0 Y_1))))").clauses()) == []
    assert (
        len(list(parse_vnnlib(HEAD + BOX + "(assert (or (<= 1 0) (<= 0 (* 0 Y_1))))").clauses()))
        == 1
    )


def test_formulas_and_terms_nest_as_deep_as_they_like() -> None:
    deep = 100_000
    text = HEAD + BOX + "(assert " + "(and " * deep + "(<= Y_0 0)" + " (<= Y_1 1))" * deep + ")"
    (clause,) = parse_vnnlib(text).clauses()
    assert len(clause.rows) == deep + 1
    for op, weight in (("+ 0", 1.0), ("- 0", 1.0), ("* 1", 1.0), ("-", 1.0)):
        many = 2000
        (clause,) = parse_vnnlib(
            HEAD + BOX + f"(assert (<= {f'({op} ' * many}Y_0{')' * many} 1))"
        ).clauses()
        assert (clause.rows.tolist(), clause.limits.tolist()) == ([[weight, 0]], [1])
    # ands and ors in turns: every clause has one row more than the one before it
    text = (
        HEAD
        + BOX
        + "(assert "
        + "(and (<= Y_0 0) (or (<= Y_1 0) " * 20_000
        + "(<= Y_1 1)"
        + "))" * 20_000
        + ")"
    )
    found = parse_vnnlib(text)
    assert [len(clause.rows) for clause in itertools.islice(found.clauses(), 5)] == [2, 3, 4, 5, 6]
    assert found.formula.count == 20_001
    assert holds(found.formula, [0, 1], [0, 0.5])
    assert not holds(found.formula, [0, 1], [0, 1.5])


def test_choices_are_multiplied_out_when_clauses_are_asked_for() -> None:
    ors = "".join(
        f"(assert (or (<= Y_0 {i}) (and (>= Y_1 {i}) (>= X_0 {i - 12}))))" for i in range(25)
    )
    found = parse_vnnlib(HEAD + BOX + ors)
    assert found.formula.count == 2**25
    assert len(list(itertools.islice(found.clauses(), 100))) == 100
    # a box that is empty is dropped before its other choices are multiplied out
    ors = "".join(f"(assert (or (<= Y_0 {i}) (<= Y_1 {i})))" for i in range(25))
    apart = (
        "(assert (or (<= X_0 -0.5) (>= X_0 0.5)))(assert (or (and (<= X_0 -0.6) (<= X_1 "
        "0.5)) (>= X_0 0.6)))"
    )
    cut = parse_vnnlib(
        HEAD + BOX + apart + "(assert (or (and (>= X_0 -0.4) (<= X_0 0.4)) (>= X_1 3)))" + ors
    )
    assert list(cut.clauses()) == []


def test_rows_that_say_the_opposite_leave_no_clause() -> None:
    for one, other, count in (
        ("(<= Y_0 0.3)", "(> Y_0 0.30)", 0),
        ("(<= Y_0 0.3)", "(>= Y_0 0.3)", 1),
        ("(< Y_0 Y_1)", "(< Y_1 Y_0)", 0),
        ("(<= Y_0 0.3)", "(> Y_0 0.29999999999999999)", 1),
        ("(<= Y_0 0.3)", "(>= Y_0 0.30000000000000001)", 0),
        ("(< (+ Y_0 Y_1) 1)", "(= (- (- Y_1) Y_0) -1)", 0),
        ("(<= Y_0 1)", "(>= Y_1 2)", 1),
    ):
        for first, second in ((one, other), (other, one)):
            text = (
                HEAD
                + BOX
                + f"(assert (or (and {first} {second}) (and {first} (<= Y_1 5) {second})))"
            )
            assert len(list(parse_vnnlib(text).clauses())) == 2 * count


# ----------------------------------------------------------------------------------
# the search


def network(inputs: int, outputs: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, outputs)).double()


def searched(
    model: nn.Module, found: Property, seconds: float = 60.0
) -> tuple[str, list[torch.Tensor]]:
    net, points = program(model, torch.zeros(2, found.inputs)), []

    def agrees(x: torch.Tensor, clauses: Sequence[Case]) -> bool:
        inner = inward(x.numpy(), *clauses[0].ends.inner, np.float64)
        points.append(torch.from_numpy(inner))
        y = net(points[-1][None])[0]
        return any(all(kept(row, y.tolist()) for row in clause.rows) for clause in clauses)

    result = (
        search(net, found.case, found.outputs, deadline(seconds), agrees) if found.case else None
    )
    return (result.status if result else "unsat"), points


@pytest.mark.parametrize("few", [64, 1])
def test_verdicts_on_formulas_are_those_of_a_grid(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """few: with 1 every choice is decided by what a point misses, as it is where there are
    many.
    """
    monkeypatch.setattr(formulas, "_FEW", few)
    monkeypatch.setattr(formulas, "_FLAT", few)
    draw, seen = random.Random(few), set()
    for seed in range(8):
        model = network(2, 2, seed)
        axis = torch.linspace(-1, 1, 41, dtype=torch.float64)
        x = torch.cartesian_prod(axis, axis)
        y = model(x).detach()
        quantiles = y.quantile(torch.tensor([0.0, 0.02, 0.5, 0.98, 1.0], dtype=torch.float64), 0)
        box = "".join(f"(assert (<= -1 X_{i} 1))" for i in range(2))

        def part(y: torch.Tensor = quantiles) -> str:
            i, j = draw.randrange(2), draw.randrange(4)
            if draw.random() < 0.3:
                return f"({draw.choice(['<=', '>='])} X_{i} {draw.choice([-0.525, 0.025, 0.475])})"
            end = float(y[j, i] + y[j + 1, i]) / 2
            return f"({draw.choice(['<=', '>=', '<', '>'])} Y_{i} {end!r})"

        ors = "".join(f"(assert (or {part()} (and {part()} {part()}) {part()}))" for _ in range(3))
        ors += f"(assert {part()})(assert {part()})"
        if (found := unless_empty(HEAD + box + ors)) is None:
            continue
        truths = [holds(found.formula, a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        status, points = searched(model, found)
        seen.add(status)
        assert status == "sat" or not any(truths)
        assert status != "unknown"
        if status == "sat":
            assert holds(found.formula, points[-1].tolist(), model(points[-1]).tolist())
    assert seen == {"sat", "unsat"}


def test_very_many_clauses_are_decided_without_being_made() -> None:
    many = 25
    model = network(3, many)
    y = model(torch.rand(5000, 3, dtype=torch.float64) * 2 - 1)
    low, high = y.amin(0).tolist(), y.amax(0).tolist()
    head = "".join(f"(declare-const X_{i} Real)(assert (<= -1 X_{i} 1))" for i in range(3))
    head += "".join(f"(declare-const Y_{i} Real)" for i in range(many))

    def of(below: Sequence[float], above: Sequence[float], more: str = "") -> Property:
        ors = "".join(
            f"(assert (or (<= Y_{i} {below[i]!r}) (>= Y_{i} {above[i]!r})))" for i in range(many)
        )
        found = parse_vnnlib(head + ors + more)
        assert found.formula.count == 2**many
        return found

    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    assert searched(model, of([m - 1e-3 for m in middle], [m + 1e-3 for m in middle]))[0] == "sat"
    assert searched(model, of([a - 9 for a in low], [b + 9 for b in high]))[0] == "unsat"
    common = f"(assert (<= Y_0 {low[0] - 9}))"
    assert searched(model, of(middle, middle, common))[0] == "unsat"
    # each choice alone can be kept, near the ends of its output, and not all of them at once
    near = of(
        [a + 0.02 * (b - a) for a, b in zip(low, high, strict=True)],
        [b - 0.02 * (b - a) for a, b in zip(low, high, strict=True)],
    )
    assert searched(model, near)[0] == "unsat"
    assert searched(model, near, 0.0)[0] == "unknown"


@pytest.mark.parametrize("few", [64, 1])
def test_a_counterexample_that_is_none_after_all_leaves_it_unknown(
    monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(formulas, "_FEW", few)
    monkeypatch.setattr(formulas, "_FLAT", few)
    net = program(network(2, 2), torch.zeros(2, 2))
    found = parse_vnnlib(
        HEAD
        + BOX
        + "(assert (or (<= Y_0 99) (<= Y_1 99)))(assert (or (<= Y_0 98) (and (<= Y_1 -99) (> X_0 "
        "0))))"
    )
    for agreed, status in ((True, "sat"), (False, "unknown")):
        assert (
            search(
                net, found.case, 2, deadline(60.0), lambda x, cases, agreed=agreed: agreed
            ).status
            == status
        )
    # a part that nobody could decide
    undecided = Verdict("unknown", -1.0)
    monkeypatch.setattr(formulas, "verify", lambda *_: undecided)
    assert search(net, found.case, 2, deadline(60.0), lambda x, cases: False).status == "unknown"


def test_very_many_boxes_are_decided_without_being_made() -> None:
    many = 25
    model = nn.Sequential(nn.Linear(many, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    head = "".join(f"(declare-const X_{i} Real)" for i in range(many)) + "(declare-const Y_0 Real)"
    ors = "".join(f"(assert (or (<= 0 X_{i} 1) (<= 2 X_{i} 3)))" for i in range(many))
    for row, status in (
        ("(<= Y_0 -1)", "unsat"),
        ("(>= Y_0 75)", "sat"),
        ("(and (>= Y_0 10) (<= Y_0 11))", "sat"),
    ):
        found = parse_vnnlib(head + ors + f"(assert {row})")
        assert found.formula.count == 2**many
        assert searched(model, found)[0] == status
    assert searched(model, found, 0.0)[0] == "unknown"


# ----------------------------------------------------------------------------------
# the witness


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_witness_is_rounded_into_its_box(kind: type) -> None:
    draw = np.random.default_rng(0)
    middle, far = draw.normal(size=4000), 10.0 ** draw.uniform(-6, 0, 4000)
    lower, upper = middle - far, middle + far
    for witness in (lower, upper, middle, lower + (upper - lower) * draw.random(4000)):
        x = inward(witness, lower, upper, kind)
        assert x.dtype == kind
        some = np.nextafter(lower.astype(kind), kind(np.inf)).astype(float) <= upper
        assert some.sum() > 500
        assert (lower <= x)[some].all()
        assert (x <= upper)[some].all()
        np.testing.assert_allclose(
            x.astype(float), witness, rtol=2 * np.finfo(kind).eps, atol=float(np.finfo(kind).eps)
        )


def test_ends_are_those_that_are_written_and_not_the_nearest_numbers() -> None:
    tenth = Fraction(1, 10)
    text = (
        HEAD + "(assert (and (>= X_0 0.1) (<= X_0 0.3) (> X_1 0.5) (< X_1 (* 3 0.25)) (<= Y_0 0)))"
    )
    (case,) = cases(parse_vnnlib(text).case)
    inner, outer = case.ends.inner, case.ends.outer
    assert Fraction(outer[0][0]) <= tenth <= Fraction(inner[0][0])
    assert Fraction(inner[1][0]) <= 3 * tenth <= Fraction(outer[1][0])
    assert inner[0][1] == np.nextafter(0.5, 1)
    assert inner[1][1] == np.nextafter(0.75, 0)
    assert (outer[0][1], outer[1][1]) == (0.5, 0.75)


def test_a_written_witness_lies_in_its_box_as_written() -> None:
    # 0.1 lies between two float32; the others have some
    text = HEAD + "(assert (and (= X_0 0.1) (>= X_1 0.30000001192092896) (<= X_1 0.4) (<= Y_0 0)))"
    (case,) = cases(parse_vnnlib(text).case)
    x = inward(np.array([0.1, 0.3]), *case.ends.inner, np.float32)
    assert x[0] == np.float32(0.1)
    first, second = case.ends.written(x.tolist())
    assert first == "0.1"
    assert Fraction("0.30000001192092896") <= Fraction(second) <= Fraction("0.4")
    assert np.float32(second) == x[1]
