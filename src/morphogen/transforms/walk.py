"""The cells of a network, found by going through their facets: for any number of inputs, a few linear programs a cell.

Source: reverse search, Avis and Fukuda 1996, without its order: a set of the patterns that were seen takes its place.
"""

import time
from collections import deque

import numpy as np
import torch
from torch import Tensor

from morphogen.transforms.piecewise import Piecewise
from morphogen.transforms.polytope import Polytope

_THIN = 1e-9  # a cell without a ball of this radius is none, and a row this near to 0 is; the box has a radius of 1
_RAYS = 4  # rays a row, which show most facets without a linear program

Found = tuple[Tensor, Tensor, Tensor, tuple[int, ...], Tensor, tuple[int, ...], bool]


def walk(net: Piecewise, budget: int, until: float) -> Found:
    """The fields of `regions.Regions` after its network. budget: cells, at most; until: by the clock."""
    draw = np.random.default_rng(0)
    centre, radius = net.box.centre.numpy()[0], net.box.radius.numpy()[0]
    ends = -np.ones(net.inputs), np.ones(net.inputs)
    inside: dict[bytes, np.ndarray] = {}
    borders: list[list[int]] = []
    first = net.pattern(torch.from_numpy(centre + radius * draw.uniform(-0.5, 0.5, net.inputs))[None])[0].numpy()
    waiting = deque([first])
    seen = {first.tobytes()}
    complete = True
    while waiting:
        if len(inside) >= budget or time.perf_counter() > until:
            complete = False
            break
        pattern = waiting.popleft()
        rows, units = sides(net, pattern, centre, radius)
        cell = Polytope(rows, *ends)
        middle, room = cell.ball()
        if room <= _THIN:
            continue
        inside[pattern.tobytes()] = centre + radius * middle
        own: list[int] = []
        for row, place in _facets(cell, rows, middle, draw):
            own.append(int(units[row]))
            there = _across(net, pattern, units, rows, row, place, centre, radius)
            if there.tobytes() not in seen:
                seen.add(there.tobytes())
                waiting.append(there)
        borders.append(own)
    patterns = np.array([np.frombuffer(key, bool) for key in inside]).reshape(len(inside), net.units)
    points = np.array(list(inside.values())).reshape(len(inside), net.inputs)
    flat = torch.tensor([unit for own in borders for unit in own], dtype=torch.long)
    none = torch.zeros(0, net.inputs, dtype=torch.float64)
    sizes = tuple(len(own) for own in borders)
    return torch.from_numpy(patterns), torch.from_numpy(points), none, (), flat, sizes, complete


def sides(net: Piecewise, pattern: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows of length 1 that are above 0 inside, of inputs from -1 to 1; whose they are). Units that are constant are left
    out."""
    z = net.affine(torch.from_numpy(pattern)[None])[0][0].numpy()
    z = np.concatenate([z[:, :-1] * radius, z[:, -1:] + z[:, :-1] @ centre[:, None]], 1)
    z *= np.where(pattern, 1.0, -1.0)[:, None]
    length = np.linalg.norm(z[:, :-1], axis=1)
    bends = length > 1e-12 * max(1e-300, np.abs(z).max(initial=0.0))
    return z[bends] / length[bends, None], bends.nonzero()[0]


def _facets(cell: Polytope, rows: np.ndarray, middle: np.ndarray, draw: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """(row, a point on it that lies above all other rows) for each facet. Those that a ray from the middle meets first are
    facets; linear programs tell of the others."""
    found: dict[int, np.ndarray] = {}
    values = rows[:, :-1] @ middle + rows[:, -1]
    rays = np.concatenate([-rows[:, :-1], draw.normal(size=(_RAYS * len(rows), cell.inputs))])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    along = rays @ rows[:, :-1].T
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(along < 0, -values / along, np.inf)
        edge = np.where(rays > 0, (1 - middle) / rays, np.where(rays < 0, (-1 - middle) / rays, np.inf)).min(1)
    for ray, distances, far in zip(rays, reach, edge, strict=True):
        if not len(distances):
            break
        row = int(distances.argmin())
        nearest = distances[row]
        distances[row] = np.inf
        if row not in found and nearest + _THIN < min(far, distances.min(initial=np.inf)):
            found[row] = middle + nearest * ray
    alike = rows @ rows.T if len(rows) else rows
    for row in range(len(rows)):
        if row in found:
            continue
        least, place = cell.beyond(row, 1.0)
        if place is not None and least < -_THIN:
            share = values[row] / (values[row] - least)
            point = middle + share * (place - middle)
            others = rows[:, :-1] @ point + rows[:, -1]
            if others.min() > -_THIN or bool((alike[row, others < -_THIN] > 1 - _THIN).all()):
                found[row] = point
    return sorted(found.items())


def _across(
    net: Piecewise, pattern: np.ndarray, units: np.ndarray, rows: np.ndarray, row: int, place: np.ndarray, centre: np.ndarray,
    radius: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The pattern behind a facet: the unit changes its sign, and those that are 0 there, too, as a point behind it tells."""
    there = pattern.copy()
    there[units[row]] ^= True
    on = units[np.abs(rows[:, :-1] @ place + rows[:, -1]) <= _THIN]
    if len(on) > 1:
        behind = place - 1e-6 * rows[row, :-1]
        told = net.pattern(torch.from_numpy(centre + radius * behind)[None])[0].numpy()
        there[on] = told[on]
    return there
