"""The edges between the nodes of each scope, and how far each node is from its roots, in one
pass.

A batch of scopes is one graph of parts that do not touch: a node that stands in two scopes stands
twice in it.
"""

import numpy as np
from numba import njit

from morphogen.gnn.neighbourhood import held

UNREACHED = 255
"""A distance that is none: no path, or one longer than 254."""


@njit(cache=True, nogil=True)
def union(starts, nodes, roots):
    """Scopes of single roots joined, `roots` of them at a time: (starts, nodes), each scope sorted,
    every node once.
    """
    count = (len(starts) - 1) // roots
    ends = np.zeros(count + 1, np.int64)
    joined = np.empty(len(nodes), np.int32)
    for scope in range(count):
        sorted_nodes = np.sort(nodes[starts[scope * roots] : starts[(scope + 1) * roots]])
        at = ends[scope]
        for i in range(len(sorted_nodes)):
            if i == 0 or sorted_nodes[i] != sorted_nodes[i - 1]:
                joined[at] = sorted_nodes[i]
                at += 1
        ends[scope + 1] = at
    return ends, joined[: ends[-1]]


@njit(cache=True, nogil=True)
def induce(indptr, indices, starts, nodes, roots, slots, apart):
    """(row starts, columns, places of the roots, hops, edges looked at) of a batch.

    starts, nodes: of scopes that are sorted and hold their roots. roots: (scopes, roots of each).
    apart: leave out the edges between the roots of a scope, which are what is to be predicted.
    hops: (nodes, roots of each), the distance inside the scope from each root, on paths that do not
    lead through the other roots; UNREACHED where there is none.
    """
    row_starts = np.zeros(len(nodes) + 1, np.int64)
    columns = np.empty(8 * len(nodes) + 64, np.int32)
    places = np.empty(roots.shape, np.int64)
    hops = np.full((len(nodes), roots.shape[1]), UNREACHED, np.uint8)
    queue = np.empty(len(nodes), np.int64)
    looked = 0
    for scope in range(len(starts) - 1):
        first, last = starts[scope], starts[scope + 1]
        for place in range(first, last):
            slots[nodes[place]] = place
        for i in range(roots.shape[1]):
            places[scope, i] = slots[roots[scope, i]]
        for place in range(first, last):
            low, high = indptr[nodes[place]], indptr[nodes[place] + 1]
            at = row_starts[place]
            columns = held(columns, at, min(high - low, last - first))
            if high - low <= 8 * (last - first):
                for entry in range(low, high):
                    slot = slots[indices[entry]]
                    if slot >= 0:
                        columns[at] = slot
                        at += 1
                looked += high - low
            else:  # a hub: sooner found by halving, as its neighbours are sorted
                neighbours = indices[low:high]
                for other in range(first, last):
                    found = np.searchsorted(neighbours, nodes[other])
                    if found < high - low and neighbours[found] == nodes[other]:
                        columns[at] = other
                        at += 1
                looked += last - first
            row_starts[place + 1] = at
        if apart:
            at = row_starts[first]
            begin = at
            for place in range(first, last):
                end = row_starts[place + 1]
                for entry in range(begin, end):
                    if not (among(places[scope], place) and among(places[scope], columns[entry])):
                        columns[at] = columns[entry]
                        at += 1
                begin = end
                row_starts[place + 1] = at
        for i in range(roots.shape[1]):
            walk(row_starts, columns, places[scope], i, hops, queue)
        for place in range(first, last):
            slots[nodes[place]] = -1
    return row_starts, columns[: row_starts[-1]], places, hops, looked


@njit(cache=True, nogil=True)
def among(values, value):
    # numba knows no generators inside any()
    for each in values:  # noqa: SIM110
        if each == value:
            return True
    return False


@njit(cache=True, nogil=True)
def walk(row_starts, columns, roots, which, hops, queue):
    """Distances from one root, breadth first."""
    queue[0] = roots[which]
    hops[roots[which], which] = 0
    head, tail = 0, 1
    while head < tail:
        place = queue[head]
        head += 1
        far = hops[place, which]
        if far + 1 >= UNREACHED or (far > 0 and among(roots, place)):
            continue
        for entry in range(row_starts[place], row_starts[place + 1]):
            other = columns[entry]
            if hops[other, which] == UNREACHED:
                hops[other, which] = far + 1
                queue[tail] = other
                tail += 1
