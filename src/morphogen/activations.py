"""All that is known of an activation, a row each in `ACTIVATIONS`: its module, what torch and ONNX
call it, its value, its slope, and where h(z) - s z is stationary.

From the stationary points follows what bounds need: the least and largest value of h(z) - s z on an
interval, which is the tightest line of slope s on either side of h there (`bounds.crown`), the
range of h (s = 0), and the inner maximum of the Lagrangian dual (`bounds.dual`).

Tracing, bounds, the ONNX reader, generated source, `freeze`, `link` and dead units read this table:
a new activation is a new row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def kinks(*places: float) -> Stationary:
    """Of a function of straight pieces."""
    return lambda s: [torch.full_like(s, place) for place in places]


def inverse(slope: Callable[[Tensor], Tensor], *ends: float) -> Stationary:
    """Roots of slope(z) = s on intervals where the slope is monotone, by bisection.

    Off by e, an extreme is off by e^2.
    """

    def roots(s: Tensor) -> Sequence[Tensor]:
        places = []
        for low, high in pairwise(ends):
            a = torch.full_like(s, low)
            b = torch.full_like(s, high)
            rising = slope(b) > slope(a)
            for _ in range(40):
                middle = (a + b) / 2
                above = (slope(middle) > s) == rising
                a = torch.where(above, a, middle)
                b = torch.where(above, middle, b)
            places.append((a + b) / 2)
        return places

    return roots


# --------------------------------------------------------------------------------------------------
# straight pieces

RELU = Activation(torch.relu, lambda z: (z > 0).to(z.dtype), kinks(0.0))


def leaky_relu(slope: float = 0.01) -> Activation:
    """max(z, slope z), for slopes of at most 1."""
    return Activation(
        lambda z: F.leaky_relu(z, slope),
        lambda z: (z > 0).to(z.dtype) + slope * (z <= 0).to(z.dtype),
        kinks(0.0),
        slope >= 0,
    )


def prelu(slope: Tensor) -> Activation:
    """A leaky ReLU whose slope is a tensor that stretches over the input's last dimensions."""
    return Activation(
        lambda z: torch.where(z > 0, z, slope.to(z.dtype) * z),
        lambda z: torch.where(z > 0, 1.0, slope.to(z.dtype) + torch.zeros_like(z)),
        kinks(0.0),
        bool((slope >= 0).all()),
    )


def hardtanh(low: float = -1.0, high: float = 1.0) -> Activation:
    """z between two ends, which may be infinite."""
    ends = [end for end in (low, high) if math.isfinite(end)]
    return Activation(
        lambda z: z.clamp(low, high),
        lambda z: ((z > low) & (z < high)).to(z.dtype),
        kinks(*ends),
    )


