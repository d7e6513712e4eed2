"""Linear regions: two methods that share nothing find the same cells, which fill the box and obey
Euler's formula.
"""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull, cKDTree
from torch import Tensor, nn

from morphogen import ShapeError, Unsupported
from morphogen.bounds.box import Box
from morphogen.linear_regions.regions import Regions, regions
from piecewise_nets import BUILD, cube, drawn, plain


def faces(found: Regions) -> list[int]:
    """How many faces of each dimension all cells have together, the corners first, in general
    position: those of one cell are the sets of its corners that lie on the same facets.
    """
    corners, d = found.corners.numpy(), found.net.inputs
    ids = np.arange(len(corners))
    for one, other in sorted(cKDTree(corners).query_pairs(1e-7)):
        ids[other] = min(ids[other], ids[one])
    z, _ = found.net.affine(found.patterns)
    ends = torch.cat([found.net.box.lower, -found.net.box.upper]).numpy()
    seen: list[set[frozenset[int]]] = [set() for _ in range(d)]
    at = 0
    for cell, (size, facets) in enumerate(
        zip(found.sizes, torch.split(found.borders, list(found.facets)), strict=True)
    ):
        own = corners[at : at + size]
        rows = z[cell, facets].numpy()
        rows = rows / np.linalg.norm(rows[:, :-1], axis=1, keepdims=True)
        on = np.abs(own @ rows[:, :-1].T + rows[:, -1]) < 1e-7
        sides = np.abs(np.concatenate([own - ends[0], own + ends[1]], 1)) < 1e-7
        on = np.concatenate([on, sides], 1)
        assert (on.sum(1) == d).all(), "not in general position"
        for k in range(d):
            for corner in range(size):
                for some in combinations(on[corner].nonzero()[0], d - k):
                    seen[k].add(frozenset(ids[at : at + size][on[:, some].all(1)].tolist()))
        at += size
    return [*(len(kind) for kind in seen), len(found)]


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("seed", range(3))
def test_cells_are_those_of_the_walk_and_fill_the_box(name: str, seed: int) -> None:
    model, box = drawn(name, seed)
    found, searched = regions(model, box), regions(model, box, method="reverse search")
    assert found.complete
    assert searched.complete
    assert {tuple(row) for row in found.patterns.tolist()} == {
        tuple(row) for row in searched.patterns.tolist()
    }
    assert len(found) == len(found.patterns.unique(dim=0))
    assert (found.n_pieces, found.n_connected) == (searched.n_pieces, searched.n_connected)
    volume = sum(ConvexHull(part.numpy()).volume for part in found.corners.split(list(found.sizes)))
    assert volume == pytest.approx(float(box.width.prod()), rel=1e-9)
    x = box.lower + box.width * torch.rand(2000, *box.lower.shape[1:], dtype=torch.float64)
    assert {tuple(row) for row in found.net.pattern(x).tolist()} <= {
        tuple(row) for row in found.patterns.tolist()
    }
    assert torch.equal(found.net.pattern(found.inside), found.patterns)
    ahead = torch.cat([found.inside, torch.ones(len(found), 1)], 1)
    torch.testing.assert_close(
        (found.functions @ ahead[..., None])[..., 0], model(found.inside), rtol=0, atol=1e-12
    )
    counts = faces(found)
    assert sum(count * (-1) ** k for k, count in enumerate(counts)) == 1
    assert len(found.neighbours) == counts[-2] - sum(1 for _ in boundary(found))


def boundary(found: Regions) -> list[frozenset[int]]:
    """The facets of cells that lie on the box's sides."""
    ends = torch.cat([found.net.box.lower, found.net.box.upper]).T.flatten()
    kept = []
    for cell, corners in enumerate(found.corners.split(list(found.sizes))):
        on = (corners.repeat_interleave(2, 1) - ends).abs() < 1e-7
        kept += [
            frozenset([cell, side])
            for side in range(on.shape[1])
            if int(on[:, side].sum()) >= found.net.inputs
        ]
    return kept


def test_euler_fails_without_a_cell() -> None:
    found = regions(*drawn("plain", 0))
    # no side of the box is its
    inner = next(cell for cell in range(len(found)) if found.sizes[cell] == found.facets[cell])
    kept = [cell for cell in range(len(found)) if cell != inner]
    corners, borders = (
        found.corners.split(list(found.sizes)),
        found.borders.split(list(found.facets)),
    )
    less = Regions(
        found.net,
        found.patterns[kept],
        found.inside[kept],
        torch.cat([corners[cell] for cell in kept]),
        tuple(found.sizes[cell] for cell in kept),
        torch.cat([borders[cell] for cell in kept]),
        tuple(found.facets[cell] for cell in kept),
        True,
    )
    assert sum(count * (-1) ** k for k, count in enumerate(faces(less))) == 0


