"""Networks that read the variables in different orders, and are averaged: `Mixture`.

    p(x) = 1/K sum_k p_k(x in order k)

Source: Uria, Murray and Larochelle 2014 (arXiv 1310.1757), section 5: ensembles over orders.
Differs: each order has a network of its own, not one network that is trained for all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from morphogen.density.conditional import Filled, fill
from morphogen.density.darn import Darn
from morphogen.density.groups import Groups, reordered
from morphogen.density.learn import Training, learn
from morphogen.density.likelihood import Likelihood, log_likelihood
from morphogen.density.search import first


@dataclass(frozen=True)
class Mixture:
    """models: at least one. orders: of each, the groups of a row in the order in which it has
    them; of the first one as they are.
    """

    models: tuple[Darn, ...]
    orders: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(model: Darn) -> "Mixture":
        """Of one network alone."""
        return Mixture((model,), (tuple(range(len(model.groups))),))

    @property
    def groups(self) -> Groups:
        return self.models[0].groups

    def places(self, number: int) -> Tensor:
        """(bits,): for each bit of a model's rows the bit of a row that it is."""
        return reordered(self.groups.sizes, self.orders[number])[1]


def learn_orders(model: Darn, rows: Tensor, valid: Tensor, how: Training, count: int) -> Mixture:
    """`model`, which is trained, and count - 1 others of its shape with other orders."""
    draw = np.random.default_rng(how.seed)
    sizes = model.groups.sizes
    models = [model]
    orders = [tuple(range(len(sizes)))]
    for number in range(1, count):
        order = tuple(int(group) for group in draw.permutation(len(sizes)))
        groups, places = reordered(sizes, order)
        one = first(groups, model.present_shape, rows[:, places], how.seed + number)
        learn(one, rows[:, places], valid[:, places], replace(how, seed=how.seed + number))
        models.append(one)
        orders.append(order)
    return Mixture(tuple(models), tuple(orders))


def log_likelihood_of(mixture: Mixture, x: Tensor, samples: int = 500) -> Likelihood:
    """As `likelihood.log_likelihood`, of each network so many samples."""
    parts = [
        log_likelihood(model, x[:, mixture.places(number)], samples)
        for number, model in enumerate(mixture.models)
    ]
    each = np.stack([part.log_prob for part in parts])
    log_prob = np.logaddexp.reduce(each, axis=0)
    shares = np.exp(each - log_prob)  # of each network in a row's probability
    error = np.sqrt(sum((shares * np.stack([part.error for part in parts])) ** 2))
    effective = np.stack([part.effective for part in parts]).min(0)
    return Likelihood(log_prob - math.log(len(parts)), error, effective, samples)


@torch.no_grad()
def sample(mixture: Mixture, rows: int) -> Tensor:
    """(rows, bits), each row of one of the networks, which is drawn."""
    which = torch.randint(len(mixture.models), (rows,))
    out = mixture.models[0].means.new_empty(rows, mixture.groups.bits)
    for number, model in enumerate(mixture.models):
        own = (which == number).nonzero()[:, 0]
        if len(own):
            out[own[:, None], mixture.places(number)] = model.sample(len(own))
    return out


def filled(mixture: Mixture, x: Tensor, known: Tensor, samples: int = 256) -> list[Filled]:
    """As `conditional.fill`: particles of all networks, each network's by how likely what is known
    of the row is to it.
    """
    each = []
    for number, model in enumerate(mixture.models):
        places = mixture.places(number)
        order = list(mixture.orders[number])
        parts = fill(model, x[:, places], known[:, order], samples)
        back = torch.argsort(places)
        each.append([replace(part, particles=part.particles[:, back]) for part in parts])
    return [_together(parts) for parts in zip(*each, strict=True)]


def _together(parts: Sequence[Filled]) -> Filled:
    log_probs = torch.tensor([part.log_prob for part in parts], dtype=torch.float64)
    shares = log_probs.softmax(0)
    weights = torch.cat(
        [share * part.weights.double() for share, part in zip(shares, parts, strict=True)]
    )
    return Filled(
        torch.cat([part.particles for part in parts]),
        weights.to(parts[0].weights),
        float(1 / weights.square().sum()),
        float(log_probs.logsumexp(0)) - math.log(len(parts)),
    )
