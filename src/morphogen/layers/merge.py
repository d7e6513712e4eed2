"""How a block's result joins what it was given: functions of (g, f(g), gate) that are g where the
gate is 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Merge = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(g, f(g), gate) of shapes (...), (...), () -> the next g. Source: Going Deeper, the general form
and its future work.
"""


def residual(g: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    """g + gate * f."""
    return g + gate * f


def convex(g: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    """(1 - gate) * g + gate * f, as in a highway network."""
    return torch.lerp(g, f, gate)


def product(g: Tensor, f: Tensor, gate: Tensor) -> Tensor:
    """g * f^gate, for blocks that give positive numbers only."""
    return g * f**gate


def root_product(g: Tensor, f: Tensor, gate: Tensor, eps: float = 1e-6) -> Tensor:
    """g * sqrt((f^2 + eps)^gate), for blocks of either sign."""
    return g * (f.square() + eps) ** (gate / 2)
