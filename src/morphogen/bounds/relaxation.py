"""Two lines around an activation on an interval, `linear_relaxation(h, box)`: those of CROWN, or
with slopes that are given.

Source: CROWN, Zhang et al. 2018 (arXiv 1811.00866). Differs: lines of an activation other than ReLU
are those of least area, found by search over the slope instead of case by case.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.activations import RELU, Activation, extremes
from morphogen.bounds.box import InputSet


@dataclass(frozen=True)
class LinearRelaxation:
    """On an interval, elementwise:

    lower_slope z + lower_bias <= h(z) <= upper_slope z + upper_bias.
    """

    lower_slope: Tensor
    lower_bias: Tensor
    upper_slope: Tensor
    upper_bias: Tensor


def linear_relaxation(
    h: Activation, box: InputSet, slope: Tensor | None = None
) -> LinearRelaxation:
    """Two lines around h on a box of (batch, ...), as (batch, 1, ...). slope: see
    `crown.Variables`.
    """
    lower = box.lower[:, None]
    upper = box.upper[:, None]
    if h is RELU:
        return _triangle(lower, upper, relu_slope(lower, upper) if slope is None else slope[0])
    below, above = tightest(h, lower, upper) if slope is None else slope
    lower_bias, _ = extremes(h, below, lower, upper)
    _, upper_bias = extremes(h, above, lower, upper)
    return LinearRelaxation(below, lower_bias, above, upper_bias)


def relu_slope(lower: Tensor, upper: Tensor) -> Tensor:
    """Of CROWN's line below a ReLU: 1 where most of the interval is positive, else 0."""
    return (upper > -lower).to(lower.dtype)


def _triangle(lower: Tensor, upper: Tensor, slope: Tensor) -> LinearRelaxation:
    """Around a ReLU on l < 0 < u:

    slope z <= relu(z) <= u / (u - l) (z - l);

    elsewhere it is one of 0 and z itself.
    """
    chord = upper / (upper - lower).clamp_min(1e-300)
    unstable = (lower < 0) & (upper > 0)
    active = (lower >= 0).to(lower.dtype)
    zero = torch.zeros_like(lower)
    below = torch.where(unstable, slope, active)
    above = torch.where(unstable, chord, active)
    return LinearRelaxation(below, zero, above, torch.where(unstable, -chord * lower, zero))


def places(lower: Tensor, upper: Tensor) -> Tensor:
    """17 of them, from end to end of each interval, the first dimension."""
    share = torch.linspace(0, 1, 17, dtype=lower.dtype, device=lower.device)
    return lower + (upper - lower) * share.view(-1, *[1] * lower.dim())


_TURNS = 20
_GOLDEN = 0.6180339887498949


def tightest(h: Activation, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of the lines below and above h with the least area between: that of the line below
    is highest in the middle.

    The height in the middle is concave in the slope below, and convex above, so a search by golden
    section finds it. It looks at h in 17 places; whatever slope it ends with, `extremes` then makes
    the line sound.
    """
    z = places(lower, upper)
    value = h.value(z)
    middle = (lower + upper) / 2
    slope = h.slope(z)
    steepest = slope.amin(0), slope.amax(0)

    def below(s: Tensor) -> Tensor:
        # the highest line of slope s below h has the height s m + min_z (h(z) - s z) at m
        return (value - s * (z - middle)).amin(0)

    def above(s: Tensor) -> Tensor:
        return -(value - s * (z - middle)).amax(0)

    return _golden_section(below, *steepest), _golden_section(above, *steepest)


def _golden_section(height: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Where between a and b a concave function is the highest, elementwise."""
    for _ in range(_TURNS):
        width = _GOLDEN * (b - a)
        one = b - width
        other = a + width
        rising = height(one) < height(other)
        a = torch.where(rising, one, a)
        b = torch.where(rising, b, other)
    return (a + b) / 2
