"""Convex cells cut by hyperplanes, each cell by its corners, each corner with the facets that it
lies on. Compiled by numba.

Two corners are joined by an edge where they share d - 1 facets and no third corner lies on all of
these; a hyperplane between them makes a new corner there. That is the double description method of
linear programming, one cell at a time, for any dimension d: intervals, polygons and polytopes
alike.

Source: Motzkin et al. 1953; the adjacency test of Fukuda and Prodon 1996. A corner's facets are
bits of two words, by their place in its cell's list of labels.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

FACETS = 128  # of one cell, at most
NEAR = 1e-10  # a corner so near to a hyperplane lies on it; the box has a radius of 1

DONE, FULL, CROWDED = 0, 1, 2

_ONE, _WORD = np.uint64(1), 64
_CORNERS = 1 << 12  # of one cell that is cut, at most


class Cells(NamedTuple):
    """start, count: of each cell's corners. facets: how many it has. labels: whose, (cells,
    facets). points, masks: of the corners of all cells, (corners, d) and (corners, 2).
    """

    start: np.ndarray
    count: np.ndarray
    facets: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    masks: np.ndarray


class Parts(NamedTuple):
    """Room for cells, as in `Cells`, that may not be enough; parent: which cell each is a part of;
    above: the side that it is on, (cells, units).
    """

    start: np.ndarray
    count: np.ndarray
    facets: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    masks: np.ndarray
    parent: np.ndarray
    above: np.ndarray


class _Scratch(NamedTuple):
    """away: of a cell's corners, how far they are from a hyperplane. masks: of its corners.
    crossing: which units' hyperplanes cut the parent.
    """

    away: np.ndarray
    masks: np.ndarray
    crossing: np.ndarray


@njit(error_model="numpy", cache=True)
def cut(rows, first_label, given, first, parts):
    """Cut cells, from the `first` one on, by the hyperplanes that rows (cells, units, d + 1) are of
    each, one after the other.

    given: `Cells`. parts: `Parts`, which are written. Returns (`DONE`, `FULL` or `CROWDED`, the
    cell to go on with, how many parts there are, how many corners).
    """
    units = rows.shape[1]
    scratch = _Scratch(
        np.empty(_CORNERS), np.empty((_CORNERS, 2), np.uint64), np.empty(units, np.bool_)
    )
    made, corners = 0, 0
    for parent in range(first, len(given.start)):
        status, made_then, corners_then = _cut_parent(
            rows[parent], first_label, given, parent, parts, made, corners, scratch
        )
        if status != DONE:
            return status, parent, made, corners
        corners = _packed(parts, made, made_then, corners, corners_then)
        made = made_then
    return DONE, len(given.start), made, corners


@njit(error_model="numpy", cache=True)
def _cut_parent(rows, first_label, given, parent, parts, first_part, corners, scratch):
    """Cut one cell by all hyperplanes: (status, how many parts there are then, and corners)."""
    if first_part == len(parts.start) or corners + given.count[parent] > len(parts.points):
        return FULL, first_part, corners
    _copy_parent(given, parent, parts, first_part, corners)
    points, above, crossing = given.points, parts.above, scratch.crossing
    begin, end = given.start[parent], given.start[parent] + given.count[parent]
    for unit in range(len(rows)):
        high, low = _sides(rows, unit, points, begin, end)
        crossing[unit] = high > 0 and low > 0
        above[first_part, unit] = high > 0
    made = first_part + 1
    corners += given.count[parent]
    for unit in range(len(rows)):
        if not crossing[unit]:
            continue
        status, made, corners = _cut_parts(
            rows, unit, first_label + unit, first_part, parts, made, corners, scratch
        )
        if status != DONE:
            return status, made, corners
    return DONE, made, corners


@njit(error_model="numpy", cache=True)
def _copy_parent(given, parent, parts, part, corner):
    """The first part of a cell is the cell."""
    for v in range(given.count[parent]):
        parts.points[corner + v] = given.points[given.start[parent] + v]
        parts.masks[corner + v] = given.masks[given.start[parent] + v]
    for facet in range(given.facets[parent]):
        parts.labels[part, facet] = given.labels[parent, facet]
    parts.start[part] = corner
    parts.count[part] = given.count[parent]
    parts.facets[part] = given.facets[parent]
    parts.parent[part] = parent


@njit(error_model="numpy", cache=True)
def _cut_parts(rows, unit, label, first_part, parts, made, corners, scratch):
    """Cut every part from `first_part` on in two where the hyperplane crosses it; what is below it
    becomes the last part.
    """
    # taken out of the tuples once: each time costs as much as a corner's distance
    start, count, facets, labels, points, _, _, above = parts
    away = scratch.away
    for part in range(first_part, made):
        begin, end = start[part], start[part] + count[part]
        if end - begin > len(away):
            return CROWDED, made, corners
        high, low = _distances(rows, unit, points, begin, end, away)
        above[part, unit] = high > 0
        if high == 0 or low == 0:
            continue
        if facets[part] == FACETS:
            _tidied(part, parts, scratch.masks)
            if facets[part] == FACETS:
                return CROWDED, made, corners
        on = end - begin - high - low
        if made == len(start) or corners + end - begin + on + 2 * high * low > len(points):
            return FULL, made, corners
        below, after = _split(part, parts, corners, away)
        labels[part, facets[part]] = label
        facets[part] += 1
        _copy_sides(part, parts, made)
        above[made, unit] = False
        start[part], count[part] = corners, below - corners
        start[made], count[made] = below, after - below
        made, corners = made + 1, after
    return DONE, made, corners


@njit(error_model="numpy", cache=True)
def _copy_sides(part, parts, made):
    """A new part has the facets, the signs and the parent of the one that it was cut from."""
    for facet in range(parts.facets[part]):
        parts.labels[made, facet] = parts.labels[part, facet]
    for unit in range(parts.above.shape[1]):
        parts.above[made, unit] = parts.above[part, unit]
    parts.facets[made] = parts.facets[part]
    parts.parent[made] = parts.parent[part]


@njit(error_model="numpy", cache=True)
def _distance(rows, unit, points, v):
    """rows[unit] . (corner, 1), and 0 for a corner so near that it lies on the hyperplane."""
    d = points.shape[1]
    z = rows[unit, d]
    for k in range(d):
        z += rows[unit, k] * points[v, k]
    return 0.0 if -NEAR <= z <= NEAR else z


@njit(error_model="numpy", cache=True)
def _sides(rows, unit, points, begin, end):
    """How many corners are (above a hyperplane, below it)."""
    high, low = 0, 0
    for v in range(begin, end):
        z = _distance(rows, unit, points, v)
        high += z > 0
        low += z < 0
    return high, low


@njit(error_model="numpy", cache=True)
def _distances(rows, unit, points, begin, end, away):
    """`_sides`, and into `away` how far each corner is from the hyperplane."""
    high, low = 0, 0
    for v in range(begin, end):
        z = _distance(rows, unit, points, v)
        away[v - begin] = z
        high += z > 0
        low += z < 0
    return high, low


@njit(error_model="numpy", cache=True)
def _split(part, parts, corners, away):
    """Write, from `corners` on, the corners of what is above the hyperplane, then of what is below
    it, each with those on it, old and new. Returns where the second begins and where it ends.
    """
    points, masks = parts.points, parts.masks
    begin, end = parts.start[part], parts.start[part] + parts.count[part]
    shared = corners
    for v in range(begin, end):
        if away[v - begin] > 0:
            _copy_corner(points, masks, v, shared)
            shared += 1
    at = shared
    for v in range(begin, end):
        if away[v - begin] == 0:
            _copy_corner(points, masks, v, at)
            at += 1
    below = _cut_edges(points, masks, begin, end, away, at)
    new = parts.facets[part]
    for v in range(shared, below):
        masks[v, new // _WORD] |= _bit(new)
    at = below
    for v in range(shared, below):
        _copy_corner(points, masks, v, at)
        at += 1
    for v in range(begin, end):
        if away[v - begin] < 0:
            _copy_corner(points, masks, v, at)
            at += 1
    return below, at


@njit(error_model="numpy", cache=True)
def _copy_corner(points, masks, v, to):
    for k in range(points.shape[1]):  # a view of a row costs more than its numbers
        points[to, k] = points[v, k]
    masks[to, 0] = masks[v, 0]
    masks[to, 1] = masks[v, 1]


@njit(error_model="numpy", cache=True)
def _cut_edges(points, masks, begin, end, away, at):
    """Write, from `at` on, a corner for each edge from above the hyperplane to below it; returns
    where they end.
    """
    d = points.shape[1]
    for p in range(begin, end):
        if away[p - begin] <= 0:
            continue
        for q in range(begin, end):
            if away[q - begin] < 0 and _joined(p, q, begin, end, d, masks):
                # x = p + (q - p) z_p / (z_p - z_q), on the facets that p and q share
                share = away[p - begin] / (away[p - begin] - away[q - begin])
                for k in range(d):
                    points[at, k] = points[p, k] + share * (points[q, k] - points[p, k])
                masks[at, 0] = masks[p, 0] & masks[q, 0]
                masks[at, 1] = masks[p, 1] & masks[q, 1]
                at += 1
    return at


@njit(error_model="numpy", cache=True, inline="always")
def _bit(facet):
    return _ONE << np.uint64(facet % _WORD)


@njit(error_model="numpy", cache=True)
def _joined(p, q, begin, end, d, masks):
    """Whether two corners of a cell share an edge."""
    low, high = masks[p, 0] & masks[q, 0], masks[p, 1] & masks[q, 1]
    shared = 0
    rest = low
    while rest and shared < d - 1:
        rest &= rest - _ONE
        shared += 1
    rest = high
    while rest and shared < d - 1:
        rest &= rest - _ONE
        shared += 1
    if shared < d - 1:
        return False
    others = 0
    for r in range(begin, end):
        others += masks[r, 0] & low == low and masks[r, 1] & high == high
    return others == 2


@njit(error_model="numpy", cache=True)
def _packed(parts, first_part, made, first_corner, corners):
    """Move the corners of a parent's parts together, over those of cells that were cut since;
    returns where they end.
    """
    old_points = parts.points[first_corner:corners].copy()
    old_masks = parts.masks[first_corner:corners].copy()
    at = first_corner
    for part in range(first_part, made):
        size = parts.count[part]
        scratch = np.empty((size, 2), np.uint64)
        for v in range(size):
            parts.points[at + v] = old_points[parts.start[part] - first_corner + v]
            parts.masks[at + v] = old_masks[parts.start[part] - first_corner + v]
        parts.start[part] = at
        _tidied(part, parts, scratch)
        at += size
    return at


@njit(error_model="numpy", cache=True)
def _tidied(part, parts, into):
    """Forget what is no facet."""
    masks = parts.masks
    d = parts.points.shape[1]
    begin, end = parts.start[part], parts.start[part] + parts.count[part]
    for v in range(begin, end):
        into[v - begin, 0] = np.uint64(0)
        into[v - begin, 1] = np.uint64(0)
    kept = 0
    for facet in range(parts.facets[part]):
        if not _is_facet(facet, parts.facets[part], begin, end, d, masks):
            continue
        word, bit = facet // _WORD, _bit(facet)
        for v in range(begin, end):
            if masks[v, word] & bit:
                into[v - begin, kept // _WORD] |= _bit(kept)
        parts.labels[part, kept] = parts.labels[part, facet]
        kept += 1
    for v in range(begin, end):
        masks[v] = into[v - begin]
    parts.facets[part] = kept


@njit(error_model="numpy", cache=True)
def _is_facet(facet, facets, begin, end, d, masks):
    """Whether at least d corners lie on a plane, and no other plane has these and more."""
    word, bit = facet // _WORD, _bit(facet)
    on = 0
    for v in range(begin, end):
        if masks[v, word] & bit:
            on += 1
    if on < d:
        return False
    # a face of fewer dimensions, which may have as many corners as a facet from four dimensions on,
    # lies in a facet
    for other in range(facets if d > 3 else 0):
        if other == facet:
            continue
        more, within = 0, True
        for v in range(begin, end):
            here = masks[v, word] & bit != 0
            there = masks[v, other // _WORD] & _bit(other) != 0
            more += there and not here
            within &= there or not here
        # of two planes that are one, the first stays
        if within and (more > 0 or other < facet):
            return False
    return True
