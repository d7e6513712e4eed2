"""Symbols onto an ANS stack and off it again: what all that is packed goes through.

Source: constriction (Bamler 2022, arXiv 2201.01741). A stack gives back last what came first, so
whatever is pushed is pushed in reverse, that it may be popped in order.
"""

from typing import TypeAlias

import constriction
import numpy as np

_BERNOULLI = constriction.stream.model.Bernoulli(perfect=False)
_CATEGORIES = constriction.stream.model.Categorical(perfect=False)
_UNIFORM = constriction.stream.model.Uniform()
_LEAST = 2.0**-20
_DIGIT = 16  # bits of a large uniform number that go at once

Coder: TypeAlias = constriction.stream.stack.AnsCoder
"""The stack."""


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(n, 1) -> (n,) of a bit, (n, k) -> (n, k) of a category. Away from 0 and 1, and rounded to
    float32, so that an exponential that another machine rounds otherwise hardly ever matters.
    """
    if logits.shape[1] == 1:
        p = 1 / (1 + np.exp(-logits[:, 0].clip(-40, 40)))
        p = p.clip(_LEAST, 1 - _LEAST)
    else:
        p = np.exp((logits - logits.max(1, keepdims=True)).clip(-40, 0))
        p = (p / p.sum(1, keepdims=True)).clip(_LEAST, 1)
    return np.asarray(p.astype(np.float32), dtype=np.float64)


def push(coder: Coder, symbols: np.ndarray, p: np.ndarray) -> None:
    """symbols (n,) of bits with p (n,), or of categories with p (n, k)."""
    if len(symbols):
        family = _BERNOULLI if p.ndim == 1 else _CATEGORIES
        coder.encode_reverse(symbols.astype(np.int32), family, np.ascontiguousarray(p))


def pop(coder: Coder, p: np.ndarray) -> np.ndarray:
    """The symbols that were pushed with p."""
    if not len(p):
        return np.zeros(0, dtype=np.int64)
    family = _BERNOULLI if p.ndim == 1 else _CATEGORIES
    return np.asarray(coder.decode(family, np.ascontiguousarray(p)), dtype=np.int64)


def push_counted(coder: Coder, symbols: np.ndarray, counts: np.ndarray) -> None:
    """symbols (n,) that are each as likely as counts (k,) say."""
    if len(symbols) and len(counts) > 1:
        coder.encode_reverse(symbols.astype(np.int32), _listed(counts))


def pop_counted(coder: Coder, rows: int, counts: np.ndarray) -> np.ndarray:
    if not rows or len(counts) < 2:
        return np.zeros(rows, dtype=np.int64)
    return np.asarray(coder.decode(_listed(counts), rows), dtype=np.int64)


def _listed(counts: np.ndarray) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


def push_even(coder: Coder, numbers: np.ndarray, sizes: np.ndarray) -> None:
    """uint64 numbers, each below its size, all equally likely."""
    for digit in range(_digits(sizes)):
        number, size = _digit(numbers, digit), _sizes(sizes, digit)
        some = size > 1
        if some.any():
            coder.encode_reverse(number[some].astype(np.int32), _UNIFORM, size[some])


def pop_even(coder: Coder, sizes: np.ndarray) -> np.ndarray:
    """The numbers that were pushed with these sizes."""
    numbers = np.zeros(len(sizes), dtype=np.uint64)
    for digit in reversed(range(_digits(sizes))):
        size = _sizes(sizes, digit)
        some = size > 1
        if some.any():
            popped = np.asarray(coder.decode(_UNIFORM, size[some]), dtype=np.uint64)
            numbers[some] |= popped << np.uint64(_DIGIT * digit)
    return numbers


def _digits(sizes: np.ndarray) -> int:
    largest = int(sizes.max()) - 1 if len(sizes) else 0
    return -(-largest.bit_length() // _DIGIT)


def _digit(numbers: np.ndarray, digit: int) -> np.ndarray:
    return np.asarray(numbers >> np.uint64(_DIGIT * digit) & np.uint64((1 << _DIGIT) - 1))


def _sizes(sizes: np.ndarray, digit: int) -> np.ndarray:
    """How many values a digit has: of all but the highest 2^16."""
    above = (sizes - np.uint64(1)) >> np.uint64(_DIGIT * digit)
    return np.asarray(np.minimum(above + np.uint64(1), np.uint64(1 << _DIGIT)), dtype=np.int32)
