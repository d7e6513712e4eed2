"""A mixture of independent Bernoullis by expectation maximisation: what stands in the tables of
binary sets as the simplest model with a cause.

    p(x) = sum_k w_k prod_j m_kj^x_j (1 - m_kj)^(1 - x_j)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_SMOOTH = 0.1  # rows that every component has seen, half of them 1
_ROUNDS = 200


@dataclass(frozen=True)
class Bernoullis:
    """log_weights: (k,). means: (k, bits)."""

    log_weights: Tensor
    means: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, k), (n, k)."""
        ones, zeros = self.means.log(), (1 - self.means).log()
        return x @ (ones - zeros).T + zeros.sum(1) + self.log_weights

    def log_prob(self, x: Tensor) -> Tensor:
        """(n,)."""
        return self.log_joint(x).logsumexp(1)


def bernoullis(rows: Tensor, valid: Tensor, components: int, seed: int) -> Bernoullis:
    """The round of expectation maximisation that is best on held out rows, or the last before they
    lose.
    """
    draw = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(rows), generator=draw)[:components]
    # each begins at a row, pulled to the mean of all
    means = (0.25 * rows[some] + 0.75 * rows.mean(0)).clamp(0.01, 0.99)
    best = Bernoullis(torch.full((len(some),), 1 / len(some)).log(), means)
    score = float(best.log_prob(valid).mean())
    for _ in range(_ROUNDS):
        shares = best.log_joint(rows).softmax(1)
        count = shares.sum(0)
        means = (shares.T @ rows + 0.5 * _SMOOTH) / (count + _SMOOTH)[:, None]
        weights = (count + _SMOOTH) / (count + _SMOOTH).sum()
        one = Bernoullis(weights.log(), means.clamp(1e-4, 1 - 1e-4))
        now = float(one.log_prob(valid).mean())
        if now < score + 1e-3:
            return one if now > score else best
        best, score = one, now
    return best
