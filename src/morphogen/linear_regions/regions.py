"""The linear regions of a network on a box, each exactly: `regions(model, box) -> Regions`.

A network of ReLUs is one affine function on each of the convex cells that its units cut the box
into. Up to six inputs the cells are cut one layer after the other, each by its corners
(`cells.py`), whatever their number of inputs: intervals, polygons, polytopes. Above that reverse
search goes from cell to cell through their facets, by linear programs (`reverse_search.py`).

Source: exact counting by subdivision, Berzins 2023 (arXiv 2306.07212); reverse search, Avis and
Fukuda 1996. Differs: cells keep their corners and facets, not edges of the whole
complex, so that they are cut independently of each other and the corners of a cell never have to be
found again by their signs.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import chain, combinations
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from morphogen.bounds.box import Box
from morphogen.errors import ShapeError, Unsupported
from morphogen.linear_regions.piecewise import (
    HiddenLayer,
    Piecewise,
    by_size,
    function,
    identity,
    normed,
    piecewise,
    slopes,
    steepest,
)
from morphogen.linear_regions.reverse_search import reverse_search
from morphogen.record import Tiling

CORNERS = 6  # inputs up to which cells are kept by their corners
_CHUNK = 2048  # cells at a time: their functions stay in the cache, and what waits stays small


@dataclass(frozen=True)
class Regions:
    """The cells of a network on a box.

    net: the network in the form that they are of. patterns: which units are above 0, (cells,
    units). inside: a point in each, (cells, free inputs). corners: those of all cells, (corners,
    free inputs), `sizes` of them for each, in order, none from reverse search. borders: of all
    cells, the units (their place among all) whose sign changes at a facet, `facets` of them for
    each, in order. complete: whether these are all cells.
    """

    net: Piecewise
    patterns: Tensor
    inside: Tensor
    corners: Tensor
    sizes: tuple[int, ...]
    borders: Tensor
    facets: tuple[int, ...]
    complete: bool

    def __len__(self) -> int:
        """Cells: activation patterns that hold on an open set. The first of three definitions of a
        linear region.
        """
        return len(self.patterns)

    @cached_property
    def functions(self) -> Tensor:
        """What the network is on each cell, (cells, outputs, free inputs + 1), the constant
        last.
        """
        parts = self.patterns.split(4096)
        return torch.cat([self.net.affine(part)[1] for part in parts]) if parts else torch.zeros(0)

    @cached_property
    def pieces(self) -> Tensor:
        """By cell, the number of its affine function among the different ones, equal to 1e-9 of the
        largest.
        """
        flat = self.functions.flatten(1)
        scaled = flat / (flat.abs().amax(0).clamp_min(1e-300) * 1e-9)
        # rounding parts some that are equal, but hardly any on two grids
        grids = [
            (scaled + shift).round().unique(dim=0, return_inverse=True)[1].numpy()
            for shift in (0.0, 0.5)
        ]
        first = int(grids[0].max()) + 1
        joined = _joined(grids[0], first + grids[1], first + int(grids[1].max()) + 1)
        return torch.from_numpy(joined[grids[0]]).long()

    @property
    def n_pieces(self) -> int:
        """Different affine functions. The second definition."""
        return int(self.pieces.max()) + 1 if len(self) else 0

    @cached_property
    def neighbours(self) -> tuple[tuple[int, int], ...]:
        """Pairs of cells with a facet in common, the lower number first."""
        number = {row.tobytes(): cell for cell, row in enumerate(self.patterns.numpy())}
        pairs = set()
        cells = torch.arange(len(self)).repeat_interleave(
            torch.tensor(self.facets, dtype=torch.long)
        )
        for cell, unit in zip(cells.tolist(), self.borders.tolist(), strict=True):
            for flipped in self._behind(cell, unit):
                there = number.get(flipped.tobytes())
                if there is not None:
                    pairs.add((min(cell, there), max(cell, there)))
                    break
        return tuple(sorted(pairs))

    def _behind(self, cell: int, unit: int) -> Iterator[np.ndarray]:
        """What the pattern behind a facet may be: one unit has another sign, and where that is no
        cell's pattern, any of those that are 0 there too.
        """
        flipped = self.patterns[cell].numpy().copy()
        flipped[unit] ^= True
        yield flipped
        z = self.net.affine(self.patterns[cell : cell + 1])[0][0]
        rows = z / z[:, :-1].norm(dim=1, keepdim=True).clamp_min(1e-300)
        alike = (
            torch.minimum((rows - rows[unit]).abs().amax(1), (rows + rows[unit]).abs().amax(1))
            <= 1e-9
        )
        others = [other for other in alike.nonzero()[:, 0].tolist() if other != unit]
        for some in chain.from_iterable(
            combinations(others, size) for size in range(1, len(others) + 1)
        ):
            also = flipped.copy()
            also[list(some)] ^= True
            yield also

    @property
    def n_connected(self) -> int:
        """Largest connected sets on which the network is one affine function. The third
        definition.
        """
        one, other = np.array(self.neighbours, int).reshape(-1, 2).T
        alike = (self.pieces[one] == self.pieces[other]).numpy()
        return int(_joined(one[alike], other[alike], len(self)).max()) + 1

    def __str__(self) -> str:
        if not self.complete:
            return f"at least {len(self):,} activation patterns (the search was stopped)"
        return (
            f"{len(self):,} activation patterns, {self.n_pieces:,} affine functions, "
            f"{self.n_connected:,} connected regions"
        )

    def picture(self, panel: str = "linear regions") -> Tiling:
        """The cells of two free inputs as polygons, equal functions of one colour."""
        if self.net.inputs != 2 or not self.sizes:
            raise ShapeError(
                f"picture: the cells have {self.net.inputs} dimensions; give a box or a plane of "
                "two"
            )
        # more than a picture shows
        digits = 4 - math.floor(math.log10(float(self.net.box.width.max())))
        polygons = []
        for corners in self.corners.split(self.sizes):
            away = corners - corners.mean(0)
            around = torch.atan2(away[:, 1], away[:, 0]).argsort()
            polygons.append(
                tuple((round(x, digits), round(y, digits)) for x, y in corners[around].tolist())
            )
        return Tiling(panel, tuple(polygons), tuple(self.pieces.tolist()))


def regions(
    model: nn.Module | Piecewise,
    box: Box | None = None,
    along: tuple[Tensor, Tensor] | None = None,
    max_cells: int = 1_000_000,
    seconds: float = float("inf"),
    method: Literal["corners", "reverse search"] | None = None,
) -> Regions:
    """Every linear region of `model` on the box of one example, (1, *shape), of which some inputs
    may be fixed.

    along: (an input (*shape), directions (d, *shape)): only those on this plane, the box being of
    coefficients, (1, d). max_cells, seconds: after so many cells, or so long, it ends with what it
    has, and says so (`complete`). method: "corners" (up to six free inputs) or "reverse search";
    what fits, by itself. Raises `Unsupported` for a network that is not piecewise linear.
    """
    if isinstance(model, Piecewise):
        net = model
    elif box is None:
        raise ShapeError(
            "regions: box is missing; give the set of inputs, such as Box(torch.zeros(1, 2), "
            "torch.ones(1, 2))"
        )
    else:
        net = piecewise(model, box, along)
    if max_cells < 1:
        raise ShapeError(f"regions: max_cells={max_cells}; give at least 1 cell")
    until = time.perf_counter() + seconds
    if net.inputs == 0:
        middle = net.box.centre
        return Regions(
            net,
            net.pattern(middle),
            middle,
            middle,
            (1,),
            torch.zeros(0, dtype=torch.long),
            (0,),
            True,
        )
    method = method or ("corners" if net.inputs <= CORNERS else "reverse search")
    if method == "reverse search":
        return Regions(net, *reverse_search(net, max_cells, until))
    if method != "corners":
        raise ShapeError(f"regions: method={method!r}; give 'corners' or 'reverse search'")
    return _by_corners(net, max_cells, until)


def _joined(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """The number of the connected set that each of `count` nodes is in, where one[i] and other[i]
    are joined.
    """
    numbers: np.ndarray = connected_components(
        coo_array((np.ones(len(one)), (one, other)), (count, count)), False
    )[1]
    return numbers


def _by_corners(net: Piecewise, max_cells: int, until: float) -> Regions:
    centre = net.box.centre[0]
    radius = net.box.radius[0]
    unit = _in_the_cube(net, centre, radius)
    parts: list[tuple[Tensor, _Part]] = []
    count = 0
    complete = True
    start = [identity(net.inputs, 1)], [torch.ones(net.inputs, 1, dtype=torch.float64)]
    for above, part in _descend(
        unit, 0, *start, torch.zeros(1, 0, dtype=torch.bool), _cube(net.inputs)
    ):
        if count >= max_cells or (parts and time.perf_counter() > until):
            complete = False
            break
        parts.append((above, part))
        count += len(part.start)
    patterns = torch.cat([above for above, _ in parts])[:max_cells]
    corners = centre + radius * torch.from_numpy(
        np.concatenate([part.corners for _, part in parts])
    )
    sizes = np.concatenate([part.count for _, part in parts])[:max_cells]
    corners = corners[: sizes.sum()]
    first = np.concatenate([[0], sizes.cumsum()[:-1]])
    inside = torch.from_numpy(np.add.reduceat(corners.numpy(), first) / sizes[:, None])
    whose, facets = (
        np.concatenate(side) for side in zip(*(part.borders for _, part in parts), strict=True)
    )
    facets = facets[:max_cells]
    borders = torch.from_numpy(whose[: facets.sum()].astype(np.int64))
    complete = complete and count <= max_cells
    return Regions(
        net,
        patterns,
        inside,
        corners,
        tuple(sizes.tolist()),
        borders,
        tuple(facets.tolist()),
        complete,
    )


@dataclass(frozen=True)
class _Part:
    """Cells as `cells.cut` takes and gives them."""

    start: np.ndarray
    count: np.ndarray
    facets: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    masks: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.start, self.count, self.facets, self.labels, self.points, self.masks

    @property
    def corners(self) -> np.ndarray:
        """Of all these cells; `cells.cut` leaves them one after the other."""
        return self.points[self.start[0] : self.start[-1] + self.count[-1]]

    @property
    def borders(self) -> tuple[np.ndarray, np.ndarray]:
        """(whose facets they have, all cells one after the other, and how many each)."""
        labels = self.labels[:, : self.facets.max()]
        there = (labels >= 0) & (np.arange(labels.shape[1]) < self.facets[:, None])
        return labels[there], there.sum(1)

    def __getitem__(self, rows: slice) -> "_Part":
        return _Part(
            self.start[rows],
            self.count[rows],
            self.facets[rows],
            self.labels[rows],
            self.points,
            self.masks,
        )


def _cube(d: int) -> _Part:
    """From -1 to 1 in every input; its sides have labels below 0."""
    cells = import_module("morphogen.linear_regions.cells")
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * d, indexing="ij")).reshape(d, -1).T.copy()
    masks = np.zeros((len(corners), 2), np.uint64)
    for side in range(d):
        masks[:, 0] |= np.where(corners[:, side] < 0, 1 << 2 * side, 1 << 2 * side + 1).astype(
            np.uint64
        )
    labels = np.zeros((1, cells.FACETS), np.int32)
    labels[0, : 2 * d] = -1 - np.arange(2 * d)
    return _Part(
        np.zeros(1, np.int64), np.array([len(corners)]), np.array([2 * d]), labels, corners, masks
    )


def _in_the_cube(net: Piecewise, centre: Tensor, radius: Tensor) -> tuple[HiddenLayer, ...]:
    """The layers of inputs that go from -1 to 1."""
    return tuple(
        HiddenLayer(
            {**layer.weights, 0: layer.weights[0] * radius},
            layer.bias + layer.weights[0] @ centre,
            layer.slope,
        )
        if 0 in layer.weights
        else layer
        for layer in net.layers
    )


def _descend(
    layers: tuple[HiddenLayer, ...],
    at: int,
    sources: list[Tensor],
    lengths: list[Tensor],
    above: Tensor,
    part: _Part,
) -> Iterator[tuple[Tensor, _Part]]:
    """Cut cells by the layers from `at` on: (patterns, cells), chunk after chunk. sources: the
    values of earlier layers as functions on each cell, (units, cells, d + 1); lengths: of their
    slopes.
    """
    if at == len(layers):
        yield above, part
        return
    layer = layers[at]
    z = function(layer, sources)
    length = z[..., :-1].norm(dim=-1)
    rows = normed(z, length, steepest(by_size(layer), lengths))
    first_label = above.shape[1]
    last = {
        source: max(i for i, later in enumerate(layers) if source in later.weights)
        for source in {s for later in layers for s in later.weights}
    }
    for new, parent, children in _cut(rows.transpose(0, 1).contiguous().numpy(), first_label, part):
        # many cells go on together, few stay few: what is read no more is not carried along
        for begin in range(0, len(parent), _CHUNK):
            some = slice(begin, begin + _CHUNK)
            mothers = torch.from_numpy(parent[some])
            signs = torch.from_numpy(new[some])
            read = [source == 0 or last.get(source, -1) > at for source in range(at + 1)]
            kept = [
                value[:, mothers] if wanted else value[:, :0]
                for value, wanted in zip(sources, read, strict=True)
            ]
            long = [
                value[:, mothers] if wanted else value[:, :0]
                for value, wanted in zip(lengths, read, strict=True)
            ]
            if last.get(at + 1, -1) > at:
                slope = slopes(signs, layer).T
                kept = [*kept, slope[..., None] * z[:, mothers]]
                long = [*long, slope * length[:, mothers]]
            else:
                kept = [*kept, z[:, :0]]
                long = [*long, length[:, :0]]
            yield from _descend(
                layers, at + 1, kept, long, torch.cat([above[mothers], signs], 1), children[some]
            )


def _cut(
    rows: np.ndarray, first_label: int, part: _Part
) -> Iterator[tuple[np.ndarray, np.ndarray, _Part]]:
    """(signs (cells, units), parents, cells) of the parts that rows cut cells into."""
    cells = import_module("morphogen.linear_regions.cells")
    d = part.points.shape[1]
    units = rows.shape[1]
    first = 0
    room_cells = 4 * len(part.start) + 1024
    room_points = 16 * int(part.count.sum()) + 65536
    while first < len(part.start):
        start, count, facets = (np.empty(room_cells, np.int64) for _ in range(3))
        labels = np.empty((room_cells, cells.FACETS), np.int32)
        parent = np.empty(room_cells, np.int64)
        above = np.empty((room_cells, units), np.bool_)
        points = np.empty((room_points, d))
        masks = np.empty((room_points, 2), np.uint64)
        parts = cells.Parts(start, count, facets, labels, points, masks, parent, above)
        status, reached, made, corners = cells.cut(
            rows, first_label, cells.Cells(*part.arrays), first, parts
        )
        if status == cells.CROWDED:
            raise Unsupported(
                f"regions: a cell has more than {cells.FACETS} facets or 4,096 corners; give "
                "method='reverse search' or fewer inputs"
            )
        if reached == first and status == cells.FULL:
            room_cells = 4 * room_cells
            room_points = 4 * room_points
            continue
        first = reached
        some = slice(made)
        most = facets[:made].max()
        children = _Part(
            start[some],
            count[some],
            facets[some],
            labels[some, :most].copy(),
            points[:corners].copy(),
            masks[:corners].copy(),
        )
        yield above[some], parent[some], children
