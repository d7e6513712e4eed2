"""Convex cells cut by hyperplanes, each cell by its corners, each corner with the facets that it
lies on. Compiled by numba.

Two corners are joined by an edge where they share d - 1 facets and no third corner lies on all of
these; a hyperplane between them makes a new corner there. That is the double description method of
linear programming, one cell at a time, for any dimension d: intervals, polygons and polytopes
alike.

Source: Motzkin et al. 1953; the adjacency test of Fukuda and Prodon 1996. A corner's facets are
bits of two words, by their place in its cell's list of labels.
"""

import numpy as np
from numba import njit

FACETS = 128  # of one cell, at most
NEAR = 1e-10  # a corner so near to a hyperplane lies on it; the box has a radius of 1

DONE, FULL, CROWDED = 0, 1, 2

_ONE, _WORD = np.uint64(1), 64


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
def _tidied(cell, d, start, count, masks, labels, facets, into):
    """Forget what is no facet: planes on which fewer than d corners lie, or none that is not on
    another one, too, with more.
    """
    kept = 0
    begin, end = start[cell], start[cell] + count[cell]
    for v in range(begin, end):
        into[v - begin, 0] = np.uint64(0)
        into[v - begin, 1] = np.uint64(0)
    for facet in range(facets[cell]):
        word, bit = facet // _WORD, _bit(facet)
        on = 0
        for v in range(begin, end):
            if masks[v, word] & bit:
                on += 1
        # a face of fewer dimensions, which may have as many corners as a facet from four dimensions
        # on, lies in a facet
        whole = on >= d
        for other in range(facets[cell] if whole and d > 3 else 0):
            if other == facet:
                continue
            more, within = 0, True
            for v in range(begin, end):
                here = masks[v, word] & bit != 0
                there = masks[v, other // _WORD] & _bit(other) != 0
                more += there and not here
                within &= there or not here
            if within and (more > 0 or other < facet):
                whole = False
        if whole:
            for v in range(begin, end):
                if masks[v, word] & bit:
                    into[v - begin, kept // _WORD] |= _bit(kept)
            labels[cell, kept] = labels[cell, facet]
            kept += 1
    for v in range(begin, end):
        masks[v] = into[v - begin]
    facets[cell] = kept


@njit(error_model="numpy", cache=True)
def cut(rows, first_label, given, first, found):
    """Cut cells, from the `first` one on, by the hyperplanes that rows (cells, units, d + 1) are of
    each, one after the other.

    given, found: (start, count, facets, labels, points, masks) of cells; found also has (parent,
    above (cells, units)) at its end, and room that may not be enough. Returns (`DONE`, `FULL` or
    `CROWDED`, the cell to go on with, cells found, corners found).
    """
    start, count, facets, labels, points, masks = given
    start_, count_, facets_, labels_, points_, masks_, parent_, above_ = found
    units, d = rows.shape[1], rows.shape[2] - 1
    most_cells, most_points = len(start_), len(points_)
    away = np.empty(1 << 12)
    scratch = np.empty((1 << 12, 2), np.uint64)
    crossing = np.empty(units, np.bool_)
    cells, corners = 0, 0
    for parent in range(first, len(start)):
        first_cell, first_corner = cells, corners
        if cells == most_cells or corners + count[parent] > most_points:
            return FULL, parent, first_cell, first_corner
        begin = start[parent]
        for v in range(count[parent]):
            points_[corners + v] = points[begin + v]
            masks_[corners + v] = masks[begin + v]
        start_[cells], count_[cells], facets_[cells], parent_[cells] = (
            corners,
            count[parent],
            facets[parent],
            parent,
        )
        for facet in range(facets[parent]):
            labels_[cells, facet] = labels[parent, facet]
        for unit in range(units):
            high, low = 0, 0
            for v in range(begin, begin + count[parent]):
                z = rows[parent, unit, d]
                for k in range(d):
                    z += rows[parent, unit, k] * points[v, k]
                high += z > NEAR
                low += z < -NEAR
            crossing[unit] = high > 0 and low > 0
            above_[cells, unit] = high > 0
        corners += count[parent]
        cells += 1
        for unit in range(units):
            if not crossing[unit]:
                continue
            for cell in range(first_cell, cells):
                begin, end = start_[cell], start_[cell] + count_[cell]
                if end - begin > len(away):
                    return CROWDED, parent, first_cell, first_corner
                high, low = 0, 0
                for v in range(begin, end):
                    z = rows[parent, unit, d]
                    for k in range(d):
                        z += rows[parent, unit, k] * points_[v, k]
                    if -NEAR <= z <= NEAR:
                        z = 0.0
                    away[v - begin] = z
                    high += z > 0
                    low += z < 0
                above_[cell, unit] = high > 0
                if high == 0 or low == 0:
                    continue
                if facets_[cell] == FACETS:
                    _tidied(cell, d, start_, count_, masks_, labels_, facets_, scratch)
                    if facets_[cell] == FACETS:
                        return CROWDED, parent, first_cell, first_corner
                on = end - begin - high - low
                if cells == most_cells or corners + end - begin + on + 2 * high * low > most_points:
                    return FULL, parent, first_cell, first_corner
                new = facets_[cell]
                word, bit = new // _WORD, _bit(new)
                # the part above, then the one below, each with the corners on the hyperplane and
                # the new ones
                above = corners
                for v in range(begin, end):
                    if away[v - begin] > 0:
                        points_[corners] = points_[v]
                        masks_[corners] = masks_[v]
                        corners += 1
                shared = corners
                for v in range(begin, end):
                    if away[v - begin] == 0:
                        points_[corners] = points_[v]
                        masks_[corners] = masks_[v]
                        masks_[corners, word] |= bit
                        corners += 1
                for p in range(begin, end):
                    if away[p - begin] <= 0:
                        continue
                    for q in range(begin, end):
                        if away[q - begin] < 0 and _joined(p, q, begin, end, d, masks_):
                            share = away[p - begin] / (away[p - begin] - away[q - begin])
                            for k in range(d):
                                points_[corners, k] = points_[p, k] + share * (
                                    points_[q, k] - points_[p, k]
                                )
                            masks_[corners, 0] = masks_[p, 0] & masks_[q, 0]
                            masks_[corners, 1] = masks_[p, 1] & masks_[q, 1]
                            masks_[corners, word] |= bit
                            corners += 1
                below = corners
                for v in range(shared, below):
                    points_[corners] = points_[v]
                    masks_[corners] = masks_[v]
                    corners += 1
                for v in range(begin, end):
                    if away[v - begin] < 0:
                        points_[corners] = points_[v]
                        masks_[corners] = masks_[v]
                        corners += 1
                labels_[cell, new] = first_label + unit
                facets_[cell] += 1
                for facet in range(facets_[cell]):
                    labels_[cells, facet] = labels_[cell, facet]
                for other in range(units):
                    above_[cells, other] = above_[cell, other]
                above_[cells, unit] = False
                start_[cell], count_[cell] = above, below - above
                start_[cells], count_[cells] = below, corners - below
                facets_[cells], parent_[cells] = facets_[cell], parent
                cells += 1
        corners = _packed(
            first_cell,
            cells,
            first_corner,
            corners,
            d,
            start_,
            count_,
            facets_,
            labels_,
            points_,
            masks_,
        )
    return DONE, len(start), cells, corners


@njit(error_model="numpy", cache=True)
def _packed(
    first_cell, cells, first_corner, corners, d, start, count, facets, labels, points, masks
):
    """Move the corners of a parent's parts together, over those of cells that were cut since."""
    old_points, old_masks = points[first_corner:corners].copy(), masks[first_corner:corners].copy()
    at = first_corner
    for cell in range(first_cell, cells):
        size = count[cell]
        scratch = np.empty((size, 2), np.uint64)
        for v in range(size):
            points[at + v] = old_points[start[cell] - first_corner + v]
            masks[at + v] = old_masks[start[cell] - first_corner + v]
        start[cell] = at
        _tidied(cell, d, start, count, masks, labels, facets, scratch)
        at += size
    return at
