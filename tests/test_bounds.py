"""Bounds hold for every input that is tried, tighter techniques lie inside looser ones, what cannot
be bounded is refused.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from bounded_nets import NETS, between, inside
from morphogen import ShapeError, Unsupported
from morphogen.activations import ACTIVATIONS, extremes
from morphogen.bounds.alpha_crown import alpha_crown, optimised
from morphogen.bounds.box import Box, InputSet, l0_ball, linf_ball, lp_ball, unit_cube
from morphogen.bounds.crown import Variables, crown, lower_bound
from morphogen.bounds.dual import dual, lagrangian
from morphogen.bounds.forward import forward
from morphogen.bounds.interval import interval
from morphogen.bounds.lp import lp_minimum
from morphogen.bounds.maximum import looked_at, relaxed, windows
from morphogen.bounds.relaxation import linear_relaxation
from morphogen.tracing.program import program
from morphogen.verification.stability import ACTIVE, INACTIVE, UNDECIDED, UNSTABLE, stability
from morphogen.verification.unsafe import Unsafe

# with the usual options
KNOWN = {name: kind.of() for name, kind in ACTIVATIONS.items() if name != "prelu"}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_bounds_lie_inside_each_other(name: str, radius: float) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    model, x = build().eval(), torch.randn(3, *shape)
    net = program(model, x)
    torch.testing.assert_close(net(x), model.double()(x.double()), rtol=0, atol=1e-12)
    box = linf_ball(x.double(), radius)
    loose, tight, best = interval(net, box), crown(net, box), alpha_crown(net, box, 3)
    for step in net.steps:
        assert (tight[step.name].lower >= loose[step.name].lower - 1e-12).all()
        assert (tight[step.name].upper <= loose[step.name].upper + 1e-12).all()
        assert (best[step.name].lower >= tight[step.name].lower - 1e-12).all()
        assert (best[step.name].upper <= tight[step.name].upper + 1e-12).all()
    spec = torch.tensor([[[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]])
    least = lower_bound(net, tight, spec)
    for point in inside(box, 60, torch.Generator().manual_seed(2)):
        assert (torch.einsum("nko,bo->bk", spec.double(), net(point)) >= least - 1e-12).all()


def test_a_network_by_hand() -> None:
    """relu(a + b) - relu(a - b) on [-1, 1]^2: both sums lie in [-2, 2], so the chord above is z / 2
    + 1, the line below 0.
    """
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        second.weight.copy_(torch.tensor([[1.0, -1.0]]))
        first.bias.zero_()
        second.bias.fill_(0.5)
    net = program(nn.Sequential(first, nn.ReLU(), second), torch.zeros(2, 2))
    box = Box(-torch.ones(1, 2), torch.ones(1, 2))
    for technique in (crown, interval):
        assert [float(v) for v in vars(technique(net, box)[net.output]).values()] == pytest.approx(
            [-1.5, 2.5], abs=1e-12
        )
    free = Variables({"relu": torch.ones(1, 1, 1, 2).double()})
    # with slope 1 below: a + b - ((a - b) / 2 + 1) + 0.5, least at -1, -1: -2 - 1 + 0.5
    assert float(
        lower_bound(net, crown(net, box), torch.ones(1, 1, 1), free=free)
    ) == pytest.approx(-2.5)


def by_the_paper(
    weights: list[np.ndarray], biases: list[np.ndarray], lower: np.ndarray, upper: np.ndarray
) -> list[np.ndarray]:
    """CROWN as its paper has it, layer after layer, a unit at a time: the bounds of each layer's
    values, (2, units).
    """
    found: list[np.ndarray] = []
    for depth in range(1, len(weights) + 1):
        ends = np.empty((2, len(biases[depth - 1])))
        for unit in range(ends.shape[1]):
            # the largest value is minus the least of its negative
            for side, sign in ((0, 1.0), (1, -1.0)):
                a, d = sign * weights[depth - 1][unit], sign * biases[depth - 1][unit]
                for layer in range(depth - 2, -1, -1):
                    low, high = found[layer]
                    slopes, offsets = np.zeros_like(a), np.zeros_like(a)
                    for j, (least, most) in enumerate(zip(low, high, strict=True)):
                        if least >= 0:
                            slopes[j] = 1
                        elif most > 0 and a[j] < 0:  # the chord
                            slopes[j], offsets[j] = (
                                most / (most - least),
                                -most * least / (most - least),
                            )
                        elif most > 0:
                            slopes[j] = float(most > -least)
                    d = d + a @ offsets
                    a = a * slopes
                    a, d = a @ weights[layer], d + a @ biases[layer]
                ends[side, unit] = sign * (d + np.maximum(a, 0) @ lower + np.minimum(a, 0) @ upper)
        found.append(ends)
    return found


@pytest.mark.parametrize("sizes", [(2, 3, 1), (5, 20, 20, 4), (3, 8, 8, 8, 8, 2)])
def test_bounds_are_those_of_the_paper(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(len(sizes))
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1]).double()
    box = Box(-torch.ones(1, sizes[0]).double(), torch.ones(1, sizes[0]).double())
    tensors = [
        [t.detach().numpy() for t in pair]
        for pair in ((layer.weight, layer.bias) for layer in layers)
    ]
    expected = by_the_paper(
        [w for w, _ in tensors], [b for _, b in tensors], box.lower[0].numpy(), box.upper[0].numpy()
    )
    net = program(model, torch.zeros(2, sizes[0]))
    names = [step.name for step in net.steps if step.kind == "linear"]
    # on its boxes; `linear` meets them with intervals, which makes for other lines
    boxes = {
        name: Box(*(torch.from_numpy(e.copy())[None] for e in ends))
        for name, ends in zip(names, expected, strict=True)
    }
    boxes = {**interval(net, box), **boxes}
    for name, (low, high) in zip(names, expected, strict=True):
        eye = torch.eye(len(low)).double()[None]
        np.testing.assert_allclose(lower_bound(net, boxes, eye, name)[0].numpy(), low, atol=1e-9)
        np.testing.assert_allclose(-lower_bound(net, boxes, -eye, name)[0].numpy(), high, atol=1e-9)


def test_an_affine_network_is_bounded_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    net, box = program(model, torch.randn(2, 4)), linf_ball(torch.randn(2, 4).double(), 0.5)
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 4)
    values = torch.stack([net(box.centre + corner) for corner in corners])
    found = crown(net, box)[net.output]
    torch.testing.assert_close(found.lower, values.amin(0))
    torch.testing.assert_close(found.upper, values.amax(0))


@pytest.mark.parametrize("name", KNOWN)
def test_the_extremes_of_an_activation_less_a_line(name: str) -> None:
    h = KNOWN[name]
    draw = torch.Generator().manual_seed(0)
    ends = (4 * torch.randn(400, 2, generator=draw, dtype=torch.float64)).sort(1).values
    ends[:20, 1] = ends[:20, 0]
    lower, upper = ends.T
    for s in (
        torch.zeros(400).double(),
        1.3 * torch.rand(400, generator=draw, dtype=torch.float64) - 0.15,
    ):
        least, most = extremes(h, s, lower, upper)
        z = (
            lower + (upper - lower) * torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
        ).clamp(lower, upper)
        seen = h.value(z) - s * z
        assert (seen >= least - 1e-12 * (1 + least.abs())).all()
        assert (seen <= most + 1e-12 * (1 + most.abs())).all()
        torch.testing.assert_close(least, seen.amin(0), rtol=1e-2, atol=5e-3)
        torch.testing.assert_close(most, seen.amax(0), rtol=1e-2, atol=5e-3)
    box = Box(lower[None], upper[None])
    found = linear_relaxation(h, box)
    z = z[:, None, None]
    rounding = 1e-12 * (1 + h.value(z).abs().amax(0))
    assert (found.lower_slope * z + found.lower_bias <= h.value(z) + rounding).all()
    assert (found.upper_slope * z + found.upper_bias >= h.value(z) - rounding).all()


def test_what_cannot_be_bounded_is_refused() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.tanh()

    x = torch.randn(2, 3)
    for technique in (interval, crown):
        net = program(Product(), x)
        with pytest.raises(Unsupported, match="no rule bounds 'mul' at node 'mul'"):
            technique(net, Box(x, x))
    with pytest.raises(
        ShapeError, match="lower 1.0 is above upper 0.0 at \\(0, 2\\); the box is empty"
    ):
        Box(torch.tensor([[0.0, 0.0, 1.0]]), torch.zeros(1, 3))
    with pytest.raises(ShapeError, match="a bound is NaN"):
        Box(torch.full((1, 3), float("nan")), torch.zeros(1, 3))
    broken = nn.Linear(3, 2)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(ShapeError, match="'weight' holds NaN or infinite values"):
        program(broken, x)
    endless = Box(torch.full((1, 4), -torch.inf), torch.ones(1, 4))
    for technique in (interval, crown, forward, alpha_crown):
        with pytest.raises(
            ShapeError, match=r"from -inf to 1.0 at \(0, 0\); give inputs finite ends"
        ):
            technique(program(nn.Linear(4, 2), torch.zeros(2, 4)), endless)


def test_alpha_ends_in_time_with_linear_bounds() -> None:
    torch.manual_seed(0)
    net, box = (
        program(between(nn.ReLU()), torch.zeros(2, 6)),
        Box(-torch.ones(1, 6), torch.ones(1, 6)),
    )
    late, plain = alpha_crown(net, box, 20, seconds=0.0), crown(net, box)
    for name, ends in plain.items():
        assert torch.equal(late[name].lower, ends.lower)
        assert torch.equal(late[name].upper, ends.upper)
    assert float((alpha_crown(net, box, 20)[net.output].width < plain[net.output].width).sum()) > 0


def test_linear_programs_alpha_linear_and_interval_hold_one_another() -> None:
    """The relaxation's optimum is where the optimised relaxation leads, and the search by
    cases is the truth.
    """
    for seed in range(5):
        torch.manual_seed(seed)
        bend = nn.LeakyReLU(0.2) if seed == 4 else nn.ReLU()
        model = nn.Sequential(nn.Linear(3, 8), bend, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        net, box = (
            program(model, torch.randn(2, 3)),
            Box(-torch.ones(1, 3).double(), torch.ones(1, 3).double()),
        )
        row = torch.tensor([1.0, -1.0]).double()
        boxes, spec = crown(net, box), row.view(1, 1, 2)
        out = interval(net, box)[net.output]
        plain, best = (
            float(lower_bound(net, boxes, spec)),
            float(optimised(net, boxes, spec, steps=200).bound),
        )
        relaxed, point = lp_minimum(net, boxes, row[None], torch.zeros(1))
        exact, where = lp_minimum(net, boxes, row[None], torch.zeros(1), exact=True)
        axis = torch.linspace(-1, 1, 41, dtype=torch.float64)
        seen = float((net(torch.cartesian_prod(axis, axis, axis)) @ row).min())
        assert float(out.lower[0, 0] - out.upper[0, 1]) - 1e-9 <= plain <= best + 1e-9
        assert best <= relaxed + 1e-9
        assert relaxed - best < 2e-3
        assert relaxed <= exact + 1e-9
        assert exact <= seen
        assert float(net(where) @ row) == pytest.approx(exact, abs=1e-8)
        assert point.shape == box.lower.shape


def test_what_is_known_of_signs_tightens_bounds_and_an_empty_part_has_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    net, box = (
        program(model, torch.randn(2, 2)),
        Box(-torch.ones(1, 2).double(), torch.ones(1, 2).double()),
    )
    boxes, name, spec = crown(net, box), net.steps[0].name, torch.ones(1, 1, 1).double()
    points = box.lower + 2 * torch.rand(4000, 2).double()
    z, y = net.values(points)[name], net(points)[:, 0]
    for unit in range(4):
        for sign in (1, -1):
            signs = torch.zeros(1, 4).double()
            signs[0, unit] = sign
            lower = torch.where(signs > 0, boxes[name].lower.clamp_min(0), boxes[name].lower)
            upper = torch.where(signs < 0, boxes[name].upper.clamp_max(0), boxes[name].upper)
            cut = {**boxes, name: Box(torch.minimum(lower, upper), torch.maximum(lower, upper))}
            there = sign * z[:, unit] >= 0
            free, held = (
                optimised(net, cut, spec, signs=s, steps=60).bound for s in (None, {name: signs})
            )
            assert float(held) >= float(free) - 1e-9
            if bool(there.any()):
                assert float(held) <= float(y[there].min()) + 1e-9
                assert (
                    lp_minimum(net, cut, torch.ones(1, 1).double(), torch.zeros(1))[0]
                    <= float(y[there].min()) + 1e-9
                )
    # x >= 0.9 and x <= -0.9 at once: the linear program says that there is none
    both = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        both[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        both[0].bias.fill_(-0.9)
    net, box = (
        program(both, torch.zeros(2, 1)),
        Box(-torch.ones(1, 1).double(), torch.ones(1, 1).double()),
    )
    boxes, name = crown(net, box), net.steps[0].name
    empty = {**boxes, name: Box(torch.zeros(1, 2).double(), boxes[name].upper)}
    assert lp_minimum(net, empty, torch.ones(1, 1).double(), torch.zeros(1)) == (torch.inf, None)


@pytest.mark.parametrize("seed", range(3))
def test_stable_units_are_proved_and_the_others_have_witnesses(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)
    )
    with torch.no_grad():
        model[0].bias.mul_(3)
        model[2].bias.mul_(2)
    found = stability(
        model, Box(-torch.ones(1, 3), torch.ones(1, 3)), samples=torch.zeros(1, 3), points=10
    )
    net, axis = program(model, torch.zeros(2, 3)), torch.linspace(-1, 1, 31, dtype=torch.float64)
    values = net.values(torch.cartesian_prod(axis, axis, axis))
    assert found.count(ACTIVE) + found.count(INACTIVE) + found.count(UNSTABLE) == 24
    assert found.count(ACTIVE) > 0
    assert found.count(INACTIVE) > 0
    for name, units in found.units.items():
        z = values[name]
        assert (z[:, units.sign == ACTIVE] >= 0).all()
        assert (z[:, units.sign == INACTIVE] <= 0).all()
        assert all(units.how)
        for unit in (units.sign == UNSTABLE).nonzero()[:, 0].tolist():
            assert float(net.values(units.positive[unit][None])[name][0, unit]) > 0
            assert float(net.values(units.negative[unit][None])[name][0, unit]) < 0
    hurried = stability(model, Box(-torch.ones(1, 3), torch.ones(1, 3)), points=0, seconds=0.0)
    assert str(hurried).endswith(f"{hurried.count(UNDECIDED)} undecided")


SETS: dict[str, Callable[[Tensor], InputSet]] = {
    "box": lambda x: linf_ball(x, 0.3),
    "l2": lambda x: lp_ball(x, 0.5, 2.0, -1.0, 1.0),
    "l1": lambda x: lp_ball(x, 0.5, 1.0),
    "few": lambda x: l0_ball(x, 2, -1.0, 1.0),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_set_holds_its_points_and_its_least_values_are_attained(kind: str) -> None:
    torch.manual_seed(0)
    x, a = torch.randn(3, 2, 4).double().clamp(-0.9, 0.9), torch.randn(3, 2, 4).double()
    found = SETS[kind](x)
    lowest, at = found.lowest(a[:, None])[:, 0], found.lowest_at(a)
    torch.testing.assert_close(found.inside(at), at, rtol=0, atol=1e-12)
    assert ((a * at).flatten(1).sum(1) >= lowest - 1e-12).all()
    if kind in ("box", "few"):
        torch.testing.assert_close((a * at).flatten(1).sum(1), lowest)
    for points in torch.randn(500, 3, 2, 4).double() * 2:
        inside = found.inside(points)
        torch.testing.assert_close(found.inside(inside), inside, rtol=0, atol=1e-12)
        assert ((inside >= found.lower - 1e-12) & (inside <= found.upper + 1e-12)).all()
        assert ((a * inside).flatten(1).sum(1) >= lowest - 1e-9).all()
        away = (inside - x).flatten(1)
        if kind == "few":
            assert ((away != 0).sum(1) <= 2).all()
        elif kind != "box":
            assert (away.norm(2.0 if kind == "l2" else 1.0, 1) <= 0.5 + 1e-9).all()
        nearer = x + 0.999 * (inside - x) if kind in ("l1", "l2") else inside
        assert bool(found.contains(nearer).all())
        # a point is in the set where it is its own neighbour in it
        near = (found.inside(points) - points).flatten(1).norm(2, 1)
        assert torch.equal(found.contains(points), near == 0)
    assert not bool(found.contains(x + 2.0).any())
    with pytest.raises(ShapeError, match="norm=3"):
        lp_ball(x, 0.5, 3)
    with pytest.raises(ShapeError, match="count=9"):
        l0_ball(x, 9, -1, 1)


@pytest.mark.parametrize("kind", SETS)
def test_a_set_is_cut_and_repeated_in_its_box(kind: str) -> None:
    """Each has the methods of the protocol; what is no box stays whole, and passes for none."""
    x = torch.linspace(-0.2, 0.2, 24, dtype=torch.float64).view(3, 2, 4)
    found = SETS[kind](x)
    assert found.is_box == isinstance(found, Box)
    assert found.is_box == isinstance(found, Box)
    assert torch.equal(found.box.lower, found.lower)
    assert torch.equal(found.box.upper, found.upper)
    signs = torch.tensor([1.0, -1.0, 0.0, 0.0]).expand(1, 2, 4)
    half = found.with_signs(signs)
    assert bool(half.contains(half.inside(x)).all())
    smaller = linf_ball(x, 0.01)
    both = found.intersect(smaller)
    if found.is_box:
        assert bool((half.lower[..., 0] >= 0).all() & (half.upper[..., 1] <= 0).all())
        assert torch.equal(both.lower, smaller.lower)
    else:
        assert half is found
        assert both is found
    a = torch.randn(3, 5, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(found[1:].lowest(a[1:]), found.lowest(a)[1:])
    often = found[:1].repeated(3)
    assert torch.equal(often.lowest(a)[:1], found[:1].lowest(a[:1]))
    assert torch.equal(found.as_input(torch.float64).lower, found.lower)


def test_the_unit_cube_and_points_of_a_box() -> None:
    cube = unit_cube(2, 3)
    points = cube.points(10, 4)
    assert points.shape == (10, 2, 3)
    assert bool(((points[:4] == 0) | (points[:4] == 1)).all())
    assert torch.equal(points, cube.points(10, 4))
    assert bool(cube.repeated(10).contains(points).all())
    assert not bool(cube.repeated(10).contains(points + 1.5).any())


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize(
    "name",
    [
        "ReLU",
        "Sigmoid",
        "Tanh",
        "ELU",
        "GELU",
        "Softplus",
        "LeakyReLU",
        "linked DAG",
        "branches",
        "pooled",
        "overlapping pools",
    ],
)
def test_the_dual_begins_at_the_linear_bounds_and_any_multipliers_are_sound(
    name: str, kind: str
) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    x = torch.randn(2, *shape).double().clamp(-0.9, 0.9)
    net = program(model, x.float())
    found, spec = SETS[kind](x), torch.randn(1, 2, 3).double()
    boxes = crown(net, found)
    plain, best = lower_bound(net, boxes, spec), dual(net, boxes, spec, steps=15)
    assert best.path[0] == pytest.approx(float(plain.mean()), abs=1e-12)
    assert (best.bound >= plain - 1e-12).all()
    assert list(best.path) == sorted(best.path)
    wild = {n: c + torch.randn(c.shape).double() for n, c in best.multipliers.items()}
    loose = lagrangian(net, boxes, spec, wild)
    for _ in range(200):
        points = found.inside(found.lower + found.box.width * torch.rand(x.shape).double())
        y = torch.einsum("nko,bo->bk", spec, net(points))
        assert (y >= best.bound - 1e-9).all()
        assert (y >= loose - 1e-9).all()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": 1},
        {"kernel_size": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    ],
)
def test_the_windows_of_a_maximum_and_its_relaxation(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 6, 5).double()
    step = program(nn.MaxPool2d(**options), x.float()).steps[-1]
    at = windows(step, x.shape[1:])
    expected = nn.MaxPool2d(**options)(x)
    torch.testing.assert_close(looked_at(at, x, -torch.inf).amax(2).view_as(expected), expected)

    # one window of three entries: all of it is linear between ends, and where two are equal
    box = (lambda lower: Box(lower, lower + 2 * torch.rand(40, 3)))(torch.randn(40, 3).double())
    a, c = torch.randn(40, 1, 1).double(), torch.randn(40, 1, 1, 3).double()
    ends = torch.cat([box.lower, box.upper], 1)
    choices = torch.cartesian_prod(*[torch.arange(6)] * 3)
    z = ends[:, choices].clamp(box.lower[:, None], box.upper[:, None])
    least = (a[:, 0] * z.amax(2) - (c[:, 0] * z).sum(2)).amin(1)
    torch.testing.assert_close(relaxed(torch.arange(3)[None], a, c, box)[:, 0], least)


def test_the_dual_comes_to_the_optimum_of_the_relaxation() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    x, spec = torch.randn(1, 4).double(), torch.randn(1, 2, 3).double()
    net = program(model, torch.zeros(2, 4))
    boxes = crown(net, linf_ball(x, 0.5))
    found = dual(net, boxes, spec).bound[0]
    for row, bound in zip(spec[0], found, strict=True):
        assert -1e-9 <= lp_minimum(net, boxes, row[None], torch.zeros(1))[0] - float(bound) < 1e-3


def test_the_largest_value_between_the_ends_of_a_sigmoid_is_found() -> None:
    """A public code looks for it where the multipliers' quotient is upside down, and proves what is
    false.
    """
    draw = torch.Generator().manual_seed(0)
    z = torch.linspace(0, 1, 2001).double()
    for kind in ("sigmoid", "tanh"):
        h = KNOWN[kind]
        for _ in range(200):
            ends = (6 * torch.randn(2, generator=draw).double()).sort().values
            s = torch.rand(1, generator=draw).double() * (0.3 if kind == "sigmoid" else 1.2)
            values = h.value(ends[0] + (ends[1] - ends[0]) * z) - s * (
                ends[0] + (ends[1] - ends[0]) * z
            )
            least, most = extremes(h, s, ends[:1], ends[1:])
            assert float(least) <= float(values.min()) + 1e-12
            assert float(most) >= float(values.max()) - 1e-12
            assert float(values.min() - least) < 1e-4
            assert float(most - values.max()) < 1e-4


def exactly(model: nn.Sequential, x: list[Fraction]) -> list[Fraction]:
    """What a perceptron gives when nothing is rounded."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = (
                [[Fraction(v) for v in row] for row in layer.weight.tolist()],
                [Fraction(v) for v in layer.bias.tolist()],
            )
            x = [
                sum((w * v for w, v in zip(row, x, strict=True)), b)
                for row, b in zip(weight, bias, strict=True)
            ]
        else:
            x = [max(v, Fraction(0)) for v in x]
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_rounded_moves_bounds_outward(dtype: torch.dtype) -> None:
    """On boxes without width nothing but rounding is between the bounds, and the exact value still
    is.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)
    ).to(dtype)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(3)
    x = torch.randn(4, 6, dtype=dtype)
    net = program(model, x, dtype)
    truth = [exactly(model, [Fraction(v) for v in row]) for row in x.tolist()]
    spec = torch.eye(3, dtype=dtype)[None]
    missed = 0
    for technique in (interval, crown, alpha_crown):
        boxes = technique(net, Box(x, x))
        found = boxes[net.output]
        low = [found.lower] + [
            bound(net, boxes, spec) for bound in (lower_bound, lambda *a: dual(*a, steps=2).bound)
        ]
        for i, row in enumerate(truth):
            for j, value in enumerate(row):
                assert all(Fraction(float(each[i, j])) <= value for each in low)
                assert value <= Fraction(float(found.upper[i, j]))
                assert float(found.width[i, j]) <= (
                    1e-2 if dtype == torch.float32 else 1e-10
                ) * max(1.0, abs(float(value)))
                missed += Fraction(float(net(x)[i, j])) != value
    assert missed  # what is computed plainly is not the truth


class Twice(nn.Module):
    """Reads a value after it was changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(1, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        torch.relu_(y)
        return self.two(y) + y.sum(1, keepdim=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(1, 3), nn.ReLU(inplace=True), nn.Linear(3, 1)),
        Twice,
        lambda: nn.Sequential(nn.Linear(1, 3), nn.LeakyReLU(0.1, inplace=True), nn.Linear(3, 1)),
    ],
)
def test_operations_in_place_are_bounded_as_their_twins(build: Callable[[], nn.Module]) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model, x = build(), torch.linspace(-1, 1, 401).double()[:, None]
        net, box = program(model, torch.zeros(2, 1)), Box(x[:1].clone(), x[-1:].clone())
        y = model.double()(x.clone()).detach()
        for technique in (interval, crown, alpha_crown, forward):
            found = technique(net, box)[net.output]
            assert float(found.lower[0, 0]) <= float(y.min())
            assert float(found.upper[0, 0]) >= float(y.max())
        assert torch.equal(box.lower, x[:1])


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: torch.sub(x[:, :1], x[:, 1:2], alpha=4), "sub"),
        (lambda x: torch.add(x[:, :1], x[:, 1:2], alpha=-1), "add"),
        (lambda x: torch.div(x, 0.3, rounding_mode="floor"), "div"),
        (lambda x: x.int().to(x.dtype), "to"),
        (lambda x: x.flip(0), "mixes the examples"),
        (lambda x: x - x.mean(0, keepdim=True), "mixes the examples"),
        (lambda x: x[:, :2].mul_(2) + x[:, 2:], "in place"),
        (lambda x: nn.functional.instance_norm(x[:, None]), "instance_norm"),
    ],
)
def test_what_only_looks_affine_is_refused(function: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        crown(
            program(Applied(function), torch.randn(3, 4)),
            linf_ball(torch.zeros(1, 4).double(), 0.1),
        )


def test_another_set_is_kept_by_every_technique() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)
    )
    net, found = program(model, torch.zeros(2, 20)), lp_ball(torch.zeros(1, 20).double(), 1.0, 2.0)
    spec = torch.tensor([[[1.0, -1.0]]]).double()
    assert alpha_crown(net, found)[net.input] is not None
    assert type(alpha_crown(net, found)[net.input]) is type(found)
    plain, best = (
        lower_bound(net, technique(net, found), spec) for technique in (crown, alpha_crown)
    )
    assert float(best) >= float(plain) - 1e-9
    units = stability(
        nn.Sequential(nn.Linear(2, 1), nn.ReLU()), lp_ball(torch.zeros(1, 2), 0.5, 1.0), points=50
    )
    assert sum(units.count(sign) for sign in (ACTIVE, INACTIVE, UNSTABLE)) == 1


