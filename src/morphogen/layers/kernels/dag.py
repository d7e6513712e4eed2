"""What is sequential in a DAG network, as loops over tiles of the batch: nodes inside a block, and sparse wirings whole.

Values stand feature-major, one row of the batch for each feature, so that every sum runs along memory. Sums take eight sources
at a time: one load each, one store for all. float32 for every kind; float64 for ReLU.

Arguments: `kind` by number; `two`: whether a node puts out two rows, linked; `sums` (nodes, batch) before and `values` after
the activation; `triangle`: weights inside a block, row after row, without the zeros; columns begin to end are worked on.
"""

from numba import njit

from morphogen.layers.kernels.linked import NUMBERS, _0, _back, _pair

__all__ = ["NUMBERS", "products", "solve", "solve_back", "sparse", "sparse_back"]

# columns at a time: a block of 128 nodes then stays in the first cache
_TILE = 64


@njit
def _add(sums, row, weights, first, values, start, count, begin, end):
    """sums[row] += weights[first:first+count] @ values[start:start+count], in columns begin to end."""
    k = 0
    while k + 8 <= count:
        a, b, c, d = weights[first + k], weights[first + k + 1], weights[first + k + 2], weights[first + k + 3]
        e, f, g, h = weights[first + k + 4], weights[first + k + 5], weights[first + k + 6], weights[first + k + 7]
        at = start + k
        for i in range(begin, end):
            sums[row, i] += ((a * values[at, i] + b * values[at + 1, i]) + (c * values[at + 2, i] + d * values[at + 3, i])) + (
                (e * values[at + 4, i] + f * values[at + 5, i]) + (g * values[at + 6, i] + h * values[at + 7, i])
            )
        k += 8
    while k < count:
        a = weights[first + k]
        for i in range(begin, end):
            sums[row, i] += a * values[start + k, i]
        k += 1


@njit
def _gather(sums, row, weights, places, values, first, last, begin, end):
    """sums[row] += weights[first:last] @ values[places[first:last]]."""
    k = first
    while k + 8 <= last:
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        e, f, g, h = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        p, q, r, s = places[k], places[k + 1], places[k + 2], places[k + 3]
        t, u, v, w = places[k + 4], places[k + 5], places[k + 6], places[k + 7]
        for i in range(begin, end):
            sums[row, i] += ((a * values[p, i] + b * values[q, i]) + (c * values[r, i] + d * values[s, i])) + (
                (e * values[t, i] + f * values[u, i]) + (g * values[v, i] + h * values[w, i])
            )
        k += 8
    while k < last:
        a, p = weights[k], places[k]
        for i in range(begin, end):
            sums[row, i] += a * values[p, i]
        k += 1


@njit
def _activate(kind, sums, row, values, at, two, begin, end):
    """What the node `row` puts out: one row of values, or two where it is linked."""
    for i in range(begin, end):
        positive, negative = _pair(kind, sums[row, i])
        values[at, i] = positive
        if two:
            values[at + 1, i] = negative


@njit
def _pull(kind, sums, row, values, gradients, at, two, deltas, begin, end):
    """deltas[row]: the gradient of the node's sum, from those of what it put out. A ReLU's sum is read off its values."""
    for i in range(begin, end):
        read = values[at, i] - values[at + 1, i] if two else values[at, i]
        z = read if kind == 0 else sums[row, i]
        deltas[row, i] = _back(kind, z, gradients[at, i], gradients[at + 1, i] if two else _0)


@njit(nogil=True, cache=True)
def solve(kind, two, inner, triangle, sums, values, nodes, begin, end):
    width = 2 if two else 1
    for tile in range(begin, end, _TILE):
        stop = min(tile + _TILE, end)
        first = 0
        for j in range(nodes):
            if inner:
                _add(sums, j, triangle, first, values, 0, width * j, tile, stop)
                first += width * j
            _activate(kind, sums, j, values, width * j, two, tile, stop)