def bumps(weights: list[float], places: list[float]) -> nn.Sequential:
    net = (
        nn.Sequential(nn.Linear(1, len(weights)), nn.ReLU(), nn.Linear(len(weights), 1))
        .double()
        .requires_grad_(False)
    )
    net[0].weight[:] = 1.0
    net[0].bias[:] = -torch.tensor(places)
    net[2].weight[:] = torch.tensor(weights)
    net[2].bias[:] = 0.0
    return net


def test_three_definitions_of_a_region_differ() -> None:
    # 0, then up, then down, then 0 again: two regions of one function
    found = regions(bumps([1.0, -2.0, 1.0], [0.0, 1.0, 2.0]), cube(1))
    assert (len(found), found.n_pieces, found.n_connected) == (4, 3, 4)
    assert str(found) == "4 activation patterns, 3 affine functions, 4 connected regions"
    # the second and the third bend cancel: what was cut is one region
    found = regions(bumps([1.0, -1.0, 1.0], [0.0, 1.0, 1.0]), cube(1))
    assert (len(found), found.n_pieces, found.n_connected) == (3, 2, 2)


def test_units_that_are_nowhere_above_zero_cut_nothing() -> None:
    model, box = drawn("plain", 0)
    model[0].bias[0] = -100.0
    model[0].weight[1], model[0].bias[1] = 0.0, 0.0  # on the border everywhere
    found = regions(model, box)
    assert not found.patterns[:, :2].any()
    assert len(found) == len(regions(model, box, method="reverse search"))


def test_fixed_inputs_and_planes_are_slices() -> None:
    torch.manual_seed(0)
    model = plain(5, (6, 5), 2).double().requires_grad_(False)
    middle = torch.randn(5, dtype=torch.float64)
    lower, upper = middle.clone(), middle.clone()
    lower[[1, 3]] -= 2
    upper[[1, 3]] += 2
    fixed = regions(model, Box(lower[None], upper[None]))
    directions = torch.eye(5, dtype=torch.float64)[[1, 3]]
    plane = regions(model, cube(2, 2.0), along=(middle, directions))
    assert len(fixed) == len(plane) > 3
    assert {tuple(p) for p in fixed.patterns.tolist()} == {
        tuple(p) for p in plane.patterns.tolist()
    }
    x = fixed.net.given(fixed.inside)
    torch.testing.assert_close(model(x), fixed.net(fixed.inside), rtol=0, atol=1e-12)
    picture = fixed.picture()
    assert len(picture.polygons) == len(fixed)
    with pytest.raises(ShapeError, match="3 dimensions"):
        regions(
            model,
            Box(
                torch.cat([lower[:4], torch.zeros(1)])[None],
                torch.cat([upper[:4], torch.ones(1)])[None],
            ),
        ).picture()


def test_a_stopped_search_says_so() -> None:
    model, box = drawn("deep", 0)
    for method in ("corners", "reverse search"):
        found = regions(model, box, max_cells=5, method=method)
        assert (len(found), found.complete) == (5, False)
        assert str(found).startswith("at least 5 activation patterns")
        assert torch.equal(found.net.pattern(found.inside), found.patterns)
    assert not regions(model, box, seconds=0.0, method="reverse search").complete


def test_convolutions_and_poolings_are_cut_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.MaxPool2d(2, padding=1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    model.double().eval().requires_grad_(False)
    origin = torch.randn(1, 3, 3, dtype=torch.float64)
    directions = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    found, searched = (
        regions(model, cube(2), along=(origin, directions), method=how)
        for how in ("corners", "reverse search")
    )
    assert len(found) == len(searched) > 5
    assert found.n_pieces == searched.n_pieces <= len(found)
    x = found.net.examples(found.inside)
    torch.testing.assert_close(model(x), found.net(found.inside), rtol=0, atol=1e-12)


class Smooth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


def test_what_is_not_piecewise_linear_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"'tanh'.*piecewise linear"):
        regions(Smooth(), cube(2))
    with pytest.raises(ShapeError, match="box is missing"):
        regions(Smooth())
    with pytest.raises(ShapeError, match="'fast'"):
        regions(nn.Linear(2, 1), cube(2), method="fast")
    assert len(regions(nn.Linear(2, 1), cube(2))) == 1


