"""A linked pair in one pass over memory each way: both halves from one read of z, one exponential
for both.
"""

import ctypes

import numpy as np
from numba import carray, cfunc, njit, types

# The kinds by number, in the order of the tables below.
NUMBERS = {"relu": 0, "elu": 1, "selu": 2, "silu": 3, "gelu": 4}

ZERO, ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_ALPHA = np.float32(1.6732632423543772848170429916717)
_SCALE = np.float32(1.0507009873554804934193349852946)
_ROOT_HALF, _DENSITY = np.float32(0.70710678118654752), np.float32(0.39894228040143268)

# e^x = 2^k e^r with |r| <= ln 2 / 2; the polynomial is that of Cephes' expf (Moshier), error 2e-7
_LEAST, _LOG2E, _BITS, _BIAS = (
    np.float32(-87.3),
    np.float32(1.44269504),
    np.float32(12582912),
    np.int32(127),
)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_E2, _E3, _E4 = (
    np.float32(5.0000001201e-1),
    np.float32(1.6666665459e-1),
    np.float32(4.1665795894e-2),
)
_E5, _E6, _E7 = (
    np.float32(8.3334519073e-3),
    np.float32(1.3981999507e-3),
    np.float32(1.9875691500e-4),
)
# erf by Abramowitz and Stegun 7.1.26, error 1.5e-7: the polynomial that PyTorch's own loop uses
_P, _Q1, _Q2 = np.float32(0.3275911), np.float32(0.254829592), np.float32(-0.284496736)
_Q3, _Q4, _Q5 = np.float32(1.421413741), np.float32(-1.453152027), np.float32(1.061405429)

# division by zero is infinite, as it is in an array: a check for it would be a branch in every loop
_plain = njit(error_model="numpy")


