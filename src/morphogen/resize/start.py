"""How new entries of a tensor start, by what the dimension is for.

The default is function-preserving wherever the new units meet only sums: their outgoing weights are zero.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Start = Callable[[Tensor, int, Tensor, torch.Generator | None], Tensor]
"""(the tensor with its new entries, their dimension, their positions, generator) -> values of the new slices."""


def he(tensor: Tensor, dim: int, new: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal with standard deviation sqrt(2 / fan_in). Source: He et al. 2015, eq. 10. Drawn on the CPU in float64, so that a
    seed gives the same numbers on every device and in every precision."""
    shape = list(tensor.shape)
    fan_in = max(1, math.prod(shape[1:]) if dim == 0 else shape[0])
    shape[dim] = len(new)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * math.sqrt(2 / fan_in)
    return drawn.to(tensor)


def constant(value: float) -> Start:
    """Every new entry is `value`."""

    def start(tensor: Tensor, dim: int, new: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.full_like(tensor.index_select(dim, new), value)

    return start


STARTS: dict[str, Start] = {
    "out": he,
    "own": he,
    "in": constant(0.0),
    "in a group": constant(0.0),
    "value": constant(0.0),
    "bias": constant(0.0),
    "scale": constant(1.0),
    "slope": constant(0.25),
    "mean": constant(0.0),
    "variance": constant(1.0),
}