def clamp(low: float | None = None, high: float | None = None) -> Activation | None:
    """`hardtanh` where an end may be left out; None for ends that are tensors."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    return hardtanh(-math.inf if low is None else low, math.inf if high is None else high)


def hardsigmoid() -> Activation:
    """relu6(z + 3) / 6."""
    return Activation(F.hardsigmoid, lambda z: (z.abs() < 3).to(z.dtype) / 6, kinks(-3.0, 3.0))


# --------------------------------------------------------------------------------------------------
# curves

_FAR = 40.0  # where the slope of GELU, SiLU and Mish is that of a ReLU to the last bit
_SELU = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717


def _sigmoid(s: Tensor) -> Sequence[Tensor]:
    root = (1 - 4 * s).clamp_min(0).sqrt()
    return tuple(torch.logit((1 + sign * root) / 2) for sign in (-1, 1))


def _tanh(s: Tensor) -> Sequence[Tensor]:
    z = torch.acosh(s.clamp_min(1e-300).rsqrt().clamp_min(1.0))
    return z, -z


def _log(s: Tensor) -> Tensor:
    return torch.log(s.clamp_min(1e-300))


SIGMOID = Activation(torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z), _sigmoid)
TANH = Activation(torch.tanh, lambda z: 1 - torch.tanh(z).square(), _tanh)
EXP = Activation(torch.exp, torch.exp, lambda s: (_log(s),))
LOG_SIGMOID = Activation(
    F.logsigmoid, lambda z: torch.sigmoid(-z), lambda s: (-torch.logit(s.clamp(0, 1)),)
)
SELU = Activation(
    F.selu,
    lambda z: _SELU * torch.where(z > 0, 1.0, _SELU_ALPHA * torch.exp(z.clamp_max(0))),
    lambda s: (_log(s / (_SELU * _SELU_ALPHA)), torch.zeros_like(s)),
)
ABS = Activation(torch.abs, torch.sign, kinks(0.0), False)
SQUARE = Activation(torch.square, lambda z: 2 * z, lambda s: (s / 2,), False)


def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Activation | None:
    """scale z above 0, scale alpha (e^z - 1) below; None for what is no ELU or SELU."""
    if alpha <= 0 or scale <= 0 or input_scale != 1:
        return None
    return Activation(
        lambda z: torch.ops.aten.elu(z, alpha, scale),
        lambda z: scale * torch.where(z > 0, 1.0, alpha * torch.exp(z.clamp_max(0))),
        lambda s: (_log(s / (scale * alpha)), torch.zeros_like(s)),
    )


def celu(alpha: float = 1.0) -> Activation | None:
    """z above 0, alpha (e^(z / alpha) - 1) below."""
    if alpha <= 0:
        return None
    return Activation(
        lambda z: F.celu(z, alpha),
        lambda z: torch.exp(z.clamp_max(0) / alpha),
        lambda s: (alpha * _log(s), torch.zeros_like(s)),
    )


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation | None:
    """log(1 + e^z) up to `threshold`, above which torch takes z itself: at 20 that is 2e-9 less."""
    if beta != 1:
        return None
    after = math.nextafter(threshold, math.inf)

    def stationary(s: Tensor) -> Sequence[Tensor]:
        both_sides = torch.full_like(s, threshold), torch.full_like(s, after)
        return torch.logit(s.clamp(0, 1)), *both_sides

    return Activation(lambda z: F.softplus(z, 1.0, threshold), torch.sigmoid, stationary, False)


def softsign() -> Activation:
    """z / (1 + |z|)."""

    def stationary(s: Tensor) -> Sequence[Tensor]:
        z = s.clamp_min(1e-300).rsqrt() - 1
        return z, -z

    return Activation(F.softsign, lambda z: (1 + z.abs()).square().reciprocal(), stationary)


def gelu(approximate: str = "none") -> Activation:
    """z times the normal distribution function, or its approximation by tanh."""
    if approximate == "tanh":
        inflection = 1.4185040087908283556  # h'' = 0
        stationary = inverse(_tanh_gelu_slope, -_FAR, -inflection, inflection, _FAR)
        return Activation(
            lambda z: F.gelu(z, approximate="tanh"), _tanh_gelu_slope, stationary, False
        )
    root = math.sqrt(2)
    return Activation(F.gelu, _gelu_slope, inverse(_gelu_slope, -_FAR, -root, root, _FAR), False)


def _gelu_slope(z: Tensor) -> Tensor:
    slope: Tensor = torch.special.ndtr(z) + z * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return slope


def _tanh_gelu_slope(z: Tensor) -> Tensor:
    # h = z (1 + tanh u) / 2, u = c (z + k z^3)
    c = math.sqrt(2 / math.pi)
    k = 0.044715
    t = torch.tanh(c * (z + k * z**3))
    return (1 + t) / 2 + z * (1 - t.square()) * c * (1 + 3 * k * z.square()) / 2


def silu() -> Activation:
    """z sigmoid(z)."""

    def slope(z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s + z * s * (1 - s)

    inflection = 2.3993572805154  # h'' = 0
    return Activation(F.silu, slope, inverse(slope, -_FAR, -inflection, inflection, _FAR), False)


def mish() -> Activation:
    """z tanh(log(1 + e^z))."""

    def slope(z: Tensor) -> Tensor:
        t = torch.tanh(F.softplus(z))
        return t + z * (1 - t.square()) * torch.sigmoid(z)

    inflections = -2.25637639636079312, 1.49057117948542846  # h'' = 0
    return Activation(F.mish, slope, inverse(slope, -_FAR, *inflections, _FAR), False)


def hardswish() -> Activation:
    """z relu6(z + 3) / 6."""

    def slope(z: Tensor) -> Tensor:
        return torch.where(z.abs() < 3, (2 * z + 3) / 6, (z > 0).to(z.dtype))

    def stationary(s: Tensor) -> Sequence[Tensor]:
        return [3 * s - 1.5, *kinks(-3.0, 3.0)(s)]

    return Activation(F.hardswish, slope, stationary, False)


# --------------------------------------------------------------------------------------------------
# the table

Pattern = tuple[Any, ...]
"""What exporters write in place of an operation: (operation, argument, ...), arguments being
patterns, numbers, `X` for the input and `NUMBER` for an option.
"""
X = object()
NUMBER = object()


@dataclass(frozen=True)
class Onnx:
    """What ONNX calls an activation. versions: the first and the last that mean this. options: its
    attributes with their defaults, float32 as they are in a file. function: (input, *options).
    """

    operator: str
    versions: tuple[int, int]
    function: Callable[..., Tensor]
    options: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A row: one activation with all of its options.

    of: options -> the function, None where it is not understood. module: its class, whose
    attributes are called as the options. options: of torch's operation after its input, with their
    defaults. patterns: see `Pattern`. homogeneous: h(c z) = c h(z) for c >= 0. nonnegative: h >= 0.
    zero: h(0) = 0, whatever the options.
    """

    of: Callable[..., Activation | None]
    module: type[nn.Module] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    onnx: Onnx | None = None
    patterns: tuple[Pattern, ...] = ()
    homogeneous: bool = False
    nonnegative: bool = False
    zero: bool = True


