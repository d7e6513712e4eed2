"""What gaps in rows may be: `fill(model, x, known, samples)`, by importance sampling.

Particles are drawn group by group: a known group multiplies a particle's weight by how likely it
was, a gap is drawn. h comes from q(h | x') where x' is the row with its gaps as the round before
left them, so that

    w = p(h) prod_known p(x_j | x_<j, h) / q(h | x')

which is right whatever x' is; a better x' only gives more even weights. Each particle has an x' of
its own: q is their mean, so that an h that few of them would draw has no weight beyond all others
(balance heuristic), and one in eight stays as it was before anything was known of the gaps.

Source: Veach and Guibas 1995 (balance heuristic).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.density.darn import Darn, bernoulli
from morphogen.density.groups import log_normaliser_of

_ROUNDS = 3
_FRESH = 8  # one x' in so many stays as it was first


@dataclass(frozen=True)
class Filled:
    """Of each row: particles (samples, bits), weights (samples,) that add up to 1, and their
    effective number. log_prob: log p of what is known.
    """

    particles: Tensor
    weights: Tensor
    effective: float
    log_prob: float

    @property
    def means(self) -> Tensor:
        """Expected value of each bit, (bits,): of a category's bits their probabilities."""
        return self.weights @ self.particles


@torch.no_grad()
def fill(model: Darn, x: Tensor, known: Tensor, samples: int = 256) -> list[Filled]:
    """x: (n, bits), whatever in its gaps. known: (n, groups) bool."""
    return [_fill(model, row, own, samples) for row, own in zip(x, known, strict=True)]


def _fill(model: Darn, row: Tensor, known: Tensor, samples: int) -> Filled:
    of = model.groups.group_of_bit
    given = known[of]
    means = model.means.expand(samples, -1)
    fresh = guess = torch.where(given, row, torch.bernoulli(means))
    for _ in range(_ROUNDS if model.stochastic else 1):
        particles, log_weights = _particles(model, row, known, guess)
        weights = log_weights.softmax(0)
        # the next round's q looks at rows that fit what is known
        chosen = torch.multinomial(weights, samples, replacement=True)
        guess = torch.cat([fresh[::_FRESH], particles[chosen[len(fresh[::_FRESH]) :]]])
    effective = float(1 / weights.square().sum())
    log_prob = float(log_weights.logsumexp(0) - torch.tensor(float(samples)).log())
    return Filled(particles, weights.to(row), effective, log_prob)


def _particles(model: Darn, row: Tensor, known: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that agree with what is known, and their log weights in float64."""
    samples = len(guess)
    h = model.encode(guess, bernoulli).h
    log_weights = -_log_q(model, guess, h).double()
    for part in model.log_prior_parts(h):
        log_weights = log_weights + part.double()
    walk = model.decoder(0).walk(samples, model.context(0, h))
    parts = []
    for group in range(len(model.groups)):
        logits = walk.logits_of(group)
        if known[group]:
            value = row[model.groups.slice(group)].expand(samples, -1)
            log_prob = (value * logits).sum(1) - log_normaliser_of(logits)
            log_weights = log_weights + log_prob.double()
        else:
            value = model.groups.draw(logits)
        walk.observe(group, value)
        parts.append(value)
    return torch.cat(parts, 1), log_weights


def _log_q(model: Darn, guess: Tensor, h: tuple[Tensor, ...]) -> Tensor:
    """log of the mean of q(h | x') over all x', (samples,)."""
    own = model.log_posterior(guess, h)
    if not h or model.shape.encoder != "factorial":
        return own
    # only the first layer sees x'; h of each particle under q of each x'
    encoder = model.encoder(0)
    logits = encoder.base(model.encoding(0, guess))
    each = h[0] @ logits.T - torch.nn.functional.softplus(logits).sum(1)
    mean = each.logsumexp(1) - math.log(len(guess))
    return own - each.diagonal() + mean
