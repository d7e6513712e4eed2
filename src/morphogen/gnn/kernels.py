"""Sums over neighbours as loops over compressed sparse rows: float32 or float64, on a CPU.

Compiled at first use, and kept. Each writes the rows begin to end of its results, so that threads
can share them. The products of MKL, which PyTorch calls, are as fast at 64 features and three times
slower at 256.
"""

import numpy as np
from numba import njit

_fast = {"contract", "reassoc", "nsz"}


@njit(cache=True, nogil=True, fastmath=_fast)
def sums(indptr, indices, rows, columns, x, out, begin, end):
    """out[u] = rows[u] sum of columns[v] x[v] over the neighbours v of u.

    rows, columns: (nodes,), or empty for ones.
    """
    width = x.shape[1]
    for u in range(begin, end):
        into = out[u, :width]
        low, high = indptr[u], indptr[u + 1]
        # four rows in each pass over the result, so that it is seldom read again
        at = low + (high - low) % 4
        if len(columns):
            into[:] = 0
            for place in range(low, at):
                v = indices[place]
                one, p = x[v, :width], columns[v]
                for i in range(width):
                    into[i] += p * one[i]
        elif at == low:
            into[:] = 0
        else:
            into[:] = x[indices[low], :width]
            for place in range(low + 1, at):
                one = x[indices[place], :width]
                for i in range(width):
                    into[i] += one[i]
        while at < high:
            e, f, g, h = indices[at], indices[at + 1], indices[at + 2], indices[at + 3]
            a, b, c, d = x[e, :width], x[f, :width], x[g, :width], x[h, :width]
            if len(columns):
                p, q, r, s = columns[e], columns[f], columns[g], columns[h]
                for i in range(width):
                    into[i] += (p * a[i] + q * b[i]) + (r * c[i] + s * d[i])
            else:
                for i in range(width):
                    into[i] += (a[i] + b[i]) + (c[i] + d[i])
            at += 4
        if len(rows):
            factor = rows[u]
            for i in range(width):
                into[i] *= factor


@njit(cache=True, nogil=True)
def _leaky(z, slope):
    return z if z > 0 else slope * z


@njit(cache=True, nogil=True, fastmath=_fast)
def attend(indptr, indices, to, of, x, slope, out, logs, begin, end):
    """out[u, h] = sum over u itself and its neighbours v of x[v, h] softmax(leaky(to[u, h] +
    of[v, h])).

    to, of: (nodes, heads). x, out: (nodes, heads, width). logs: (nodes, heads) gets the logarithm
    of the sum that the softmax divides by.
    """
    heads, width = x.shape[1], x.shape[2]
    for u in range(begin, end):
        low, high = indptr[u], indptr[u + 1]
        for h in range(heads):
            into = out[u, h, :width]
            into[:] = 0
            most = of[u, h]
            for place in range(low, high):
                most = max(most, of[indices[place], h])
            most = _leaky(to[u, h] + most, slope)  # the slope is positive: the largest stays it
            total = x.dtype.type(0)
            for place in range(low, high + 1):
                v = indices[place] if place < high else u
                weight = np.exp(_leaky(to[u, h] + of[v, h], slope) - most)
                total += weight
                one = x[v, h, :width]
                for i in range(width):
                    into[i] += weight * one[i]
            logs[u, h] = most + np.log(total)
            for i in range(width):
                into[i] /= total


@njit(cache=True, nogil=True, fastmath=_fast)
def attend_back_to(indptr, indices, to, of, x, slope, logs, above, along, result, begin, end):
    """result[u, h]: the gradient of to[u, h]. above: (nodes, heads, width), the gradient of the
    result of `attend`. along: (nodes, heads), above[u, h] times that result.
    """
    heads, width = x.shape[1], x.shape[2]
    for u in range(begin, end):
        low, high = indptr[u], indptr[u + 1]
        for h in range(heads):
            total = x.dtype.type(0)
            gradient = above[u, h, :width]
            for place in range(low, high + 1):
                v = indices[place] if place < high else u
                z = to[u, h] + of[v, h]
                weight = np.exp(_leaky(z, slope) - logs[u, h])
                one = x[v, h, :width]
                product = x.dtype.type(0)
                for i in range(width):
                    product += gradient[i] * one[i]
                total += weight * (product - along[u, h]) * (1 if z > 0 else slope)
            result[u, h] = total


@njit(cache=True, nogil=True, fastmath=_fast)
def attend_back_of(
    into_indptr, into_indices, to, of, x, slope, logs, above, along, result, into, begin, end
):
    """result[v, h], into[v, h]: the gradients of of[v, h] and x[v, h], along the transpose."""
    heads, width = x.shape[1], x.shape[2]
    for v in range(begin, end):
        low, high = into_indptr[v], into_indptr[v + 1]
        for h in range(heads):
            total = x.dtype.type(0)
            one, back = x[v, h, :width], into[v, h, :width]
            back[:] = 0
            for place in range(low, high + 1):
                u = into_indices[place] if place < high else v
                z = to[u, h] + of[v, h]
                weight = np.exp(_leaky(z, slope) - logs[u, h])
                gradient = above[u, h, :width]
                product = x.dtype.type(0)
                for i in range(width):
                    product += gradient[i] * one[i]
                    back[i] += weight * gradient[i]
                total += weight * (product - along[u, h]) * (1 if z > 0 else slope)
            result[v, h] = total