@njit(nogil=True, cache=True)
def solve_back(kind, two, inner, triangle, sums, values, gradients, deltas, nodes, begin, end):
    """Nodes in groups of eight, from the last: a group among itself, then all eight into those before it."""
    width = 2 if two else 1
    for tile in range(begin, end, _TILE):
        stop = min(tile + _TILE, end)
        last = nodes
        while last > 0:
            low = max(0, last - 8)
            for j in range(last - 1, low - 1, -1):
                _pull(kind, sums, j, values, gradients, width * j, two, deltas, tile, stop)
                if inner:
                    row = width * (j * (j - 1) // 2)
                    for k in range(width * low, width * j):
                        a = triangle[row + k]
                        for i in range(tile, stop):
                            gradients[k, i] += a * deltas[j, i]
            if inner and last - low == 8:
                base = width * (low * (low - 1) // 2)
                for k in range(width * low):
                    # rows of the triangle grow by `width` each
                    a = triangle[base + k]
                    b = triangle[base + width * low + k]
                    c = triangle[base + width * (2 * low + 1) + k]
                    d = triangle[base + width * (3 * low + 3) + k]
                    e = triangle[base + width * (4 * low + 6) + k]
                    f = triangle[base + width * (5 * low + 10) + k]
                    g = triangle[base + width * (6 * low + 15) + k]
                    h = triangle[base + width * (7 * low + 21) + k]
                    for i in range(tile, stop):
                        four = (a * deltas[low, i] + b * deltas[low + 1, i]) + (c * deltas[low + 2, i] + d * deltas[low + 3, i])
                        gradients[k, i] += four + (
                            (e * deltas[low + 4, i] + f * deltas[low + 5, i])
                            + (g * deltas[low + 6, i] + h * deltas[low + 7, i])
                        )
            last = low


@njit(nogil=True, cache=True)
def sparse(kind, two, weights, places, starts, sums, values, inputs, nodes, begin, end):
    width = 2 if two else 1
    for tile in range(begin, end, _TILE):
        stop = min(tile + _TILE, end)
        for j in range(nodes):
            _gather(sums, j, weights, places, values, starts[j], starts[j + 1], tile, stop)
            _activate(kind, sums, j, values, inputs + width * j, two, tile, stop)


@njit
def _gather_readers(gradients, row, weights, order, readers, deltas, first, last, begin, end):
    """gradients[row] += what flows back from the nodes that read it."""
    k = first
    while k + 4 <= last:
        a, b, c, d = weights[order[k]], weights[order[k + 1]], weights[order[k + 2]], weights[order[k + 3]]
        p, q, r, s = readers[k], readers[k + 1], readers[k + 2], readers[k + 3]
        for i in range(begin, end):
            gradients[row, i] += (a * deltas[p, i] + b * deltas[q, i]) + (c * deltas[r, i] + d * deltas[s, i])
        k += 4
    while k < last:
        a, p = weights[order[k]], readers[k]
        for i in range(begin, end):
            gradients[row, i] += a * deltas[p, i]
        k += 1


@njit(nogil=True, cache=True)
def sparse_back(kind, two, weights, order, readers, starts, sums, values, gradients, deltas, inputs, nodes, begin, end):
    """order, readers, starts: the wiring by source: for each row of values, places in `weights` and the nodes there."""
    width = 2 if two else 1
    for tile in range(begin, end, _TILE):
        stop = min(tile + _TILE, end)
        for j in range(nodes - 1, -1, -1):
            at = inputs + width * j
            for row in range(at, at + width):
                _gather_readers(gradients, row, weights, order, readers, deltas, starts[row], starts[row + 1], tile, stop)
            _pull(kind, sums, j, values, gradients, at, two, deltas, tile, stop)
        for row in range(inputs):
            _gather_readers(gradients, row, weights, order, readers, deltas, starts[row], starts[row + 1], tile, stop)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def products(places, starts, deltas, values, found, columns, begin, end):
    """found[k] = deltas[j] . values[places[k]] for the entries of the nodes from begin to end."""
    for j in range(begin, end):
        for k in range(starts[j], starts[j + 1]):
            place = places[k]
            total = deltas[j, 0] * values[place, 0]
            for i in range(1, columns):
                total += deltas[j, i] * values[place, i]
            found[k] = total