def test_a_unit_that_only_the_corners_of_its_box_reach_is_no_witness() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-0.6)
    assert str(stability(model, lp_ball(torch.zeros(1, 2), 0.5, 1.0))).startswith(
        "0 active, 1 inactive"
    )


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.half().float(), "'to'.* gives float16 in a network of float32"),
        (lambda x: x.bfloat16().float(), "bfloat16"),
        (lambda x: x.type(torch.float16).type(torch.float32), "float16"),
        (lambda x: x.to(torch.float8_e4m3fn).float(), "float8_e4m3fn"),
        (lambda x: x.sum(1, keepdim=True, dtype=torch.float16).float(), "'sum'.* gives float16"),
        (lambda x: (x.half() * torch.ones(4, dtype=torch.float16)).float(), "float16"),
        (lambda x: x + torch.ones(4).mul(0.1).half().float(), "float16"),  # of a constant too
    ],
)
def test_a_cast_to_a_coarser_type_is_refused(
    function: Callable[[Tensor], Tensor], said: str
) -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), Applied(function), nn.Linear(function(torch.zeros(2, 4)).shape[1], 2)
    )
    with pytest.raises(Unsupported, match=said):
        program(model, torch.zeros(2, 4))
    for use in (mg.compress, mg.regions):
        with pytest.raises(Unsupported, match="float"):
            use(model, Box(torch.zeros(1, 4), torch.ones(1, 4)))


