"""What bounds need to know of an activation h: its value, its slope, and where h(z) - s z is
stationary.

From the stationary points follows everything else: the least and largest value of h(z) - s z on an
interval, which is the tightest line of slope s on either side of h there (`linear`), the range of h
(s = 0), and the inner maximum of the Lagrangian dual (`dual`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Stationary = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Activation:
    """h, as torch computes it, h', and z where h'(z) = s (any z where there is none), kinks and
    both sides of jumps included. monotone: h does not fall, not even in a jump.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    stationary: Stationary
    monotone: bool = True


def extremes(h: Activation, s: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest h(z) - s z for z in [lower, upper], elementwise."""
    with torch.no_grad():  # where the extreme lies does not move it, to first order
        inside = [torch.nan_to_num(z).clamp(lower, upper) for z in h.stationary(s)]
    places = [lower, upper, *inside]
    values = torch.stack([h.value(z) - s * z for z in places])
    return values.amin(0), values.amax(0)


def _kink(s: Tensor) -> Sequence[Tensor]:
    return (torch.zeros_like(s),)


def _sigmoid(s: Tensor) -> Sequence[Tensor]:
    root = (1 - 4 * s).clamp_min(0).sqrt()
    return tuple(torch.logit((1 + sign * root) / 2) for sign in (-1, 1))


def _tanh(s: Tensor) -> Sequence[Tensor]:
    z = torch.acosh(s.clamp_min(1e-300).rsqrt().clamp_min(1.0))
    return z, -z


def _between(slope: Callable[[Tensor], Tensor], ends: Sequence[float]) -> Stationary:
    """Roots of slope(z) = s on intervals where the slope is monotone, by bisection; off by e, an
    extreme is off by e^2.
    """

    def roots(s: Tensor) -> Sequence[Tensor]:
        found = []
        for low, high in pairwise(ends):
            a, b = torch.full_like(s, low), torch.full_like(s, high)
            rising = slope(b) > slope(a)
            for _ in range(40):
                middle = (a + b) / 2
                above = (slope(middle) > s) == rising
                a, b = torch.where(above, a, middle), torch.where(above, middle, b)
            found.append((a + b) / 2)
        return found

    return roots


def _gelu_slope(z: Tensor) -> Tensor:
    slope: Tensor = torch.special.ndtr(z) + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return slope


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s + z * s * (1 - s)


_FAR = 40.0  # where the slope of GELU and SiLU is that of a ReLU to the last bit
_SILU_BEND = 2.3993572805154  # h'' = 0
_SELU, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

RELU = Activation(torch.relu, lambda z: (z > 0).to(z.dtype), _kink)
ACTIVATIONS: dict[str, Activation] = {
    "relu": RELU,
    "sigmoid": Activation(torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z), _sigmoid),
    "tanh": Activation(torch.tanh, lambda z: 1 - torch.tanh(z).square(), _tanh),
    "elu": Activation(
        F.elu,
        lambda z: torch.exp(z.clamp_max(0)),
        lambda s: (torch.log(s.clamp_min(1e-300)), *_kink(s)),
    ),
    "selu": Activation(
        F.selu,
        lambda z: _SELU * torch.where(z > 0, 1.0, _SELU_ALPHA * torch.exp(z.clamp_max(0))),
        lambda s: (torch.log((s / (_SELU * _SELU_ALPHA)).clamp_min(1e-300)), *_kink(s)),
    ),
    "exp": Activation(torch.exp, torch.exp, lambda s: (torch.log(s.clamp_min(1e-300)),)),
    "gelu": Activation(
        F.gelu,
        _gelu_slope,
        _between(_gelu_slope, (-_FAR, -math.sqrt(2), math.sqrt(2), _FAR)),
        False,
    ),
    "silu": Activation(
        F.silu, _silu_slope, _between(_silu_slope, (-_FAR, -_SILU_BEND, _SILU_BEND, _FAR)), False
    ),
    "abs": Activation(torch.abs, torch.sign, _kink, False),
    "square": Activation(torch.square, lambda z: 2 * z, lambda s: (s / 2,), False),
}


def leaky(slope: float) -> Activation:
    """Of a leaky ReLU."""
    return Activation(
        lambda z: F.leaky_relu(z, slope),
        lambda z: torch.where(z > 0, 1.0, slope).to(z.dtype),
        _kink,
        slope >= 0,
    )


def softplus(threshold: float = 20.0) -> Activation:
    """log(1 + e^z) up to `threshold`, above which torch takes z itself: at 20 that is 2e-9 less."""
    after = math.nextafter(threshold, math.inf)

    def stationary(s: Tensor) -> Sequence[Tensor]:
        return torch.logit(s.clamp(0, 1)), torch.full_like(s, threshold), torch.full_like(s, after)

    return Activation(lambda z: F.softplus(z, 1.0, threshold), torch.sigmoid, stationary, False)
