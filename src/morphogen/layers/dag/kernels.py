"""What is sequential in a DAG network, as loops over tiles of the batch: nodes inside a block, and
sparse wirings whole.

A tile's values are copied into an array of their own whose rows have a length that is known when
this is compiled: the compiler then sees that no two rows overlap, and works on four rows and four
sources at once. float32 for each activation; float64 for ReLU.

Arguments: `activation` by number; `linked`: whether a node puts out two rows, g(z) and g(-z);
`sums` (nodes, batch) before and `values` after the activation, feature-major; `triangle`: weights
inside a block, row after row, without the zeros; columns begin to end are worked on.
"""

import numpy as np
from numba import njit

from morphogen.layers.kernels.linked import NUMBERS, ZERO, chain_rule, pair

__all__ = ["NUMBERS", "products", "solve", "solve_back", "sparse", "sparse_back"]

# columns at a time, at most
_TILE = 128  # inside a block, whose values then stay in the second cache
_WIDE = 256  # of a sparse wiring, where finding a row costs more than reading it

_helper = njit(inline="always")


@_helper
def _copied(tile, row, source, at, begin, wide):
    """tile[row, :wide] = source[at, begin:begin + wide]."""
    # an index that might be negative would keep the loop from becoming vectors
    given = source[at, begin : begin + wide]
    for i in range(wide):
        tile[row, i] = given[i]


@_helper
def _stored(tile, row, into, at, begin, wide):
    written = into[at, begin : begin + wide]
    for i in range(wide):
        written[i] = tile[row, i]


@_helper
def _write_outputs(activation, linked, sums, row, values, at, wide):
    for i in range(wide):
        positive, negative = pair(activation, sums[row, i])
        values[at, i] = positive
        if linked:
            values[at + 1, i] = negative


@_helper
def _activate(activation, linked, sums, row, values, at, wide):
    """What a node puts out: one row of values, or two where it is linked. Where `activation` is a
    constant, its loop holds that one alone.
    """
    if activation == 0:
        _write_outputs(0, linked, sums, row, values, at, wide)
    elif activation == 1:
        _write_outputs(1, linked, sums, row, values, at, wide)
    elif activation == 2:
        _write_outputs(2, linked, sums, row, values, at, wide)
    elif activation == 3:
        _write_outputs(3, linked, sums, row, values, at, wide)
    else:
        _write_outputs(4, linked, sums, row, values, at, wide)


@_helper
def _write_deltas(activation, linked, z, gradients, at, deltas, row, wide):
    for i in range(wide):
        deltas[row, i] = chain_rule(
            activation, z[i], gradients[at, i], gradients[at + 1, i] if linked else ZERO
        )


@_helper
def _activate_backward(
    activation, linked, sums, node, values, source, gradients, at, deltas, row, begin, wide
):
    """deltas[row]: the gradient of a node's sum, from those of what it put out. A ReLU's sum is
    read off its values.
    """
    if activation == 0:
        first = values[source, begin : begin + wide]
        if linked:
            second = values[source + 1, begin : begin + wide]
            for i in range(wide):
                deltas[row, i] = chain_rule(
                    0, first[i] - second[i], gradients[at, i], gradients[at + 1, i]
                )
        else:
            _write_deltas(0, False, first, gradients, at, deltas, row, wide)
        return
    z = sums[node, begin : begin + wide]
    if activation == 1:
        _write_deltas(1, linked, z, gradients, at, deltas, row, wide)
    elif activation == 2:
        _write_deltas(2, linked, z, gradients, at, deltas, row, wide)
    elif activation == 3:
        _write_deltas(3, linked, z, gradients, at, deltas, row, wide)
    else:
        _write_deltas(4, linked, z, gradients, at, deltas, row, wide)


