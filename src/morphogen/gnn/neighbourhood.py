"""Scopes of neighbours of neighbours, all of them or some drawn at each node.

Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs", NeurIPS 2017,
for the draws; scopes as in the paper of `gnn`. Differs: nodes that are reached again at a later
depth draw no further neighbours.
"""

import numpy as np
from numba import njit

from morphogen.gnn.counter import below, mixed


@njit(cache=True, nogil=True)
def choose(indptr, indices, roots, slots, depth, budget, replace, keys):
    """The scope of each root: (starts, nodes, visits), each scope in the order of its depths.

    budget: neighbours that each node draws, all of them where it has no more; below 0 all of all.
    replace: draw with replacement, where equal draws count once.
    """
    starts = np.zeros(len(roots) + 1, np.int64)
    nodes = np.empty(64 * len(roots) + 64, np.int32)
    total = 0
    for number in range(len(roots)):
        first = starts[number]
        nodes = held(nodes, first, 1)
        nodes[first] = roots[number]
        slots[roots[number]] = 0
        end = first + 1
        begin = first
        for _ in range(depth):
            last = end
            for place in range(begin, last):
                node = nodes[place]
                low = indptr[node]
                degree = indptr[node + 1] - low
                if budget < 0 or degree <= budget:
                    picks = np.arange(degree)
                else:
                    picks = picked(degree, budget, replace, mixed(keys[number], node))
                nodes = held(nodes, end, len(picks))
                total += len(picks)
                for pick in picks:
                    other = indices[low + pick]
                    if slots[other] < 0:
                        slots[other] = 0
                        nodes[end] = other
                        end += 1
            begin = last
        slots[nodes[first:end]] = -1
        starts[number + 1] = end
    return starts, nodes[: starts[-1]], total


@njit(cache=True, nogil=True)
def held(array, used, more):
    """An array with room for `more` entries after the first `used`."""
    if used + more <= len(array):
        return array
    larger = np.empty(max(2 * len(array), used + more), array.dtype)
    larger[:used] = array[:used]
    return larger


@njit(cache=True, nogil=True)
def picked(count, budget, replace, key):
    """`budget` of the numbers 0 .. count - 1; without replacement by Floyd's algorithm (Bentley and
    Floyd 1987).
    """
    picks = np.empty(budget, np.int64)
    if replace:
        for i in range(budget):
            picks[i] = below(key, i, count)
        return picks
    taken = np.zeros(count, np.bool_)
    for i in range(budget):
        last = count - budget + i
        pick = below(key, i, last + 1)
        picks[i] = last if taken[pick] else pick
        taken[picks[i]] = True
    return picks
