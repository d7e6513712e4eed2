"""How likely rows are under a `Darn`: exactly where it has few bits, else by importance sampling.

    exact       log p(x) = log sum_h p(x, h)                        over all 2^bits of h
    importance  log p(x) ~ log 1/S sum_s p(x, h_s) / q(h_s | x)     too low in the mean (Jensen)

Source: Gregor et al. 2014, section 5.1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from morphogen.density.darn import Darn, bernoulli, bernoulli_negentropy
from morphogen.errors import Unsupported

MOST_BITS = 20  # whose configurations are added up
_CHUNK = 2**12  # configurations, or rows times samples, at once


@dataclass(frozen=True)
class Likelihood:
    """Of rows, each (n,), in nats. log_prob: log p(x). error: standard error of each, 0 where it is
    exact. effective: effective sample size, of `samples`.
    """

    log_prob: np.ndarray
    error: np.ndarray
    effective: np.ndarray
    samples: int

    @property
    def mean(self) -> float:
        return float(self.log_prob.mean())

    @property
    def monte_carlo_error(self) -> float:
        """Standard error of the mean by sampling h, for these rows."""
        return float(np.sqrt((self.error**2).sum()) / len(self.error))

    @property
    def data_error(self) -> float:
        """Standard error of the mean by having these rows and no others."""
        rows = len(self.log_prob)
        return float(self.log_prob.std(ddof=1) / math.sqrt(rows)) if rows > 1 else math.inf


def log_likelihood(model: Darn, x: Tensor, samples: int = 500) -> Likelihood:
    """Exact where `model` has no stochastic layer or few bits in it, else from so many samples."""
    bits = sum(model.units)
    return (
        exact(model, x)
        if bits <= MOST_BITS and _cheap(bits, samples)
        else importance(model, x, samples)
    )


def _cheap(bits: int, samples: int) -> bool:
    """Whether all configurations are not many more than the samples asked for."""
    return bits == 0 or 2**bits <= 4 * samples


@torch.no_grad()
def exact(model: Darn, x: Tensor) -> Likelihood:
    """Every configuration of h, in chunks. Raises `Unsupported` for more than `MOST_BITS` bits."""
    bits = sum(model.units)
    if bits > MOST_BITS:
        raise Unsupported(
            f"{bits} stochastic bits have 2^{bits} configurations: at most {MOST_BITS} bits can be "
            "added up exactly; use importance(model, x, samples)"
        )
    rows = []
    for row in x:
        parts = [
            model.log_joint(row.expand(len(h), -1), h.split(model.units, 1))
            for h in configurations(bits, x.dtype)
        ]
        rows.append(torch.cat(parts).double().logsumexp(0))
    log_prob = torch.stack(rows).numpy() if rows else np.empty(0)
    return Likelihood(log_prob, np.zeros(len(x)), np.full(len(x), math.inf), 2**bits)


def configurations(bits: int, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """All rows of so many bits, in chunks (at most 4096, bits)."""
    places = torch.arange(bits)
    for start in range(0, 2**bits, _CHUNK):
        numbers = torch.arange(start, min(start + _CHUNK, 2**bits))
        yield (numbers[:, None] >> places & 1).to(dtype)


@torch.no_grad()
def importance(model: Darn, x: Tensor, samples: int = 500) -> Likelihood:
    """From `samples` draws of q for each row, a few rows at a time, added up in float64."""
    sums = torch.full((len(x),), -math.inf, dtype=torch.float64)
    squares = sums.clone()
    at_once = max(1, _CHUNK // max(len(x), 1))
    for rows in torch.arange(len(x)).split(_CHUNK):
        done = 0
        while done < samples:
            count = min(at_once, samples - done)
            log_p, log_q = log_weights(model, x[rows], count)
            weights = log_p.double() - log_q.double()
            sums[rows] = torch.logaddexp(sums[rows], weights.logsumexp(0))
            squares[rows] = torch.logaddexp(squares[rows], (2 * weights).logsumexp(0))
            done += count
    log_prob = sums - math.log(samples)
    effective = (2 * sums - squares).exp()
    # delta method: the relative error of a mean of weights
    error = (1 / effective - 1 / samples).clamp(min=0).sqrt()
    return Likelihood(log_prob.numpy(), error.numpy(), effective.numpy(), samples)


def log_weights(model: Darn, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """log p(x, h) and log q(h | x) of samples of h, each (samples, n)."""
    rows = x.repeat(samples, 1)
    h = model.encode(rows, bernoulli).h
    log_p = model.log_joint(rows, h)
    log_q = model.log_posterior(rows, h)
    return log_p.view(samples, -1), log_q.view(samples, -1)


@torch.no_grad()
def bound(model: Darn, x: Tensor, repeats: int = 1) -> float:
    """The mean description length of rows in nats, an upper bound of -log p in expectation."""
    costs = [
        model.cost(part, bernoulli).double().sum()
        for _ in range(repeats)
        for part in x.split(_CHUNK)
    ]
    return float(sum(costs) / (repeats * max(1, len(x))))


@torch.no_grad()
def divergence_of_units(model: Darn, x: Tensor) -> tuple[np.ndarray, ...]:
    """For each stochastic layer the mean of KL(q || p) of each unit given those before it, in nats:
    what it costs to send. A unit near 0 says nothing of a row.
    """
    sums = [torch.zeros(size, dtype=torch.float64) for size in model.units]
    for part in x.split(_CHUNK):
        sample = model.encode(part, bernoulli)
        for level, (h, own) in enumerate(zip(sample.h, sample.logits, strict=True)):
            prior = model.decoder(level + 1)(h, model.context(level + 1, sample.h))
            q = torch.sigmoid(own)
            own_log = bernoulli_negentropy(own)
            prior_log = q * prior - torch.nn.functional.softplus(prior)
            sums[level] += (own_log - prior_log).sum(0).double()
    return tuple((total / max(1, len(x))).numpy() for total in sums)