@_plain
def _parts(x):
    """(2^k, e^r - 1) of x <= 0: plain arithmetic, so that the compiler makes vectors of it."""
    x = _LEAST if x < _LEAST else x  # written so that what is not a number stays one
    # adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits
    shifted = x * _LOG2E + _BITS
    k = shifted - _BITS
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    power = np.int32((np.float32(shifted).view(np.int32) + _BIAS) << np.int32(23)).view(np.float32)
    return power, ((((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2) * r * r) + r


@_plain
def _exp(x):
    power, rest = _parts(x)
    return power * rest + power


@_plain
def _expm1(x):
    power, rest = _parts(x)
    return power * rest + (power - ONE)


@_plain
def _relu(z):
    return (ZERO if z <= ZERO else z), (ZERO if z >= ZERO else -z)


@_plain
def _relu_back(z, positive, negative):
    # chosen, not multiplied: what is blocked may be infinite
    return (ZERO if z <= ZERO else positive) - (ZERO if z >= ZERO else negative)


@_plain
def _elu(z):
    rest = _expm1(-abs(z))
    return (rest if z <= ZERO else z), (rest if z >= ZERO else -z)


@_plain
def _elu_slopes(z):
    flat = _exp(-abs(z))
    return (flat if z <= ZERO else ONE), (flat if z >= ZERO else ONE)


@_plain
def _selu(z):
    rest = _ALPHA * _expm1(-abs(z))
    return _SCALE * (rest if z <= ZERO else z), _SCALE * (rest if z >= ZERO else -z)


@_plain
def _selu_slopes(z):
    flat = _ALPHA * _exp(-abs(z))
    return _SCALE * (flat if z <= ZERO else ONE), _SCALE * (flat if z >= ZERO else ONE)


@_plain
def _shares(z):
    """(sigmoid(z), sigmoid(-z)), the small one exact too."""
    small = _exp(-abs(z))
    large = ONE / (ONE + small)
    small *= large
    return (small if z < ZERO else large), (large if z < ZERO else small)


@_plain
def _silu(z):
    up, down = _shares(z)
    return z * up, -z * down


@_plain
def _silu_slopes(z):
    up, down = _shares(z)
    return up + z * up * down, down - z * up * down


@_plain
def _normal(z):
    """(distribution(z), distribution(-z), density(z)) of the standard normal."""
    size = abs(z) * _ROOT_HALF
    t = ONE / (ONE + _P * size)
    bell = _exp(-size * size)
    small = _HALF * ((((_Q5 * t + _Q4) * t + _Q3) * t + _Q2) * t + _Q1) * t * bell
    large = ONE - small
    return (small if z < ZERO else large), (large if z < ZERO else small), _DENSITY * bell


@_plain
def _gelu(z):
    up, down, _ = _normal(z)
    return z * up, -z * down


@_plain
def _gelu_slopes(z):
    up, down, density = _normal(z)
    return up + z * density, down - z * density


@_plain
def pair(kind, z):
    if kind == 0:
        return _relu(z)
    if kind == 1:
        return _elu(z)
    if kind == 2:
        return _selu(z)
    if kind == 3:
        return _silu(z)
    return _gelu(z)


@_plain
def _slopes(kind, z):
    if kind == 1:
        return _elu_slopes(z)
    if kind == 2:
        return _selu_slopes(z)
    if kind == 3:
        return _silu_slopes(z)
    return _gelu_slopes(z)


@_plain
def chain_rule(kind, z, positive, negative):
    if kind == 0:
        return _relu_back(z, positive, negative)
    up, down = _slopes(kind, z)
    return up * positive - down * negative


# Copied into each caller, where `kind` is a constant, so that the loop holds one kind alone. Rows
# are slices from 0 on: an index that might be negative would keep the compiler from making vectors
# of the loop.
@njit(inline="always")
def _write_pair(kind, z, out, begin, end, inner):
    for row in range(begin, end):
        given = z[row * inner : (row + 1) * inner]
        first, second = (
            out[2 * row * inner : (2 * row + 1) * inner],
            out[(2 * row + 1) * inner : 2 * (row + 1) * inner],
        )
        for i in range(inner):
            positive, negative = pair(kind, given[i])
            first[i] = positive
            second[i] = negative


@njit(inline="always")
def _write_back(kind, gradient, z, out, begin, end, inner):
    for row in range(begin, end):
        given, result = z[row * inner : (row + 1) * inner], out[row * inner : (row + 1) * inner]
        first = gradient[2 * row * inner : (2 * row + 1) * inner]
        second = gradient[(2 * row + 1) * inner : 2 * (row + 1) * inner]
        for i in range(inner):
            result[i] = chain_rule(kind, given[i], first[i], second[i])


_FLOATS, _WHOLE = types.CPointer(types.float32), types.intp


@cfunc(
    types.void(_WHOLE, _FLOATS, _FLOATS, _WHOLE, _WHOLE, _WHOLE), cache=True, error_model="numpy"
)
def _forward(kind, z, out, begin, end, inner):
    given, result = carray(z, end * inner), carray(out, 2 * end * inner)
    if kind == 0:
        _write_pair(0, given, result, begin, end, inner)
    elif kind == 1:
        _write_pair(1, given, result, begin, end, inner)
    elif kind == 2:
        _write_pair(2, given, result, begin, end, inner)
    elif kind == 3:
        _write_pair(3, given, result, begin, end, inner)
    else:
        _write_pair(4, given, result, begin, end, inner)


@cfunc(
    types.void(_WHOLE, _FLOATS, _FLOATS, _FLOATS, _WHOLE, _WHOLE, _WHOLE),
    cache=True,
    error_model="numpy",
)
def _backward(kind, gradient, z, out, begin, end, inner):
    above, given, result = (
        carray(gradient, 2 * end * inner),
        carray(z, end * inner),
        carray(out, end * inner),
    )
    if kind == 0:
        _write_back(0, above, given, result, begin, end, inner)
    elif kind == 1:
        _write_back(1, above, given, result, begin, end, inner)
    elif kind == 2:
        _write_back(2, above, given, result, begin, end, inner)
    elif kind == 3:
        _write_back(3, above, given, result, begin, end, inner)
    else:
        _write_back(4, above, given, result, begin, end, inner)


_N, _P_ = ctypes.c_ssize_t, ctypes.c_void_p
# (kind, addresses of z and of the result, first row, row after the last, length of a row of z);
# rows of contiguous memory
forward = ctypes.CFUNCTYPE(None, _N, _P_, _P_, _N, _N, _N)(_forward.address)
# (kind, addresses of the gradient, z and the result, rows and length as before)
backward = ctypes.CFUNCTYPE(None, _N, _P_, _P_, _P_, _N, _N, _N)(_backward.address)