def _always(h: Activation) -> Callable[[], Activation]:
    return lambda: h


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    value: Tensor = torch.ops.aten.elu(x, alpha, gamma)
    return value


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return F.hardtanh(alpha * x + beta, 0.0, 1.0)


def _swish(x: Tensor, alpha: float) -> Tensor:
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def _softplus(x: Tensor) -> Tensor:
    """To the last bit: torch's own takes x above 20, where float64 still sees the difference."""
    return F.softplus(x, 1.0, 40.0)


_SELU_OPTIONS = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}
_MIN_MAX = {"min_val": -1.0, "max_val": 1.0}
_ELU_OPTIONS = {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0}
_SOFTPLUS_OPTIONS = {"beta": 1.0, "threshold": 20.0}

# by torch's name of the operation
ACTIVATIONS: Mapping[str, Kind] = {
    "relu": Kind(
        _always(RELU), nn.ReLU, onnx=Onnx("Relu", (6, 14), F.relu), homogeneous=True,
        nonnegative=True,
    ),
    "leaky_relu": Kind(
        leaky_relu, nn.LeakyReLU, {"negative_slope": 0.01},
        Onnx("LeakyRelu", (6, 16), F.leaky_relu, {"alpha": 0.01}), homogeneous=True,
    ),
    "prelu": Kind(prelu, nn.PReLU, {"weight": None}, homogeneous=True),
    "relu6": Kind(lambda: hardtanh(0.0, 6.0), nn.ReLU6, nonnegative=True),
    "hardtanh": Kind(hardtanh, nn.Hardtanh, _MIN_MAX, zero=False),
    "clamp": Kind(clamp, None, {"min": None, "max": None}, zero=False),
    "clamp_min": Kind(clamp, None, {"min": None}, zero=False),
    "clamp_max": Kind(partial(clamp, None), None, {"max": None}, zero=False),
    "hardsigmoid": Kind(
        hardsigmoid, nn.Hardsigmoid,
        onnx=Onnx("HardSigmoid", (6, 22), _hard_sigmoid, {"alpha": 0.2, "beta": 0.5}),
        nonnegative=True, zero=False
    ),
    "hardswish": Kind(hardswish, nn.Hardswish, onnx=Onnx("HardSwish", (14, 22), F.hardswish)),
    "sigmoid": Kind(
        _always(SIGMOID), nn.Sigmoid, onnx=Onnx("Sigmoid", (6, 13), torch.sigmoid),
        nonnegative=True, zero=False
    ),
    "tanh": Kind(_always(TANH), nn.Tanh, onnx=Onnx("Tanh", (6, 13), torch.tanh)),
    "elu": Kind(elu, nn.ELU, _ELU_OPTIONS, Onnx("Elu", (6, 22), F.elu, {"alpha": 1.0})),
    "celu": Kind(celu, nn.CELU, {"alpha": 1.0}, Onnx("Celu", (12, 28), F.celu, {"alpha": 1.0})),
    "selu": Kind(_always(SELU), nn.SELU, onnx=Onnx("Selu", (6, 22), _selu, _SELU_OPTIONS)),
    "gelu": Kind(
        gelu, nn.GELU, {"approximate": "none"},
        Onnx("Gelu", (20, 20), lambda x, how: F.gelu(x, approximate=how), {"approximate": "none"}),
    ),
    "silu": Kind(
        silu, nn.SiLU, onnx=Onnx("Swish", (24, 24), _swish, {"alpha": 1.0}),
        patterns=(("mul", X, ("sigmoid", X)), ("mul", ("sigmoid", X), X)),
    ),
    "mish": Kind(mish, nn.Mish, onnx=Onnx("Mish", (18, 22), F.mish)),
    "softplus": Kind(
        softplus, nn.Softplus, _SOFTPLUS_OPTIONS, Onnx("Softplus", (1, 22), _softplus),
        (("where", ("gt", X, NUMBER), X, ("softplus", X, 1.0, 40.0)),), nonnegative=True, zero=False
    ),
    "softsign": Kind(
        softsign, nn.Softsign, onnx=Onnx("Softsign", (1, 22), F.softsign),
        patterns=(("div", X, ("add", ("abs", X), 1.0)), ("div", X, ("add", 1.0, ("abs", X)))),
    ),
    "log_sigmoid": Kind(
        _always(LOG_SIGMOID), nn.LogSigmoid, patterns=(("log", ("sigmoid", X)),), zero=False
    ),
    "exp": Kind(_always(EXP), onnx=Onnx("Exp", (6, 13), torch.exp), nonnegative=True, zero=False),
    "abs": Kind(
        _always(ABS), onnx=Onnx("Abs", (6, 13), torch.abs), homogeneous=True, nonnegative=True
    ),
    "square": Kind(_always(SQUARE), nonnegative=True),
}  # fmt: skip

MODULES: Mapping[type[nn.Module], Kind] = {
    kind.module: kind for kind in ACTIVATIONS.values() if kind.module is not None
}
"""The rows that are modules, by class."""
