"""A model's weights as whole numbers on an ANS stack, and back: `push_weights`, `pop_weights`.

A weight is a whole number times a power of two, one for each tensor. Row by row, first which
weights are not 0, then those. How likely either is, both sides learn from the rows before: no table
travels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from morphogen.packing.coder import Coder, pop, pop_counted, push, push_counted
from morphogen.packing.model import Part, parts_of

MOST = 4096  # the largest whole number
_FADE = 0.97  # of what rows before count
_PRIOR = 2.0  # rows that the tensor's mean counts as


@dataclass(frozen=True)
class Rounding:
    """Of one tensor: a weight is a whole number of 2^-digits, at most `most` of them."""

    digits: int
    most: int


def rounded(part: Part, digits: int) -> tuple[Rounding, np.ndarray]:
    """(rounding, whole numbers in the tensor's shape)."""
    whole = torch.round(part.tensor.detach().double() * 2.0**digits) * part.mask
    numbers = whole.clamp(-MOST, MOST).long().numpy()
    return Rounding(digits, int(np.abs(numbers).max())), numbers


def put(part: Part, rounding: Rounding, numbers: np.ndarray) -> None:
    """Set the tensor to what both sides know of it."""
    values = torch.from_numpy(numbers).double() * 2.0**-rounding.digits
    with torch.no_grad():
        part.tensor.copy_(values)


def push_weights(
    coder: Coder, model: nn.Module, roundings: Sequence[Rounding], numbers: Sequence[np.ndarray]
) -> None:
    for part, rounding, whole in reversed([*zip(parts_of(model), roundings, numbers, strict=True)]):
        _push_tensor(coder, _rows(part.mask.numpy()), _rows(whole), rounding.most)


def pop_weights(coder: Coder, model: nn.Module, roundings: Sequence[Rounding]) -> None:
    """Set the model's tensors."""
    for part, rounding in zip(parts_of(model), roundings, strict=True):
        whole = _pop_tensor(coder, _rows(part.mask.numpy()), rounding.most)
        put(part, rounding, whole.reshape(tuple(part.tensor.shape)))


def bits_of(model: nn.Module, roundings: Sequence[Rounding], numbers: Sequence[np.ndarray]) -> int:
    """What the weights take."""
    coder = Coder()
    push_weights(coder, model, roundings, numbers)
    return int(coder.num_valid_bits())


class _Habits:
    """What the rows so far say of the next: how often a column is not 0, and the values."""

    def __init__(self, columns: int, most: int) -> None:
        self.most = most
        self.seen = np.zeros(columns)
        self.used = np.zeros(columns)
        self.total = np.array([1.0, 0.2])  # entries, and those that are not 0
        sizes = np.abs(self.values())
        self.counts = 2.0 / (1.0 + sizes) ** 2

    def values(self) -> np.ndarray:
        """All numbers but 0."""
        return np.concatenate([np.arange(-self.most, 0), np.arange(1, self.most + 1)])

    def shares(self, mask: np.ndarray) -> np.ndarray:
        mean = self.total[1] / self.total[0]
        share = (self.used + _PRIOR * mean) / (self.seen + _PRIOR)
        return np.asarray(share[mask].clip(0.001, 0.999))

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """Of numbers that are not 0, among `values`."""
        return np.where(numbers < 0, numbers + self.most, numbers + self.most - 1)

    def learn(self, mask: np.ndarray, numbers: np.ndarray) -> None:
        """numbers: those of the mask."""
        used = numbers != 0
        self.total += [len(numbers), used.sum()]
        self.seen[mask] = self.seen[mask] * _FADE + 1
        self.used[mask] = self.used[mask] * _FADE + used
        places = self.places(numbers[used])
        self.counts += np.bincount(places, minlength=len(self.counts))


def _rows(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(len(tensor), -1)


def _push_tensor(coder: Coder, masks: np.ndarray, whole: np.ndarray, most: int) -> None:
    if not most:
        return
    habits = _Habits(masks.shape[1], most)
    found = []
    for mask, row in zip(masks, whole, strict=True):
        numbers = row[mask]
        used = numbers[numbers != 0]
        shares = habits.shares(mask)
        found.append((numbers != 0, shares, habits.places(used), habits.counts.copy()))
        habits.learn(mask, numbers)
    for flags, shares, places, counts in reversed(found):
        push_counted(coder, places, counts)
        push(coder, flags, shares)


def _pop_tensor(coder: Coder, masks: np.ndarray, most: int) -> np.ndarray:
    whole = np.zeros(masks.shape, dtype=np.int64)
    if not most:
        return whole
    habits = _Habits(masks.shape[1], most)
    values = habits.values()
    for mask, row in zip(masks, whole, strict=True):
        flags = pop(coder, habits.shares(mask)) > 0
        numbers = np.zeros(len(flags), dtype=np.int64)
        numbers[flags] = values[pop_counted(coder, int(flags.sum()), habits.counts)]
        row[mask] = numbers
        habits.learn(mask, numbers)
    return whole
