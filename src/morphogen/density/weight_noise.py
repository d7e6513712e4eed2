"""Weights that are drawn anew at each step, and that cost what they say: `WeightNoise`.

    w ~ N(mu, sigma^2),  cost of a row = E_w cost(w) + 1/rows sum KL(N(mu, sigma^2) || N(m, s^2))

m and s^2 are one prior for each tensor, at their optimum: the mean of mu, and the mean of
sigma^2 + (mu - m)^2. A weight that the rows do not need becomes noise, which is what it costs the
least as: no rows have to be held out to say when to end. mu is the model's own weight, and what it
is used with once it is trained.

Source: Graves 2011, "Practical variational inference for neural networks", sections 4 and 5;
Gregor et al. 2014, section 5.2. Differs: sigma's gradient by reparametrisation, not from squared
gradients; a prior for each tensor, not one for all.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from morphogen.density.darn import Darn

FIRST = 0.03  # sigma to begin with


class WeightNoise(nn.Module):
    """An estimator's step with weight noise. step: the estimator. rows: how many there are to learn
    from. The `log_sigma` are trained beside the model.
    """

    def __init__(self, model: Darn, step: Callable[[Darn, Tensor], Tensor], rows: int) -> None:
        super().__init__()
        self.rows = rows
        # an estimator may be a module with weights of its own, which have no noise
        self.step = step
        self.log_sigma = nn.ParameterList(
            torch.full_like(weight, math.log(FIRST)) for weight in model.parameters()
        )

    def forward(self, model: Darn, x: Tensor) -> Tensor:
        noisy = {
            f"model.{name}": weight + log_sigma.exp() * torch.randn_like(weight)
            for (name, weight), log_sigma in zip(
                model.named_parameters(), self.log_sigma, strict=True
            )
        }
        loss: Tensor = functional_call(_Bound(model, self.step), noisy, (x,))
        return loss + self.nats(model) / self.rows

    def nats(self, model: Darn) -> Tensor:
        """What all weights cost."""
        each = [
            divergence_from_best(weight, log_sigma)
            for weight, log_sigma in zip(model.parameters(), self.log_sigma, strict=True)
        ]
        return torch.stack(each).sum()


def divergence_from_best(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(m, s^2)), summed over a tensor, at the m and s^2 that it is least at.
    There sigma^2 + (mu - m)^2 is s^2 in the mean, so that only log(s / sigma) is left.
    """
    if not mu.numel():
        return mu.sum()
    variance = (log_sigma * 2).exp().mean() + (mu - mu.mean()).square().mean()
    return mu.numel() * 0.5 * variance.log() - log_sigma.sum()


class _Bound(nn.Module):
    """A step of one model as a module, whose weights can be replaced for one call."""

    def __init__(self, model: Darn, step: Callable[[Darn, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        # in a list, which is no submodule: its own weights stay as they are
        self.step = [step]

    def forward(self, x: Tensor) -> Tensor:
        return self.step[0](self.model, x)