def layer(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    made = nn.Linear(len(rows[0]), len(rows)).double().requires_grad_(False)
    made.weight[:] = torch.tensor(rows)
    made.bias[:] = 0.0 if bias is None else torch.tensor(bias)
    return made


@pytest.mark.parametrize(
    ("first", "second", "cells"),
    [
        # two units of one hyperplane
        ([[1.0] + [0] * 6, [2.0] + [0] * 6, [0, 1.0] + [0] * 5], None, 4),
        ([[1.0] + [0] * 6], [[1.0]], 2),  # a unit that is 0 on all of one cell
        ([[1.0] + [0] * 6, [0, 1.0] + [0] * 5, [1.0, 1.0] + [0] * 5], None, 6),
    ],
)
def test_the_walk_goes_through_facets_of_several_units(
    first: list, second: list | None, cells: int
) -> None:
    between = [] if second is None else [layer(second), nn.ReLU()]
    width = len(first) if second is None else len(second)
    model = nn.Sequential(layer(first), nn.ReLU(), *between, layer([[1.0] * width]))
    assert len(regions(model, cube(7))) == cells
    narrow = nn.Sequential(
        layer([row[:2] for row in first]), nn.ReLU(), *between, layer([[1.0] * width])
    )
    assert (
        len(regions(narrow, cube(2)))
        == len(regions(narrow, cube(2), method="reverse search"))
        == cells
    )


@pytest.mark.parametrize("seed", range(12))
def test_corners_and_walk_agree_where_hyperplanes_meet(seed: int) -> None:
    torch.manual_seed(seed)
    inputs = 1 + seed % 4
    model = plain(inputs, (4, 3), 2).double().requires_grad_(False)
    for part in model:
        if isinstance(part, nn.Linear):
            part.weight[:] = torch.randint(-2, 3, part.weight.shape)
            part.bias[:] = torch.randint(-1, 2, part.bias.shape) if seed % 3 else 0.0
    found, searched = (
        regions(model, cube(inputs), method=how) for how in ("corners", "reverse search")
    )
    assert {tuple(row) for row in found.patterns.tolist()} == {
        tuple(row) for row in searched.patterns.tolist()
    }
    if inputs > 1:
        volume = sum(
            ConvexHull(part.numpy()).volume for part in found.corners.split(list(found.sizes))
        )
        assert volume == pytest.approx(6.0**inputs, rel=1e-9)


@pytest.mark.parametrize("method", ["corners", "reverse search"])
def test_weights_of_very_different_size_cut_alike(method: str) -> None:
    for first, bias, last in (
        ([[1e8, 0], [0, 1e-8]], None, [[1e-8, 1e8]]),
        ([[1e-9, 0], [0, 1e-9], [0, 0]], [0.0, 0.0, 1e4], [[1e9, 1e9, 1.0]]),
    ):
        assert (
            len(
                regions(
                    nn.Sequential(layer(first, bias), nn.ReLU(), layer(last)),
                    cube(2),
                    method=method,
                )
            )
            == 4
        )


def test_a_face_of_fewer_dimensions_is_no_facet() -> None:
    model = nn.Sequential(
        layer([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 1.0, 0, 0]]), nn.ReLU(), layer([[1.0, 1, 1]])
    )
    assert regions(model, cube(4)).facets == (2,) * 6


def test_a_stopped_walk_has_a_cell() -> None:
    assert regions(plain(7, (3,), 1).double(), cube(7), seconds=0).n_connected == 1


@pytest.mark.parametrize("method", ["corners", "reverse search"])
def test_deep_networks_lose_no_cells_to_rounding(method: str) -> None:
    torch.manual_seed(2)
    model = plain(1, (8,) * 30, 1).double().requires_grad_(False)
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=(2 / part.in_features) ** 0.5)
            nn.init.normal_(part.bias, std=0.1)
    found = regions(model, cube(1), method=method)
    x = torch.linspace(-3, 3, 20_001, dtype=torch.float64)[:, None]
    assert {tuple(row) for row in found.net.pattern(x).tolist()} <= {
        tuple(row) for row in found.patterns.tolist()
    }
    ahead = torch.cat([found.inside, torch.ones(len(found), 1)], 1)
    torch.testing.assert_close(
        (found.functions @ ahead[..., None])[..., 0], model(found.inside), rtol=1e-9, atol=1e-9
    )
