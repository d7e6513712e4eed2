"""Every technique of `TECHNIQUES` bounds what points of a box show, and one more rule in each table
makes another operation bounded by all.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bounded_nets import NETS, inside
from morphogen import Unsupported
from morphogen.bounds.alpha_crown import ALPHA_CROWN
from morphogen.bounds.box import Box, linf_ball
from morphogen.bounds.crown import CROWN, Backward, Below
from morphogen.bounds.derivative import DERIVATIVE
from morphogen.bounds.dual import DUAL, Relaxed
from morphogen.bounds.forward import FORWARD
from morphogen.bounds.interval import IBP
from morphogen.bounds.lp_encoding import LP
from morphogen.bounds.rounding import MAGNITUDE, size
from morphogen.bounds.sums import total
from morphogen.bounds.techniques import TECHNIQUES, Technique
from morphogen.tracing.program import Program, Step, program

# a few steps of ascent are enough to be wrong
HURRIED: dict[str, dict[str, Any]] = {"alpha-CROWN": {"steps": 3}, "dual": {"steps": 5}}
# derivatives leave out rounding, and look curved slopes up in 17 places
ROOM = {"values": 1e-12, "output": 1e-12, "derivatives": 2e-3}


def held(name: str, net: Program, box: Box, points: int) -> dict[str, Box]:
    """The bounds that a technique gives, seen to hold in points of the box."""
    technique = TECHNIQUES[name]
    boxes = dict(technique.run(net, box, **HURRIED.get(name, {})))
    room = ROOM[technique.bounds]
    x = inside(box, points, torch.Generator().manual_seed(1))
    seen = technique.at(net, x.flatten(0, 1))
    for value, bounds in boxes.items():
        there = seen[value].unflatten(0, x.shape[:2])
        assert there.shape[1:] == bounds.lower.shape
        assert bool((there >= bounds.lower - room).all()), value
        assert bool((there <= bounds.upper + room).all()), value
    return boxes


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_every_technique_bounds_what_points_show(name: str, radius: float) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    x = torch.randn(2, *shape).double()
    net = program(build().eval(), x.float())
    box = linf_ball(x, radius)
    for technique in TECHNIQUES:
        boxes = held(technique, net, box, 20 if technique == "derivative" else 60)
        values = {step.name for step in net.steps} | {net.input}
        assert boxes.keys() >= (
            values if TECHNIQUES[technique].bounds == "values" else {net.output}
        )


@pytest.mark.parametrize("name", NETS)
def test_ranges_of_derivatives_shrink_to_them(name: str) -> None:
    torch.manual_seed(5)
    build, shape = NETS[name]
    net = program(build().eval(), torch.rand(3, *shape))
    centre = torch.rand(3, *shape, dtype=torch.float64)
    wide, narrow = (
        held("derivative", net, linf_ball(centre, radius), 10)[net.output] for radius in (0.2, 1e-7)
    )
    assert float(narrow.width.max()) < 1e-4 * max(float(wide.width.max()), 1e-2)


# --------------------------------------------------------------------------------------------------
# one more operation: the product of two values


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.value(x).tanh() * torch.sigmoid(self.gate(x)))


def factors(step: Step) -> tuple[str, str]:
    return step.args[0].name, step.args[1].name


def by_intervals(step: Step, boxes: Any) -> Box:
    u, v = (boxes[name] for name in factors(step))
    ends = [u.lower * v.lower, u.lower * v.upper, u.upper * v.lower, u.upper * v.upper]
    return Box(torch.stack(ends).amin(0) - 1e-15, torch.stack(ends).amax(0) + 1e-15)


def slopes(step: Step, a: Tensor, boxes: Any) -> tuple[Tensor, Tensor]:
    """McCormick: u v >= lv u + lu v - lu lv, and u v <= lv u + uu v - uu lv."""
    u, v = (boxes[name] for name in factors(step))
    down, up = a.clamp_max(0), a.clamp_min(0)
    return a * v.lower[:, None], up * u.lower[:, None] + down * u.upper[:, None]


def backwards(step: Step, state: Backward) -> Below:
    one, other = factors(step)
    a = state.coefficients[step.name]
    by_u, by_v = slopes(step, a, state.boxes)
    return {one: by_u, other: by_v}, -total(by_v * state.boxes[other].lower[:, None])


def stacked(step: Step, a: Tensor, boxes: Any) -> Tensor:
    return torch.stack(slopes(step, a, boxes))


def at_corners(step: Step, state: Backward) -> Below:
    one, other = factors(step)
    a, c = state.coefficients[step.name], state.free.duals[step.name]
    values = [
        a * u[:, None] * v[:, None] - c[0] * u[:, None] - c[1] * v[:, None]
        for u in (state.boxes[one].lower, state.boxes[one].upper)
        for v in (state.boxes[other].lower, state.boxes[other].upper)
    ]
    return {one: c[0], other: c[1]}, total(torch.stack(values).amin(0))


def by_the_product_rule(step: Step, ranges: Any) -> Box:
    """u' v + v' u."""
    lower, upper = 0.0, 0.0
    for one, other in (factors(step), factors(step)[::-1]):
        slope = ranges.slopes[one]
        low = ranges.boxes[other].lower.repeat_interleave(ranges.inputs, 0)
        high = ranges.boxes[other].upper.repeat_interleave(ranges.inputs, 0)
        ends = torch.stack([s * z for s in (slope.lower, slope.upper) for z in (low, high)])
        lower, upper = lower + ends.amin(0), upper + ends.amax(0)
    return Box(lower, upper)


def largest(step: Step, boxes: Any) -> Tensor:
    one, other = (size(boxes[name]) for name in factors(step))
    return 4 * one * other


# one rule a table; nothing is free in it, or it lies between two numbers, as a maximum does
PRODUCT = [
    (IBP, by_intervals),
    (MAGNITUDE, largest),
    (FORWARD, FORWARD.table["max_pool"]),
    (CROWN, backwards),
    (ALPHA_CROWN, ALPHA_CROWN.table["max_pool"]),
    (DUAL, Relaxed(stacked, at_corners)),
    (DERIVATIVE, by_the_product_rule),
    (LP, LP.table["max_pool"]),
]


def gated() -> tuple[Program, Box]:
    torch.manual_seed(0)
    net = program(Gated(), torch.zeros(2, 3))
    assert [step.kind for step in net.steps].count("mul") == 1
    return net, linf_ball(torch.randn(2, 3).double(), 0.4)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_one_rule_a_technique_makes_another_operation_bounded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, box = gated()
    for rules, rule in PRODUCT:
        monkeypatch.setitem(rules.table, "mul", rule)
    bounds = held(name, net, box, 200)[net.output]
    assert bool((bounds.width < 30).all())


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_without_the_rule_refuses_it_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, box = gated()
    technique: Technique = TECHNIQUES[name]
    assert technique.rules.technique == name
    for rules, rule in PRODUCT:
        if rules is not technique.rules:
            monkeypatch.setitem(rules.table, "mul", rule)
    with pytest.raises(Unsupported, match=f"^{name}: no rule bounds 'mul' at node 'mul'"):
        technique.run(net, box)


def test_an_affine_product_needs_no_rule_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of a product of two values is none of a value times a number."""

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * x

    def never(step: Step, state: Any) -> Any:
        raise AssertionError(step)

    for rules, _ in PRODUCT:
        monkeypatch.setitem(rules.table, "mul", never)
    x = torch.ones(1, 2).double()
    for name in TECHNIQUES:
        held(name, program(Doubled(), torch.zeros(2, 2)), Box(-x, x), 5)
