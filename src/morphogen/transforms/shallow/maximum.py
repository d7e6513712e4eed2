"""Any rectifier network as one maximum, or one minimum, of networks with a single hidden layer:
`maximum`, `minimum`.

Where units have the signs s, the network is A_s x + c_s. Elsewhere it is at least that less a
penalty for every sign that is wrong, which is a ReLU of an affine function of x:

    psi_s(x) = A_s x + c_s - sum_u mu_u (1 - slope_u) relu(-+ Z_u(x)),    f = max_s psi_s over the
    patterns of the cells.

With L and U >= 0 such that H - L <= h <= H + U, H the values with the signs s: L = s (W+ L + W- U),
since h >= s z, and U = (1 - slope) relu(-+ Z) + W+ U + W- L, since h grows at most as z does. Then
f - A_s x - c_s >= -(a+ L + a- U), and mu is what this comes to for each unit, gathered from the
output back.

Source: the claim of An et al. 2017 (arXiv 1703.10355), whose abstract alone was to be had; the
construction is ours. Differs: L takes the factor s, so units that are off pass nothing on: smaller
penalties, tighter bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.errors import Unsupported
from morphogen.formats.modules import linear
from morphogen.linear_regions.piecewise import HiddenLayer, Piecewise
from morphogen.linear_regions.polytope import Polytope
from morphogen.linear_regions.regions import Regions
from morphogen.linear_regions.reverse_search import halfspaces
from morphogen.transforms.shallow.form import Form, distinct, largest_of, one_hidden, shaped

_SAME = 1e-11  # relative


@dataclass(frozen=True)
class Maximum(Form):
    """f = max over terms, or min with `least`. cells: those of the patterns. terms: which patterns
    there are terms of.
    """

    cells: Regions
    terms: tuple[int, ...]
    least: bool = False

    @property
    def n_terms(self) -> int:
        return len(self.terms)

    @property
    def n_units(self) -> int:
        return len(self._hidden[0])

    @property
    def log2_formal(self) -> float:
        return float(self.net.units)

    @cached_property
    def _pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(violations as affine functions (terms, units, free + 1), functions (terms, outputs, free
        + 1), the penalties of a lower and of an upper bound (terms, outputs, units)).
        """
        pattern = self.cells.patterns[list(self.terms)]
        z, functions = self.net.affine(pattern)
        # -+ Z_u(x), above 0 where the sign of u is another
        wrong = torch.where(pattern, -1.0, 1.0).double()[..., None] * z
        below = penalties(self.net, pattern, False)
        above = penalties(self.net, pattern, True)
        return wrong, functions, below, above

    @property
    def _penalised(self) -> Tensor:
        """Whether a unit has a penalty in a term, (terms, units)."""
        weights = self._pieces[3 if self.least else 2]
        return (weights > 0).any(1)

    @cached_property
    def _hidden(self) -> tuple[Tensor, Tensor]:
        """(the different units (hidden, free + 1), which of them each term's are (terms, units), -1
        without a penalty).
        """
        wrong = self._pieces[0]
        used = self._penalised & wrong[..., :-1].any(2)
        rows, which, _ = distinct(wrong[used])
        places = torch.full(used.shape, -1)
        places[used] = which
        return rows, places

    def _value(self, x: Tensor) -> Tensor:
        return self._upper(x) if self.least else self._lower(x)

    def _lower(self, x: Tensor) -> Tensor:
        return self._terms(x, False).amax(1)

    def _upper(self, x: Tensor) -> Tensor:
        return self._terms(x, True).amin(1)

    def _terms(self, x: Tensor, above: bool) -> Tensor:
        """The value of each, (batch, terms, outputs)."""
        # psi_s(x) = A_s x + c_s -+ sum_u weight_su relu(wrong_su(x))
        wrong, functions, *weights = self._pieces
        ahead = torch.cat([x, x.new_ones(len(x), 1)], 1)
        violated = (ahead @ wrong.flatten(0, 1).T).view(len(x), *wrong.shape[:2]).relu_()
        penalty = torch.einsum("btu,tou->bto", violated, weights[above])
        straight = (ahead @ functions.flatten(0, 1).T).view(len(x), *functions.shape[:2])
        return straight + penalty if above else straight - penalty

    def prune(self) -> "Maximum":
        """Without terms that others replace: on each cell one term is enough. Greedily; within a
        logarithm of the fewest.
        """
        covers = self._covers()
        left = torch.ones(covers.shape[1], dtype=torch.bool)
        kept: list[int] = []
        while bool(left.any()):
            gains = (covers & left).sum(1)
            best = int(gains.argmax())
            if not gains[best]:  # what rounding hides stays
                kept += set(left.nonzero()[:, 0].tolist()) - set(kept)
                break
            kept.append(best)
            left &= ~covers[best]
        return replace(self, terms=tuple(self.terms[t] for t in sorted(kept)))

    def _covers(self) -> Tensor:
        """Whether a term is the network on the cell of another, (terms, terms)."""
        if not self.cells.sizes:
            return self._covers_by_programs()
        sizes = torch.tensor(self.cells.sizes)
        wanted = torch.zeros(len(sizes), dtype=torch.bool)
        wanted[list(self.terms)] = True
        # a term is concave and at most the network, which is affine on a cell: equal at all
        # corners, it is equal inside
        x = self.cells.corners[wanted.repeat_interleave(sizes)]
        count = int(wanted.sum())
        cell = torch.arange(count).repeat_interleave(sizes[wanted])
        f = self.net(x)
        room = _SAME * f.abs().amax()
        covers = torch.ones(count, self.n_terms, dtype=torch.bool)
        rows = max(1, (1 << 22) // self._size)
        for part, values, cells in zip(x.split(rows), f.split(rows), cell.split(rows), strict=True):
            # (corners, terms)
            off = ((self._terms(part, self.least) - values[:, None]).abs() > room).any(2)
            covers &= ~torch.zeros_like(covers).index_put_((cells,), off, accumulate=True)
        order = torch.tensor(self.terms).argsort().argsort()
        return covers[order].T

    def _covers_by_programs(self) -> Tensor:
        """Where corners are not known: a term covers a cell of the same function on which none of
        its penalties bite.
        """
        wrong = self._pieces[0]
        used = self._penalised
        kinds = self.cells.pieces[list(self.terms)]
        inside = self.cells.inside[list(self.terms)]
        f = self.net(inside)
        off = (self._terms(inside, self.least) - f[:, None]).abs()
        fits = (off <= 100 * _SAME * f.abs().amax()).all(2)
        covers = torch.eye(self.n_terms, dtype=torch.bool)
        centre = self.net.box.centre[0].numpy()
        radius = self.net.box.radius[0].numpy()
        # the box as the unit cube: x = centre + radius y
        ends = np.ones(len(centre))
        for s, cell in enumerate(self.terms):
            candidates = (fits[s] & (kinds == kinds[s])).nonzero()[:, 0].tolist()
            if candidates == [s]:
                continue
            rows, _ = halfspaces(self.net, self.cells.patterns[cell].numpy(), centre, radius)
            polytope = Polytope(rows, -ends, ends)
            for t in candidates:
                functions = wrong[t][used[t]].numpy().copy()
                functions[:, -1] += functions[:, :-1] @ centre
                functions[:, :-1] *= radius
                covers[t, s] |= all(polytope.least(-row)[0] >= -_SAME for row in functions)
        return covers

    def to_torch(self) -> nn.Sequential:
        rows, places = self._hidden
        _, functions, *weights = self._pieces
        weight = weights[self.least]
        outputs = functions.shape[1]
        sign = 1.0 if self.least else -1.0
        # the last column collects what has no penalty
        outer = torch.zeros(self.n_terms, outputs, len(rows) + 1, dtype=torch.float64)
        column = places[:, None].expand(-1, outputs, -1) % (len(rows) + 1)
        outer.scatter_add_(2, column, sign * weight)
        # an output's terms one after the other
        outer = outer[..., :-1].transpose(0, 1).flatten(0, 1)
        straight = functions.transpose(0, 1).flatten(0, 1)
        flip = -1.0 if self.least else 1.0  # the least is minus the largest of minus
        modules = [
            *one_hidden(self.net, rows, flip * outer, flip * straight),
            *largest_of(outputs, self.n_terms),
        ]
        eye = torch.eye(outputs, dtype=torch.float64)
        if self.least:
            modules.append(linear(-eye, eye.new_zeros(outputs)))
        return nn.Sequential(*modules, *shaped(self.net))


def maximum(net: Piecewise, cells: Regions, limit: float) -> Maximum:
    """One maximum of terms that are concave and at most the network everywhere."""
    return Maximum(net, cells, tuple(range(len(cells))))


def minimum(net: Piecewise, cells: Regions, limit: float) -> Maximum:
    """One minimum of terms that are convex and at least the network everywhere."""
    return replace(maximum(net, cells, limit), least=True)


def penalties(net: Piecewise, pattern: Tensor, above: bool) -> Tensor:
    """What a wrong sign may cost, (patterns, outputs, units), in a lower bound or in one from
    above.
    """
    slopes = net.slopes(pattern)
    outputs = len(net.output.bias)
    if not net.layers:
        return torch.zeros(len(pattern), outputs, 0, dtype=torch.float64)
    # what L and U of each layer count for, gathered from the output back
    low: dict[int, Tensor] = {}
    high: dict[int, Tensor] = {}
    for at, layer in enumerate(net.layers, 1):
        low[at] = torch.zeros(len(pattern), outputs, layer.units, dtype=torch.float64)
        high[at] = low[at].clone()
    for source, up, down in _signed(net.output):
        low[source] += down if above else up
        high[source] += up if above else down
    for at in range(len(net.layers), 0, -1):
        # L = s (W+ L + W- U),   U = ... + W+ U + W- L
        passed = low[at] * slopes[at - 1][:, None]
        for source, up, down in _signed(net.layers[at - 1]):
            low[source] += passed @ up + high[at] @ down
            high[source] += passed @ down + high[at] @ up
    costs = [(1 - layer.slope) * high[at] for at, layer in enumerate(net.layers, 1)]
    result = torch.cat(costs, 2)
    if not bool(result.isfinite().all()):
        raise Unsupported("shallow: the penalties overflow; give a network with smaller weights")
    return result


def _signed(layer: HiddenLayer) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(hidden layer that is read, W+, W-), W = W+ - W-."""
    for source, weight in layer.weights.items():
        if source:
            yield source, weight.clamp_min(0), (-weight).clamp_min(0)
