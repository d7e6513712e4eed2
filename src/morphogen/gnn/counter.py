"""Random numbers that are a function of what they are for: the same for any number of threads and
in any order.

Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

import numpy as np
from numba import njit

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ONE, _TWO = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_A, _B, _C, _TOP = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 1.0 / 2**53


@njit(cache=True, nogil=True)
def mixed(key, number):
    """A 64 bit key of a key and a whole number."""
    z = key + (np.uint64(number) + np.uint64(1)) * _STEP
    z = (z ^ (z >> _A)) * _ONE
    z = (z ^ (z >> _B)) * _TWO
    return z ^ (z >> _C)


@njit(cache=True, nogil=True)
def uniform(key, number):
    """In (0, 1), never either end."""
    return (np.float64(mixed(key, number) >> _TOP) + 0.5) * _UNIT


@njit(cache=True, nogil=True)
def below(key, number, count):
    """A whole number from 0 to count - 1."""
    return min(np.int64(uniform(key, number) * count), count - 1)


@njit(cache=True, nogil=True)
def stream(seed, epoch, target):
    """The key of one target in one epoch."""
    return mixed(mixed(mixed(np.uint64(0), seed), epoch), target)


@njit(cache=True, nogil=True)
def streams(seed, epoch, targets):
    """The key of each target."""
    keys = np.empty(len(targets), np.uint64)
    for i in range(len(targets)):
        keys[i] = stream(seed, epoch, targets[i])
    return keys
