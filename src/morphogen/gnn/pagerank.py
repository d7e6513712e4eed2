"""Approximate personalised PageRank by local push: what a walk from a node visits, without a look
at the rest of the graph.

p(v) = c e_v + (1 - c) p(v) D^-1 A, with the teleport c. A push at u moves c r[u] to p[u] and the
rest of r[u] to the neighbours of u in equal shares; it is done while r[u] > eps deg(u). Then 0 <=
p(v)[u] - p[u] <= eps deg(u) for every u, and the pushes have visited at most 1 / (c eps) edges.

Source: Andersen, Chung, Lang, "Local Graph Partitioning using PageRank Vectors", FOCS 2006, section
3. Differs: no half of r[u] stays at u (they push lazily). With the teleport 2 c / (1 + c) in place
of c the vector is theirs, in half the visits; `EAGER` is that of their .15.
"""

import numpy as np
from numba import njit

from morphogen.gnn.counter import uniform

LAZY = 0.15
EAGER = 2 * LAZY / (1 + LAZY)

# columns of the state of a node that was touched: its residual, eps deg, its score, whether it
# waits. One line of the cache holds two nodes.
_RESIDUAL, _LIMIT, _SCORE, _WAITS = 0, 1, 2, 3


@njit(cache=True, nogil=True)
def room(nodes, teleport, epsilon):
    """The most nodes that a push can touch."""
    return min(np.int64(nodes), np.int64(1.0 / (teleport * epsilon)) + 2)


@njit(cache=True, nogil=True)
def push(indptr, indices, root, teleport, epsilon, slots, touched, state, queue):
    """Scores of what is near `root`: (how many nodes were touched, how many edges were visited).

    slots: (nodes,) of -1, and afterwards the place of each touched node in touched and state; the
    caller sets them back. touched: (room,) gets the nodes; state: (room, 4), column 2 gets their
    scores, 0 where nothing was pushed. queue: (room,).
    """
    slots[root] = 0
    touched[0] = root
    degree = indptr[root + 1] - indptr[root]
    if degree == 0:
        state[0, _SCORE] = 1.0
        return 1, 0
    state[0, _RESIDUAL], state[0, _LIMIT] = 1.0, epsilon * degree
    state[0, _SCORE], state[0, _WAITS] = 0.0, 0.0
    count, visits = 1, 0
    size = len(queue)
    head, waiting = 0, 0
    if state[0, _RESIDUAL] > state[0, _LIMIT]:
        queue[0] = 0
        waiting = 1
        state[0, _WAITS] = 1.0
    while waiting > 0:
        at = queue[head]
        head = head + 1 if head + 1 < size else 0
        waiting -= 1
        state[at, _WAITS] = 0.0
        mass = state[at, _RESIDUAL]
        state[at, _RESIDUAL] = 0.0
        state[at, _SCORE] += teleport * mass
        node = touched[at]
        begin, end = indptr[node], indptr[node + 1]
        share = (1.0 - teleport) * mass / (end - begin)
        visits += end - begin
        for place in range(begin, end):
            other = indices[place]
            slot = slots[other]
            if slot < 0:
                slot = count
                slots[other] = slot
                touched[slot] = other
                state[slot, _RESIDUAL] = share
                state[slot, _LIMIT] = epsilon * (indptr[other + 1] - indptr[other])
                state[slot, _SCORE], state[slot, _WAITS] = 0.0, 0.0
                count += 1
            else:
                state[slot, _RESIDUAL] += share
            if state[slot, _WAITS] == 0.0 and state[slot, _RESIDUAL] > state[slot, _LIMIT]:
                state[slot, _WAITS] = 1.0
                tail = head + waiting
                queue[tail if tail < size else tail - size] = slot
                waiting += 1
    return count, visits


@njit(cache=True, nogil=True)
def best(nodes, scores, most):
    """Places of the `most` largest scores above 0, falling; equal scores by node."""
    candidates = np.flatnonzero(scores > 0.0)
    if len(candidates) > most:
        least = np.partition(scores[candidates], len(candidates) - most)[len(candidates) - most]
        candidates = candidates[scores[candidates] >= least]
    order = np.argsort(nodes[candidates])
    candidates = candidates[order]
    # equal scores stay in the order of their nodes
    order = np.argsort(-scores[candidates], kind="mergesort")
    return candidates[order[:most]]


@njit(cache=True, nogil=True)
def choose(indptr, indices, roots, slots, most, threshold, teleport, epsilon, pool, keys):
    """The scope of each root: (starts, nodes, scores, visits), each scope falling by score.

    most, threshold: nodes at most, and the least score as a share of that of the second best.
    pool, keys: with a pool above 0, `most` nodes are drawn from the `pool` best without
    replacement, each with a probability that follows its score; the root is always among them.
    """
    size = room(len(indptr) - 1, teleport, epsilon)
    touched = np.empty(size, np.int32)
    state = np.empty((size, 4), np.float64)
    queue = np.empty(size, np.int32)
    width = min(most, size)
    starts = np.zeros(len(roots) + 1, np.int64)
    nodes = np.empty(len(roots) * width, np.int32)
    scores = np.empty(len(roots) * width, np.float32)
    total = 0
    for number in range(len(roots)):
        root = roots[number]
        count, visits = push(indptr, indices, root, teleport, epsilon, slots, touched, state, queue)
        total += visits
        found = state[:count, _SCORE].copy()
        if found[0] == 0.0:
            found[0] = 1.0  # eps is too large for the root itself: a scope of one node
        slots[touched[:count]] = -1
        places = best(touched[:count], found, pool if pool > 0 else most)
        if pool > 0:
            places = drawn(touched, found, places, most, keys[number])
        elif len(places) > 1:
            least = threshold * found[places[1]]
            kept = 1
            while kept < len(places) and found[places[kept]] >= least:
                kept += 1
            places = with_root(places[:kept])
        at = starts[number]
        for i in range(len(places)):
            nodes[at + i] = touched[places[i]]
            scores[at + i] = found[places[i]]
        starts[number + 1] = at + len(places)
    return starts, nodes[: starts[-1]], scores[: starts[-1]], total


@njit(cache=True, nogil=True)
def with_root(places):
    """Place 0, the root, is among them; it takes the last one's where it was not."""
    for place in places:
        if place == 0:
            return places
    places[-1] = 0
    return places


@njit(cache=True, nogil=True)
def drawn(nodes, scores, places, most, key):
    """`most` of the places without replacement, in proportion to their scores: Gumbel top-k."""
    noisy = np.empty(len(places), np.float64)
    for i in range(len(places)):
        place = places[i]
        gumbel = -np.log(-np.log(uniform(key, nodes[place])))
        noisy[i] = np.inf if place == 0 else np.log(scores[place]) + gumbel
    order = np.argsort(-noisy)
    return with_root(np.sort(places[order[:most]]))
