"""Any rectifier network as a difference of two maxima of networks with one hidden layer, all of
which share it: `difference`.

Every unit is max P - max Q, P and Q lists of functions of the first hidden layer. A sum of such
units is one of sums of their lists, and relu(p - q) = max(p, q) - q:

    H = b + sums of W+ P and W- Q,   G = sums of W+ Q and W- P,   P' = H or slope H + (1 - slope) G,
    Q' = G.

The lists grow doubly exponentially with depth; their formal length is known before anything is
built, and above a limit nothing is. Functions that are nowhere the largest leave after every sum.

Source: the claim of An et al. 2017 (arXiv 1703.10355), as tropical rational maps, Zhang et al. 2018
(arXiv 1805.07091). Differs: inputs and the first layer are functions by themselves, with no list of
zeros beside them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.linear_regions.piecewise import HiddenLayer, Piecewise
from morphogen.linear_regions.polytope import Polytope
from morphogen.linear_regions.regions import Regions
from morphogen.transforms.shallow.form import Form, base, distinct, refused
from morphogen.transforms.shallow.two_layers import difference_of_maxima

Lists = tuple[Tensor, Tensor]
"""P and Q of one unit, (terms, base + 1)."""


@dataclass(frozen=True)
class Difference(Form):
    """rows: by output, both lists. formal: the logarithm of how many terms there would be unpruned.
    whole: whether no function left that might be the largest outside the box.
    """

    rows: tuple[Lists, ...]
    formal: float
    whole: bool

    @property
    def n_terms(self) -> int:
        return max(len(p) + len(q) for p, q in self.rows)

    @property
    def n_units(self) -> int:
        return self.net.layers[0].units if self.net.layers else 0

    @property
    def log2_formal(self) -> float:
        return self.formal

    def _value(self, x: Tensor) -> Tensor:
        ahead = base(self.net, x)
        return torch.stack([(ahead @ p.T).amax(1) - (ahead @ q.T).amax(1) for p, q in self.rows], 1)

    def _lower(self, x: Tensor) -> Tensor:
        return self._where_known(x, -torch.inf)

    def _upper(self, x: Tensor) -> Tensor:
        return self._where_known(x, torch.inf)

    def _where_known(self, x: Tensor, beyond: float) -> Tensor:
        """What was pruned on the box says nothing outside."""
        inside = ((x >= self.net.box.lower) & (x <= self.net.box.upper)).all(1, keepdim=True)
        return torch.where(inside | self.whole, self._value(x), beyond)

    def prune(self) -> "Difference":
        room = _Room(self.net)
        rows = tuple((room.needed(p), room.needed(q)) for p, q in self.rows)
        return Difference(self.net, rows, self.formal, False)

    def to_torch(self) -> nn.Sequential:
        return difference_of_maxima(self.net, self.rows)


def difference(net: Piecewise, cells: Regions, limit: float, prune: bool = True) -> Difference:
    """prune: leave out what the box does not need, after every sum. Raises `Unsupported` above
    2^limit formal terms.
    """
    formal = formal_terms(net)
    refused("difference", formal, limit)
    room = _Room(net) if prune else None
    first = net.layers[0].units if net.layers else 0
    eye = torch.eye(net.inputs + first, net.inputs + first + 1, dtype=torch.float64)
    known: dict[int, list[Lists] | Tensor] = {0: eye[: net.inputs], 1: eye[net.inputs :]}
    for at, layer in enumerate(net.layers[1:], 2):
        sums = _sums(layer, known, eye.shape[1], room)
        known[at] = [_rectified(layer.slope, high, low, room) for high, low in sums]
    return Difference(net, tuple(_sums(net.output, known, eye.shape[1], room)), formal, not prune)


def _rectified(slope: float, high: Tensor, low: Tensor, room: "_Room | None") -> Lists:
    """P' = H or slope H + (1 - slope) G,   Q' = G."""
    other = _added(slope * high, (1 - slope) * low, room) if slope else low
    return _kept(torch.cat([high, other]), room), low


def formal_terms(net: Piecewise) -> float:
    """log2 of the terms of the larger output, P and Q together, without any pruning."""
    sizes: dict[int, Tensor] = {}  # of P and Q of each unit, (2, units)
    for at, layer in enumerate(net.layers[1:], 2):
        high, low = _formal(layer, sizes)
        other = low if not layer.slope else high + low
        sizes[at] = torch.stack([torch.logaddexp2(high, other), low])
    high, low = _formal(net.output, sizes)
    return float(torch.logaddexp2(high, low).max())


def _formal(layer: HiddenLayer, sizes: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    high = torch.zeros(layer.units, dtype=torch.float64)
    low = torch.zeros(layer.units, dtype=torch.float64)
    for source, weight in layer.weights.items():
        if source in sizes:
            p, q = sizes[source]
            up = (weight > 0).double()
            down = (weight < 0).double()
            high += up @ p + down @ q
            low += up @ q + down @ p
    return high, low


def _sums(
    layer: HiddenLayer, known: dict[int, list[Lists] | Tensor], columns: int, room: "_Room | None"
) -> list[Lists]:
    """H and G of every unit."""
    return [_sum(layer, unit, known, columns, room) for unit in range(layer.units)]


def _sum(
    layer: HiddenLayer,
    unit: int,
    known: dict[int, list[Lists] | Tensor],
    columns: int,
    room: "_Room | None",
) -> Lists:
    # H = b + sums of W+ P and W- Q,   G = sums of W+ Q and W- P
    high = torch.zeros(1, columns, dtype=torch.float64)
    low = high.clone()
    high[0, -1] = layer.bias[unit]
    for source, weights in layer.weights.items():
        values = known[source]
        if isinstance(values, Tensor):  # functions by themselves
            high = high + weights[unit] @ values
            continue
        for weight, (p, q) in zip(weights[unit].tolist(), values, strict=True):
            if weight:
                up, down = (p, q) if weight > 0 else (q, p)
                high = _added(high, abs(weight) * up, room)
                low = _added(low, abs(weight) * down, room)
    return high, low


def _added(one: Tensor, other: Tensor, room: "_Room | None") -> Tensor:
    """Every sum of two functions."""
    sums = (one[:, None] + other).flatten(0, 1)
    return sums if len(one) == 1 or len(other) == 1 else _kept(sums, room)


def _kept(rows: Tensor, room: "_Room | None") -> Tensor:
    return rows if room is None else room.needed(rows)


class _Room:
    """Where the base can be while the input is in the box: within the convex hull of each ReLU of
    the first layer.
    """

    def __init__(self, net: Piecewise, points: int = 2000) -> None:
        box = net.box
        draw = torch.Generator().manual_seed(0)
        x = box.points(points, 0, draw)
        corners = box.points(points, points, draw)
        self.seen = base(net, torch.cat([x, corners]))
        lower = box.lower[0]
        upper = box.upper[0]
        self.rows = torch.zeros(0, self.seen.shape[1], dtype=torch.float64)
        if net.layers:
            self.rows, low, high = _hull(net, net.layers[0])
            lower = torch.cat([lower, low])
            upper = torch.cat([upper, high])
        self.ends = (lower, upper)

    def needed(self, rows: Tensor) -> Tensor:
        """Those that may be the largest somewhere: seen at a point, or not excluded by a linear
        program.
        """
        rows, _, _ = distinct(rows)
        if len(rows) == 1:
            return rows
        shown = torch.zeros(len(rows), dtype=torch.bool)
        for part in self.seen.split(500):
            shown[(part @ rows.T).argmax(1)] = True
        for row in (~shown).nonzero()[:, 0].tolist():
            others = rows[shown]
            if self._above(rows[row], others) > 0:
                shown[row] = True
        return rows[shown]

    def _above(self, row: Tensor, others: Tensor) -> float:
        """By how much a function can be above the largest of others, as far as the hull tells."""
        # variables: the base and the surplus t, which is at most row - other for each
        gaps = row - others
        scale = gaps.abs().amax().clamp_min(1e-300)
        surplus = torch.cat([-torch.ones(len(gaps), 1), torch.zeros(len(self.rows), 1)])
        rows = torch.cat([gaps / scale, self.rows])
        rows = torch.cat([rows[:, :-1], surplus, rows[:, -1:]], 1)
        lower, upper = self.ends
        furthest = gaps.abs()[:, :-1] @ torch.maximum(lower.abs(), upper.abs())
        far = (1.0 + furthest.max() / scale).view(1)
        lower = torch.cat([lower, -far])
        upper = torch.cat([upper, far])
        aim = np.zeros(len(lower) + 1)
        aim[-2] = -1.0
        least, place = Polytope(rows.numpy(), lower.numpy(), upper.numpy()).least(aim)
        return 1.0 if place is None else -least + 1e-9


def _hull(net: Piecewise, first: HiddenLayer) -> tuple[Tensor, Tensor, Tensor]:
    """(rows with row . [x, h, 1] >= 0, the least and the largest h) of h = max(z, slope z), z = W x
    + b of the first layer, x in the box: the convex hull of each unit.
    """
    weight = first.weights.get(0, torch.zeros(first.units, net.inputs, dtype=torch.float64))
    centre = weight @ net.box.centre[0] + first.bias
    reach = weight.abs() @ net.box.radius[0]
    z_low = centre - reach
    z_high = centre + reach
    low = torch.maximum(z_low, first.slope * z_low)
    high = torch.maximum(z_high, first.slope * z_high)
    eye = torch.eye(first.units, dtype=torch.float64)
    z = torch.cat([weight, first.bias[:, None]], 1)

    def row(factor: Tensor, sign: float, constant: Tensor) -> Tensor:
        """sign h + factor z + constant."""
        scaled = factor[:, None] * z
        return torch.cat([scaled[:, :-1], sign * eye, scaled[:, -1:] + constant[:, None]], 1)

    # h >= z,   h >= slope z,   h <= low + chord (z - z_low)
    one = torch.ones(first.units, dtype=torch.float64)
    none = torch.zeros_like(one)
    chord = (high - low) / (z_high - z_low).clamp_min(1e-300)
    rows = [
        row(-one, 1.0, none),
        row(-first.slope * one, 1.0, none),
        row(chord, -1.0, low - chord * z_low),
    ]
    return torch.cat(rows), low, high