@njit(nogil=True, cache=True, fastmath={"contract"})
def solve(activation, linked, inner, triangle, sums, values, nodes, begin, end):
    """Nodes in groups of four: all four from what stands before them, then among themselves."""
    width = 2 if linked else 1
    v = np.empty((width * nodes, _TILE), values.dtype)
    z = np.empty((4, _TILE), values.dtype)
    for tile in range(begin, end, _TILE):
        wide = min(_TILE, end - tile)
        for low in range(0, nodes, 4):
            group = min(4, nodes - low)
            for j in range(group):
                _copied(z, j, sums, low + j, tile, wide)
            # rows of the triangle grow by `width` each
            p = width * (low * (low - 1) // 2)
            q = p + width * low
            r = q + width * (low + 1)
            s = r + width * (low + 2)
            if inner and group == 4:
                for k in range(0, width * low, 4):
                    a0, a1, a2, a3 = (
                        triangle[p + k],
                        triangle[p + k + 1],
                        triangle[p + k + 2],
                        triangle[p + k + 3],
                    )
                    b0, b1, b2, b3 = (
                        triangle[q + k],
                        triangle[q + k + 1],
                        triangle[q + k + 2],
                        triangle[q + k + 3],
                    )
                    c0, c1, c2, c3 = (
                        triangle[r + k],
                        triangle[r + k + 1],
                        triangle[r + k + 2],
                        triangle[r + k + 3],
                    )
                    d0, d1, d2, d3 = (
                        triangle[s + k],
                        triangle[s + k + 1],
                        triangle[s + k + 2],
                        triangle[s + k + 3],
                    )
                    for i in range(wide):
                        e, f, g, h = v[k, i], v[k + 1, i], v[k + 2, i], v[k + 3, i]
                        z[0, i] += (a0 * e + a1 * f) + (a2 * g + a3 * h)
                        z[1, i] += (b0 * e + b1 * f) + (b2 * g + b3 * h)
                        z[2, i] += (c0 * e + c1 * f) + (c2 * g + c3 * h)
                        z[3, i] += (d0 * e + d1 * f) + (d2 * g + d3 * h)
            for j in range(group):
                if inner:
                    row = width * ((low + j) * (low + j - 1) // 2)
                    for k in range(width * low if group == 4 else 0, width * (low + j)):
                        a = triangle[row + k]
                        for i in range(wide):
                            z[j, i] += a * v[k, i]
                if activation != 0:
                    _stored(z, j, sums, low + j, tile, wide)
                _activate(activation, linked, z, j, v, width * (low + j), wide)
        for row in range(width * nodes):
            _stored(v, row, values, row, tile, wide)


@njit(nogil=True, cache=True, fastmath={"contract"})
def solve_back(
    activation, linked, inner, triangle, sums, values, gradients, deltas, nodes, begin, end
):
    """Nodes in groups of four, from the last: a group among itself, then all four into those before
    it.
    """
    width = 2 if linked else 1
    flowing = np.empty((width * nodes, _TILE), values.dtype)
    d = np.zeros((4, _TILE), values.dtype)
    for tile in range(begin, end, _TILE):
        wide = min(_TILE, end - tile)
        for row in range(width * nodes):
            _copied(flowing, row, gradients, row, tile, wide)
        for low in range((nodes - 1) // 4 * 4, -1, -4):
            group = min(4, nodes - low)
            for j in range(group - 1, -1, -1):
                at = width * (low + j)
                _activate_backward(
                    activation, linked, sums, low + j, values, at, flowing, at, d, j, tile, wide
                )
                _stored(d, j, deltas, low + j, tile, wide)
                if inner:
                    row = width * ((low + j) * (low + j - 1) // 2)
                    for k in range(width * low if group == 4 else 0, width * (low + j)):
                        a = triangle[row + k]
                        for i in range(wide):
                            flowing[k, i] += a * d[j, i]
            if inner and group == 4:
                p = width * (low * (low - 1) // 2)
                q = p + width * low
                r = q + width * (low + 1)
                s = r + width * (low + 2)
                for k in range(0, width * low, 4):
                    a0, a1, a2, a3 = (
                        triangle[p + k],
                        triangle[p + k + 1],
                        triangle[p + k + 2],
                        triangle[p + k + 3],
                    )
                    b0, b1, b2, b3 = (
                        triangle[q + k],
                        triangle[q + k + 1],
                        triangle[q + k + 2],
                        triangle[q + k + 3],
                    )
                    c0, c1, c2, c3 = (
                        triangle[r + k],
                        triangle[r + k + 1],
                        triangle[r + k + 2],
                        triangle[r + k + 3],
                    )
                    d0, d1, d2, d3 = (
                        triangle[s + k],
                        triangle[s + k + 1],
                        triangle[s + k + 2],
                        triangle[s + k + 3],
                    )
                    for i in range(wide):
                        e, f, g, h = d[0, i], d[1, i], d[2, i], d[3, i]
                        flowing[k, i] += (a0 * e + b0 * f) + (c0 * g + d0 * h)
                        flowing[k + 1, i] += (a1 * e + b1 * f) + (c1 * g + d1 * h)
                        flowing[k + 2, i] += (a2 * e + b2 * f) + (c2 * g + d2 * h)
                        flowing[k + 3, i] += (a3 * e + b3 * f) + (c3 * g + d3 * h)


@_helper
def _gather(z, weights, v, rows, first, last, wide):
    """z[0] += sum of weights[k] * v[rows[k]] over k from first to last."""
    k = first
    while k + 8 <= last:
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        e, f, g, h = weights[k + 4], weights[k + 5], weights[k + 6], weights[k + 7]
        p, q, r, s = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        t, u, w, x = rows[k + 4], rows[k + 5], rows[k + 6], rows[k + 7]
        for i in range(wide):
            z[0, i] += ((a * v[p, i] + b * v[q, i]) + (c * v[r, i] + d * v[s, i])) + (
                (e * v[t, i] + f * v[u, i]) + (g * v[w, i] + h * v[x, i])
            )
        k += 8
    if k + 4 <= last:
        a, b, c, d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        p, q, r, s = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        for i in range(wide):
            z[0, i] += (a * v[p, i] + b * v[q, i]) + (c * v[r, i] + d * v[s, i])
        k += 4
    while k < last:
        a, p = weights[k], rows[k]
        for i in range(wide):
            z[0, i] += a * v[p, i]
        k += 1


@njit(nogil=True, cache=True, fastmath={"contract"})
def sparse(
    activation, linked, weights, places, indptr, bias, sums, values, inputs, nodes, begin, end
):
    """values: the inputs are there. sums: written unless the activation is ReLU."""
    width = 2 if linked else 1
    v = np.empty((inputs + width * nodes, _WIDE), values.dtype)
    z = np.empty((1, _WIDE), values.dtype)
    for tile in range(begin, end, _WIDE):
        wide = min(_WIDE, end - tile)
        for row in range(inputs):
            _copied(v, row, values, row, tile, wide)
        for j in range(nodes):
            for i in range(wide):
                z[0, i] = bias[j]
            _gather(z, weights, v, places, indptr[j], indptr[j + 1], wide)
            if activation != 0:
                _stored(z, 0, sums, j, tile, wide)
            _activate(activation, linked, z, 0, v, inputs + width * j, wide)
        for row in range(inputs, inputs + width * nodes):
            _stored(v, row, values, row, tile, wide)


@njit(nogil=True, cache=True, fastmath={"contract"})
def sparse_back(
    activation,
    linked,
    weights,
    readers,
    indptr,
    sums,
    values,
    gradients,
    deltas,
    back,
    inputs,
    nodes,
    begin,
    end,
):
    """weights, readers, indptr: the wiring by source: for each row of values, the weights and the
    nodes that read it. back (inputs or 0, batch): the gradients of the inputs, written where there
    is room.
    """
    width = 2 if linked else 1
    d = np.empty((nodes, _WIDE), values.dtype)
    g = np.empty((2, _WIDE), values.dtype)
    for tile in range(begin, end, _WIDE):
        wide = min(_WIDE, end - tile)
        for j in range(nodes - 1, -1, -1):
            at = inputs + width * j
            for half in range(width):
                _copied(g, 0, gradients, at + width - 1 - half, tile, wide)
                _gather(
                    g,
                    weights,
                    d,
                    readers,
                    indptr[at + width - 1 - half],
                    indptr[at + width - half],
                    wide,
                )
                if half == 0 and linked:
                    for i in range(wide):
                        g[1, i] = g[0, i]
            _activate_backward(activation, linked, sums, j, values, at, g, 0, d, j, tile, wide)
            _stored(d, j, deltas, j, tile, wide)
        for row in range(len(back)):
            _copied(g, 0, gradients, row, tile, wide)
            _gather(g, weights, d, readers, indptr[row], indptr[row + 1], wide)
            _stored(g, 0, back, row, tile, wide)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def products(places, indptr, deltas, values, by_weight, columns, begin, end):
    """by_weight[k] = deltas[j] . values[places[k]], k the entries of the nodes j, begin to end."""
    for j in range(begin, end):
        k = indptr[j]
        while k + 4 <= indptr[j + 1]:
            p, q, r, s = places[k], places[k + 1], places[k + 2], places[k + 3]
            a = deltas[j, 0] * values[p, 0]
            b = deltas[j, 0] * values[q, 0]
            c = deltas[j, 0] * values[r, 0]
            d = deltas[j, 0] * values[s, 0]
            for i in range(1, columns):
                a += deltas[j, i] * values[p, i]
                b += deltas[j, i] * values[q, i]
                c += deltas[j, i] * values[r, i]
                d += deltas[j, i] * values[s, i]
            by_weight[k], by_weight[k + 1], by_weight[k + 2], by_weight[k + 3] = a, b, c, d
            k += 4
        while k < indptr[j + 1]:
            place = places[k]
            total = deltas[j, 0] * values[place, 0]
            for i in range(1, columns):
                total += deltas[j, i] * values[place, i]
            by_weight[k] = total
            k += 1
