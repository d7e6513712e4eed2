"""The cells of a network, found by going through their facets: for any number of inputs, a few
linear programs a cell.

Source: reverse search, Avis and Fukuda 1996, without its order: a set of the patterns that were
seen takes its place.
"""

import time
from collections import deque

import numpy as np
import torch
from torch import Tensor

from morphogen.linear_regions.piecewise import Piecewise, normed
from morphogen.linear_regions.polytope import Polytope

# a cell without a ball of this radius is none, and a row this near to 0 is; the box has a radius of
# 1
_THIN = 1e-9
_RAYS = 4  # rays a row, which show most facets without a linear program
# how far behind a facet it is looked at, too: there may be a cell behind one that is too thin
_BEHIND = (1e-7, 1e-5)
_POINTS = 10_000  # where it is looked, at last, for cells that no facet led to

CellTables = tuple[Tensor, Tensor, Tensor, tuple[int, ...], Tensor, tuple[int, ...], bool]


def reverse_search(net: Piecewise, max_cells: int, until: float) -> CellTables:
    """The fields of `regions.Regions` after its network. max_cells: cells, at most; until: by the
    clock.
    """
    draw = np.random.default_rng(0)
    centre = net.box.centre.numpy()[0]
    radius = net.box.radius.numpy()[0]
    ends = -np.ones(net.inputs), np.ones(net.inputs)
    inside: dict[bytes, np.ndarray] = {}
    borders: list[list[int]] = []
    waiting: deque[np.ndarray] = deque()
    seen: set[bytes] = set()

    def wait(patterns: np.ndarray) -> None:
        for pattern in patterns:
            if pattern.tobytes() not in seen:
                seen.add(pattern.tobytes())
                waiting.append(pattern)

    def patterns_at(points: np.ndarray) -> np.ndarray:
        return net.pattern(torch.from_numpy(centre + radius * points)).numpy()

    complete = True
    looked = False
    wait(patterns_at(draw.uniform(-0.5, 0.5, (1, net.inputs))))
    while waiting or not looked:
        if not waiting:
            looked = True
            wait(patterns_at(draw.uniform(-1, 1, (_POINTS, net.inputs))))
            continue
        if len(inside) >= max_cells or (inside and time.perf_counter() > until):
            complete = False
            break
        pattern = waiting.popleft()
        rows, units = halfspaces(net, pattern, centre, radius)
        cell = Polytope(rows, *ends)
        middle, room = cell.ball()
        if room <= _THIN:
            continue
        inside[pattern.tobytes()] = centre + radius * middle
        own: list[int] = []
        for row, place in _facets(cell, rows, middle, draw, until):
            own.append(int(units[row][0]))
            wait(
                _neighbour_pattern(
                    net, pattern, int(units[row][0]), place, rows[row, :-1] * -1, centre, radius
                )[None]
            )
            behind = place - np.array(_BEHIND)[:, None] * rows[row, :-1]
            wait(patterns_at(behind[(np.abs(behind) <= 1).all(1)]))
        borders.append(own)
    patterns = np.array([np.frombuffer(key, bool) for key in inside], bool).reshape(
        len(inside), net.units
    )
    points = np.array(list(inside.values())).reshape(len(inside), net.inputs)
    flat = torch.tensor([unit for own in borders for unit in own], dtype=torch.long)
    none = torch.zeros(0, net.inputs, dtype=torch.float64)
    sizes = tuple(len(own) for own in borders)
    return torch.from_numpy(patterns), torch.from_numpy(points), none, (), flat, sizes, complete


def halfspaces(
    net: Piecewise, pattern: np.ndarray, centre: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(rows of length 1 that are above 0 inside, of inputs from -1 to 1; whose each is, several
    where they are one). Units that are constant are left out, as are those that have one sign on
    the whole box.
    """
    z = net.affine(torch.from_numpy(pattern)[None])[0][0]
    z = torch.cat(
        [
            z[:, :-1] * torch.from_numpy(radius),
            z[:, -1:] + z[:, :-1] @ torch.from_numpy(centre)[:, None],
        ],
        1,
    )
    z = z * torch.where(torch.from_numpy(pattern), 1.0, -1.0).double()[:, None]
    steepest = net.steepest(torch.from_numpy(pattern)[None], torch.from_numpy(radius))[0]
    rows = normed(z, z[:, :-1].norm(dim=1), steepest).numpy()
    reaches = rows[:, -1] < np.abs(rows[:, :-1]).sum(1)  # others are above 0 on the whole box
    places = ((rows[:, :-1] != 0).any(1) & reaches).nonzero()[0]
    rows = rows[places]
    groups = []
    taken = np.zeros(len(places), bool)
    for row in range(len(rows)):
        if not taken[row]:
            one = (np.abs(rows - rows[row]).max(1) <= _THIN) & ~taken
            taken |= one
            groups.append(one.nonzero()[0])
    first = np.array([group[0] for group in groups], int)
    return rows[first], [places[group] for group in groups]


def _facets(
    cell: Polytope, rows: np.ndarray, middle: np.ndarray, draw: np.random.Generator, until: float
) -> list[tuple[int, np.ndarray]]:
    """(row, a point on it that lies above all other rows) for each facet. Those that a ray from the
    middle meets first are facets; linear programs tell of the others, while there is time.
    """
    facets: dict[int, np.ndarray] = {}
    values = rows[:, :-1] @ middle + rows[:, -1]
    rays = np.concatenate([-rows[:, :-1], draw.normal(size=(_RAYS * len(rows), cell.inputs))])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    along = rays @ rows[:, :-1].T
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(along < 0, -values / along, np.inf)
        edge = np.where(
            rays > 0, (1 - middle) / rays, np.where(rays < 0, (-1 - middle) / rays, np.inf)
        ).min(1)
    for ray, distances, far in zip(rays, reach, edge, strict=True):
        if not len(distances):
            break
        row = int(distances.argmin())
        nearest = distances[row]
        distances[row] = np.inf
        if row not in facets and nearest + _THIN < min(far, distances.min(initial=np.inf)):
            facets[row] = middle + nearest * ray
    for row in range(len(rows)):
        if row not in facets and time.perf_counter() < until:
            least, place = cell.beyond(row, 1.0)
            if place is not None and least < -_THIN:
                facets[row] = middle + values[row] / (values[row] - least) * (place - middle)
    return sorted(facets.items())


def _neighbour_pattern(
    net: Piecewise,
    pattern: np.ndarray,
    unit: int,
    place: np.ndarray,
    outward: np.ndarray,
    centre: np.ndarray,
    radius: np.ndarray,
) -> np.ndarray:
    """The pattern behind a facet. Units that are not 0 on it keep their signs; those that are have
    the sign of their slope there, in which the layers before have a part.
    """
    before, _ = net.run(torch.from_numpy(centre + radius * place)[None])
    steepest = net.of_layers(
        net.steepest(torch.from_numpy(pattern)[None], torch.from_numpy(radius))[0]
    )
    there = torch.from_numpy(pattern.copy())
    at = 0
    for layer, z, most in zip(net.layers, before, steepest, strict=True):
        on = (z[0].abs() <= _THIN * most).nonzero()[:, 0] + at
        if len(on) == 1 and int(on) == unit:
            there[unit] ^= True
        elif len(on):
            rows = net.affine(there[None])[0][0][on, :-1] * torch.from_numpy(radius)
            rise = rows @ torch.from_numpy(outward)
            there[on] = rise > 1e-12 * most[on - at]
        at += layer.units
    return there.numpy()