def test_what_a_cast_to_a_coarser_type_makes_of_a_proof() -> None:
    """2,049 is no number in float16: the output is 2,048, which a bound of the identity would
    exclude.
    """
    model = nn.Sequential(nn.Identity(), Applied(lambda x: x.half().float()))
    x = torch.tensor([[2049.0]])
    assert float(model(x)) == 2048.0
    with pytest.raises(Unsupported, match="float16"):
        mg.verify(model, Box(x, x), Unsafe(torch.ones(1, 1), torch.tensor([2048.5])))


def test_casts_that_lose_nothing_stay() -> None:
    torch.manual_seed(0)
    single, half = (
        nn.Sequential(nn.Linear(4, 2), Applied(lambda x: x.double())),
        nn.Linear(4, 2).bfloat16(),
    )
    for model in (
        single,
        single.double(),
        half,
        nn.Sequential(half, Applied(lambda x: x.float().bfloat16())),
    ):
        net, box = program(model, torch.zeros(2, 4)), linf_ball(torch.zeros(1, 4).double(), 0.1)
        assert bool((crown(net, box)[net.output].upper >= net(box.upper)).all())


def test_a_program_holds_the_numbers_of_its_model() -> None:
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(0.1)
    with pytest.raises(ShapeError, match="float32 does not hold the numbers of 'weight'"):
        program(model, torch.zeros(2, 1), torch.float32)
    net = program(model, torch.zeros(2, 1))
    with torch.no_grad():
        model.weight.fill_(0.2)  # later, and elsewhere
        assert float(net(torch.ones(1, 1)) - net(torch.zeros(1, 1))) == pytest.approx(
            0.1, abs=1e-15
        )
    # a box in another precision is no smaller there
    ends = torch.tensor([[0.1]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    found = Box(*ends).as_input(torch.float32)
    assert float(found.lower.double()) <= 0.1
    assert float(found.upper.double()) >= 0.3
    assert float(found.width) < 0.2 + 1e-7
    with pytest.raises(ShapeError, match="LpBall: float32 does not hold"):
        lp_ball(ends[0], 0.05, 2.0).as_input(torch.float32)


def special(name: str) -> Tensor:
    """Numbers around which an activation may be odd, with those right beside them, and where it
    jumps on a fine axis.
    """
    axis = torch.cat(
        [
            torch.linspace(-60, 60, 240_001, dtype=torch.float64),
            torch.logspace(-300, 2, 400, dtype=torch.float64),
        ]
    )
    axis = torch.cat([axis, -axis]).sort().values
    h = KNOWN[name].value(axis)
    # a fall where there is none on either side, or a step out of all proportion
    steps = h.diff() - 1.5 * axis.diff() * KNOWN[name].slope(axis[:-1]).abs().clamp_min(1)
    falls = h.diff() < 0 if KNOWN[name].monotone else torch.zeros_like(steps, dtype=torch.bool)
    found = torch.cat(
        [
            torch.tensor([-40.0, -20.0, -1.0, 0.0, 1.0, 20.0, 40.0]).double(),
            axis[1:][(steps > 0) | falls][:50],
        ]
    )
    both = [found.nextafter(torch.full_like(found, end)) for end in (-torch.inf, torch.inf)]
    return torch.cat([found, *both]).unique()


@pytest.mark.parametrize("name", KNOWN)
def test_lines_hold_for_what_torch_computes_beside_every_odd_number(name: str) -> None:
    """Softplus falls by 2e-9 behind 20, where torch takes z itself."""
    h, odd = KNOWN[name], special(name)
    for reach in (0.0, 1e-12, 1e-6, 0.5, 30.0):
        box = Box((odd - reach)[None], (odd + 0.7 * reach)[None])
        share = torch.linspace(0, 1, 41).double()[:, None]
        z = torch.cat([box.lower + box.width * share, odd[:, None].expand(-1, len(odd))]).clamp(
            box.lower, box.upper
        )
        if name == "exp":
            z, box = z.clamp_max(50), Box(box.lower.clamp_max(50), box.upper.clamp_max(50))
        value, found = h.value(z)[:, None, None], linear_relaxation(h, box)
        z = z[:, None, None]
        size = 1e-14 * (
            1 + value.abs() + (found.lower_slope * z).abs() + (found.upper_slope * z).abs()
        )
        assert bool((found.lower_slope * z + found.lower_bias <= value + size).all())
        assert bool((found.upper_slope * z + found.upper_bias >= value - size).all())
        least, most = extremes(h, torch.zeros_like(odd), box.lower[0], box.upper[0])
        flat, room = value[:, 0, 0], 1e-14 * (1 + value[:, 0, 0].abs())
        assert bool(((flat >= least - room) & (flat <= most + room)).all())


@pytest.mark.parametrize("technique", [interval, crown, forward, alpha_crown])
def test_softplus_falls_behind_twenty(technique: Callable[..., dict[str, Box]]) -> None:
    net = program(nn.Sequential(nn.Softplus()), torch.zeros(2, 1))
    for low, high in (
        (19.9, 20.1),
        (20.0, 20.0 + 1e-10),
        (20.0 - 1e-9, 20.0 + 1e-12),
        (0.0, 100.0),
    ):
        box = Box(
            torch.tensor([[low]], dtype=torch.float64), torch.tensor([[high]], dtype=torch.float64)
        )
        x = torch.cat(
            [
                torch.linspace(low, high, 2001, dtype=torch.float64),
                torch.tensor([20.0, 20.0 + 4e-15], dtype=torch.float64).clamp(low, high),
            ]
        )
        found, y = technique(net, box)[net.output], net(x[:, None])
        assert float(found.lower) <= float(y.min())
        assert float(found.upper) >= float(y.max())


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10])
def test_a_bound_is_as_good_for_networks_of_any_size(size: float) -> None:
    """What is left between a bound and 0 is rounding, which grows and shrinks with the network."""
    for inputs in (2, 20):  # boxes, then signs
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
        ).double()
        box, row = (
            Box(-torch.ones(1, inputs).double(), torch.ones(1, inputs).double()),
            torch.tensor([[1.0, -1.0]]).double(),
        )
        least = -1e9
        for _ in range(3):
            plain = mg.verify(model, box, Unsafe(row, torch.tensor([least]).double()), 20)
            least += plain.bound  # some number that is nearly the least one
        with torch.no_grad():
            points = box.lower + box.width * torch.rand(2000, inputs, dtype=torch.float64)
            near = float((model(points) @ row.T).min())
            model[4].weight.mul_(size)
            model[4].bias.mul_(size)
        for limit, status in ((near - 4.0, "unsat"), (near, "sat")):
            found = mg.verify(
                model, box, Unsafe(row, torch.tensor([limit * size], dtype=torch.float64)), 20
            )
            assert found.status == status


