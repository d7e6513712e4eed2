"""Rows under a `Darn` as bits on an ANS stack, and back: `push_rows`, `pop_rows`.

Bits back: to send x, first pop h from the stack by q(h | x), then push x by p(x | h) and h by p(h).
The receiver, who knows x then, pushes h by q(h | x) and has the stack that was there before. The
price is -log p(x, h) + log q(h | x), in the mean the model's bound.

Rows go in batches of growing size: the first one can only pop bits that lie on the stack already.
Both sides walk column by column, in float64. Where weights are multiples of a power of two and
units are linear, sums have no rounding errors, so that neither a batch's shape nor the machine
matters.

Source: Townsend, Bird, Barber 2019, "Practical lossless compression with latent variables using
bits back coding" (arXiv 1901.04866), section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from morphogen.density.autoregressive import AutoregressiveBernoulli
from morphogen.density.darn import Darn
from morphogen.errors import DataError
from morphogen.packing.coder import Coder, pop, probabilities, push
from morphogen.packing.model import Model, above_of, strip_length

MOST_BATCH = 4096
_SPARE = 2  # words that stay on the stack whatever is popped
_SEED_BITS = 30  # that the first word on the stack has at least, and whatever lies on it


@dataclass(frozen=True)
class Schedule:
    """How rows are cut, which travels along. batch: rows at a time, at most. strip: see
    `strip_length`.
    """

    batch: int
    strip: int


def schedule_for(rows: int) -> Schedule:
    return Schedule(MOST_BATCH, strip_length(rows))


def batches(rows: int, stochastic: bool, most: int = MOST_BATCH) -> list[slice]:
    """1, 2, 4, ... rows up to `most`; all of that size where nothing is popped."""
    found = []
    start = 0
    size = 1 if stochastic else most
    while start < rows:
        found.append(slice(start, min(start + size, rows)))
        start += size
        size = min(2 * size, most)
    return found


@torch.no_grad()
def push_rows(coder: Coder, model: Model, x: np.ndarray) -> bool:
    """x: (n, bits). Returns False where the stack had too few bits to pop."""
    if isinstance(model, AutoregressiveBernoulli):
        _push_strips(coder, model, torch.from_numpy(x).double())
        return True
    for rows in batches(len(x), model.stochastic > 0):
        part = torch.from_numpy(x[rows]).double()
        h = _pop_posterior(coder, model, part)
        if h and coder.num_words() < _SPARE:
            return False
        for level, value in enumerate((part, *h)):
            _push_walk(coder, model.decoder(level), value, model.context(level, h))
    return True


@torch.no_grad()
def pop_rows(coder: Coder, model: Model, rows: int, schedule: Schedule) -> np.ndarray:
    """The rows that were pushed."""
    if isinstance(model, AutoregressiveBernoulli):
        return _pop_strips(coder, model, rows, schedule.strip)
    x = np.zeros((rows, model.groups.bits), dtype=np.float32)
    for part in reversed(batches(rows, model.stochastic > 0, schedule.batch)):
        _check(coder)
        count = part.stop - part.start
        h: list[Tensor] = []
        for level in reversed(range(model.stochastic)):
            context = model.context_of(level + 1, h)
            h.insert(0, _pop_walk(coder, model.decoder(level + 1), count, context))
        value = _pop_walk(coder, model.decoder(0), count, model.context(0, h))
        _push_posterior(coder, model, value, h)
        x[part] = value.numpy()
    return x


def _check(coder: Coder) -> None:
    """What was put on the stack before any row still lies there."""
    if coder.num_valid_bits() < _SEED_BITS:
        raise DataError("the packed file ends before its rows do: it is damaged")


def _push_strips(coder: Coder, model: AutoregressiveBernoulli, x: Tensor) -> None:
    above = above_of(x)
    for rows in reversed(_strips(len(x), strip_length(len(x)))):
        _push_walk(coder, model, x[rows], above[rows])


def _pop_strips(coder: Coder, model: AutoregressiveBernoulli, rows: int, length: int) -> np.ndarray:
    x = np.zeros((rows, model.groups.bits), dtype=np.float32)
    context = torch.zeros(0, model.groups.bits, dtype=torch.float64)
    for number, part in enumerate(_strips(rows, length)):
        _check(coder)
        count = len(range(*part.indices(rows)))
        # the last strip may be shorter than the others
        context = context[:count] if number else context.new_zeros(count, model.groups.bits)
        context = _pop_walk(coder, model, count, context)
        x[part] = context.numpy()
    return x


def _strips(rows: int, length: int) -> list[slice]:
    """The first row of every strip, then the second of every strip, ..."""
    return [slice(start, None, length) for start in range(min(length, rows))]


def _pop_posterior(coder: Coder, model: Darn, x: Tensor) -> list[Tensor]:
    """h of every layer, drawn from q by bits of the stack."""
    h: list[Tensor] = []
    for level in range(model.stochastic):
        p = _posterior(model, level, x, h)
        h.append(torch.from_numpy(pop(coder, p.ravel()).reshape(p.shape)).double())
    return h


def _push_posterior(coder: Coder, model: Darn, x: Tensor, h: Sequence[Tensor]) -> None:
    for level in reversed(range(model.stochastic)):
        p = _posterior(model, level, x, h)
        push(coder, h[level].numpy().ravel(), p.ravel())


def _posterior(model: Darn, level: int, x: Tensor, h: Sequence[Tensor]) -> np.ndarray:
    """q of each unit, (n, units)."""
    below = x if level == 0 else h[level - 1]
    logits = model.encoder(level).base(model.encoding(level, below)).numpy()
    return probabilities(logits.reshape(-1, 1)).reshape(logits.shape)


def _push_walk(
    coder: Coder, layer: AutoregressiveBernoulli, x: Tensor, context: Tensor | None
) -> None:
    walk = layer.walk(len(x), context)
    found = []
    for group in range(len(layer.groups)):
        value = x[:, layer.groups.slice(group)]
        found.append((_symbols(value), probabilities(walk.logits_of(group).numpy())))
        walk.observe(group, value)
    for symbols, p in reversed(found):
        push(coder, symbols, p)


def _symbols(value: Tensor) -> np.ndarray:
    one = value.shape[1] == 1
    return (value[:, 0] if one else value.argmax(1)).numpy()


def _pop_walk(
    coder: Coder, layer: AutoregressiveBernoulli, rows: int, context: Tensor | None
) -> Tensor:
    walk = layer.walk(rows, context)
    parts = []
    for group, size in enumerate(layer.groups.sizes):
        symbols = torch.from_numpy(pop(coder, probabilities(walk.logits_of(group).numpy())))
        if size == 1:
            value = symbols[:, None].double()
        else:
            value = torch.nn.functional.one_hot(symbols, size).double()
        walk.observe(group, value)
        parts.append(value)
    return torch.cat(parts, 1)
