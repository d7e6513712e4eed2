"""Gates of a learned depth: how much of block i takes part, from the distance d = w - i.

A gate is 0 for d <= 0, does not fall as d rises, and approaches 1. Source: Going Deeper, section on
the gate and future work.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError

Gate = Callable[[Tensor], Tensor]
"""Distances, shape (count,) -> gates, shape (count,)."""


def exponential(distance: Tensor) -> Tensor:
    """relu(1 - exp(-d)).

    Written as -expm1(-relu(d)): the same value, finite gradients for every d, exact for tiny d, and
    a zero gradient at the kink d = 0, where a depth starts.
    """
    return -torch.expm1(-torch.relu(distance))


class Sharp(nn.Module):
    """relu(1 - exp(-a d)) with a trainable sharpness a > 0: how suddenly a block takes part.

    a: the initial sharpness; what is trained is log a.
    """

    def __init__(self, a: float = 1.0) -> None:
        super().__init__()
        if not a > 0 or not math.isfinite(a):
            raise ShapeError(f"Sharp: a={a}; give a positive number, such as 1.0")
        self.log_a = nn.Parameter(torch.tensor(math.log(a)))

    def forward(self, distance: Tensor) -> Tensor:
        return exponential(self.log_a.exp() * distance)


def hard_step(gates: Tensor) -> Tensor:
    """1 where a block takes part at all, else 0; no gradient. As a factor of a penalty it makes the
    objective discontinuous.
    """
    return (gates > 0).to(gates.dtype)


def soft_step(gates: Tensor, width: float = 0.05) -> Tensor:
    """1 - exp(-(g/width)^2): 0 with zero slope at 0, nearly 1 from 2 * width on."""
    return -torch.expm1(-(gates / width).square())