def test_what_is_above_zero_by_less_than_rounding_is_not_proved() -> None:
    """The least output is 0: the sets y <= -tiny are not reached, and rounding cannot tell; y <= 0
    is.
    """
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.rand(4, 3))
        model[0].bias.fill_(-3.0)
        model[2].weight.fill_(1.0)
        model[2].bias.zero_()
    box = Box(torch.zeros(1, 3).double(), torch.ones(1, 3).double())
    for limit, status in ((0.0, "sat"), (-1e-300, "unsat"), (-1e-9, "unsat")):
        assert (
            mg.verify(
                model, box, Unsafe(torch.ones(1, 1), torch.tensor([limit], dtype=torch.float64)), 10
            ).status
            == status
        )


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_linear_programs_do_not_depend_on_the_size_of_numbers(size: float) -> None:
    """HiGHS takes 1e-7 for 0, whatever the numbers are."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 1)
    ).double()
    box, row = Box(-torch.ones(1, 3).double(), torch.ones(1, 3).double()), torch.ones(1, 1).double()
    net = program(model, torch.zeros(2, 3))
    truth, _ = lp_minimum(net, crown(net, box), row, torch.zeros(1).double(), True)
    with torch.no_grad():
        model[0].weight.mul_(size)
        model[0].bias.mul_(size)
        model[2].bias.mul_(size)
        model[4].bias.mul_(size)
    net = program(model, torch.zeros(2, 3))
    relaxed, _ = lp_minimum(net, crown(net, box), row, torch.zeros(1).double())
    whole, where = lp_minimum(net, crown(net, box), row, torch.zeros(1).double(), True)
    assert relaxed <= whole
    assert whole == pytest.approx(truth * size, rel=1e-7)
    assert float(net(where)) >= whole
