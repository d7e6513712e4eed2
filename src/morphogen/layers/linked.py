"""Linked activations: one unit, two functions of the same sum, so that no unit is flat everywhere.

A linked activation doubles the features: what reads it has twice the columns, [for g(z), for
g(-z)], the positive half first. `looks_linear_` starts these so that the network is linear and
keeps lengths at first; `link` and `unlink`, in `transforms`, rewrite a network that exists.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.errors import ShapeError, Unsupported
from morphogen.layers.affine import AFFINE, along_features, in_groups, mirror_rows
from morphogen.layers.linked_op import linked
from morphogen.layers.protocol import Fold, is_linkage
from morphogen.layers.units import unit_dim

Pair = tuple[Tensor, Tensor]


class Linked(nn.Module):
    """[g(z), g(-z)] for an element-wise activation g: input (..., units, ...), output with twice
    the units in dimension `dim`.

    base: the activation, a module or a function. The backward pass of ReLU, ELU, SELU, SiLU and
    GELU keeps z alone; that of another base what its own does. dim: of the units; by default as
    `unit_dim` says, and it must be given for three dimensions. Source: Riera Molina & Pujol 2017
    (arXiv 1712.02609), the mirror linkage; for ReLU, Shang et al. 2016 (CReLU).
    """

    def __init__(
        self, base: nn.Module | Callable[[Tensor], Tensor], dim: int | None = None
    ) -> None:
        super().__init__()
        self.base = base
        self.dim = dim

    def unit_outputs(self, z: Tensor) -> Pair:
        """Both halves: g(z), g(-z)."""
        return self.base(z), self.base(-z)

    def forward(self, z: Tensor) -> Tensor:
        dim = unit_dim(z.shape, self.dim, type(self).__name__)
        kind = _kind(self.base)
        # whoever reads the graph, and the ONNX file, sees plain operations
        if kind is None or torch.compiler.is_exporting():
            return torch.cat(self.unit_outputs(z), dim)
        return linked(z, kind, dim)

    @property
    def scales_units(self) -> bool:
        """It makes two features of one."""
        return False

    def count_dim_from_end(self, shape: Sequence[int]) -> None:
        """Make `dim` negative, for an input of this shape."""
        self.dim = unit_dim(shape, self.dim, type(self).__name__) - len(shape)

    def fold_into_producer(self, producer: nn.Module) -> nn.Module:
        """The rows of the layer that makes z are mirrored, [z, -z], and the plain activation
        follows.
        """
        if (
            not isinstance(producer, AFFINE)
            or in_groups(producer)
            or not along_features(producer, self.dim)
        ):
            raise self._without_plain_form(f"after {type(producer).__name__}")
        mirror_rows(producer)
        return self._plain_activation(len(producer.weight) // 2)

    def fold_into_consumer(self, consumer: nn.Module) -> None:
        """Refused: what it does, it does to the layer before it."""
        raise self._without_plain_form("that comes first")

    def _without_plain_form(self, where: str) -> Unsupported:
        return Unsupported(
            f"freeze: {type(self).__name__} {where} has no plain form; put a mirror linkage right "
            "behind a Linear or Conv (with groups=1), or behind its batch norm, along its features"
        )

    def _plain_activation(self, units: int) -> nn.Module:
        """The activation of both halves at once."""
        if not isinstance(self.base, nn.Module):
            raise Unsupported(
                f"freeze: Linked({self.base}) links a function; link a module, such as nn.ReLU()"
            )
        return self.base

    def extra_repr(self) -> str:
        return "" if self.dim is None else f"dim={self.dim}"


class LKReLU(Linked):
    """[max(0, z), max(0, -z)]: as long as z, and z can be read off it."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__(nn.ReLU(), dim)


class LKSELU(Linked):
    """SELU, linked."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__(nn.SELU(), dim)


class LKSwish(Linked):
    """z sigmoid(z), linked; the difference of the halves is z."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__(nn.SiLU(), dim)


class LKGELU(Linked):
    """GELU, linked; the difference of the halves is z."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__(nn.GELU(), dim)


class LKELU(Linked):
    """ELU, linked."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__(nn.ELU(), dim)


class LKPReLU(Linked):
    """[p(z), q(-z)], p(u) = max(0, u) + a min(0, u) and q likewise, each with slopes a of its own.

    units: the shape of the slopes: 1 for one slope shared by all, the number of units for one each,
    or the whole shape of an example, (C, H, W), for one for each element, as published. initial:
    their value. frozen: slopes are not trained; with initial=0 that is what the original ran, where
    they never reached the optimizer.
    """

    def __init__(
        self,
        units: int | tuple[int, ...] = 1,
        initial: float = 0.25,
        dim: int | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(F.relu, dim)
        shape = (units,) if isinstance(units, int) else tuple(units)
        if any(size < 1 for size in shape):
            raise ShapeError(
                f"LKPReLU: units={units}; give 1, the number of units, or the shape of an example"
            )
        self.positive, self.negative = (
            nn.Parameter(torch.full(shape, float(initial)), requires_grad=not frozen)
            for _ in range(2)
        )

    def unit_outputs(self, z: Tensor) -> Pair:
        dim = unit_dim(z.shape, self.dim, type(self).__name__)
        positive, negative = (_aligned(slope, z, dim) for slope in (self.positive, self.negative))
        return F.relu(z) - positive * F.relu(-z), F.relu(-z) - negative * F.relu(z)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat(self.unit_outputs(z), unit_dim(z.shape, self.dim, type(self).__name__))

    def count_dim_from_end(self, shape: Sequence[int]) -> None:
        """Likewise; `nn.PReLU`, which it becomes, has its slopes along dimension 1."""
        dim = unit_dim(shape, self.dim, type(self).__name__)
        if dim != 1:
            raise Unsupported(
                f"freeze: LKPReLU along dimension {dim} has no plain form: nn.PReLU has its slopes "
                "along dimension 1; use another linked activation there"
            )
        self.dim = dim - len(shape)

    @torch.no_grad()
    def _plain_activation(self, units: int) -> nn.PReLU:
        if self.positive.dim() > 1:
            raise Unsupported(
                "freeze: LKPReLU with a slope for each element has no plain form; use one for each "
                "unit"
            )
        slopes = [slope.expand(units) for slope in (self.positive, self.negative)]
        plain = nn.PReLU(2 * units).to(self.positive)
        plain.weight.copy_(torch.cat(slopes))
        return plain


class LKSine(nn.Module):
    """[sin(z), cos(z)]: where one is flat, the other is steepest.

    Source: Lewandowski et al. 2025 (deep Fourier features).
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def unit_outputs(self, z: Tensor) -> Pair:
        """Both halves: sin z, cos z."""
        return z.sin(), z.cos()

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat(self.unit_outputs(z), unit_dim(z.shape, self.dim, type(self).__name__))

    def to_plain(self, fold: Fold) -> nn.Module:
        """Refused: torch has no such module."""
        raise Unsupported(
            "freeze: LKSine has no plain form; use a mirror linkage, such as LKReLU, in its place"
        )


_BASES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SELU: "selu", nn.SiLU: "silu"}
_FUNCTIONS: dict[Callable[..., Tensor], str] = {
    F.relu: "relu",
    torch.relu: "relu",
    F.selu: "selu",
    F.silu: "silu",
}


def _kind(base: nn.Module | Callable[[Tensor], Tensor]) -> str | None:
    """The name of a closed form, where `base` has one."""
    match base:
        case nn.GELU() if base.approximate == "none":
            return "gelu"
        case nn.ELU() if base.alpha == 1.0:
            return "elu"
        case nn.Module():
            return _BASES.get(type(base))
    return _FUNCTIONS.get(base)


def _aligned(slope: Tensor, z: Tensor, dim: int) -> Tensor:
    """A slope for each unit stands in the units' dimension; one for each element, or for all, where
    it is.
    """
    if slope.dim() == 1 and len(slope) > 1:
        return slope.view(-1, *[1] * (z.dim() - 1 - dim))
    return slope


# Initialisation
# ----------------------------------------------------------------------------------


def odd_part(base: nn.Module | Callable[[Tensor], Tensor]) -> float | None:
    """c where g(z) - g(-z) = c z for all z: 1 for ReLU, SiLU and GELU, 1 + a for PReLU with one
    slope a; None where there is no such number.
    """
    z = torch.linspace(-4, 4, 65, dtype=torch.float64)
    with torch.no_grad():
        halves = _halves(base, z)
    ratio = ((halves[0] - halves[1]) / z)[z != 0]
    return float(ratio.mean()) if float(ratio.max() - ratio.min()) < 1e-5 else None


def second_moment(base: nn.Module | Callable[[Tensor], Tensor]) -> float:
    """E[g(z)^2 + g(-z)^2] / 2 for a standard normal z: the share of a sum's variance that each of
    the two halves passes on.

    By the trapezoid rule on 4,001 points. Rectifiers pass on the same share of any variance, others
    of this one.
    """
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    with torch.no_grad():
        halves = _halves(base, z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid((halves[0].square() + halves[1].square()) / 2 * density, z))


def _halves(base: nn.Module | Callable[[Tensor], Tensor], z: Tensor) -> Pair:
    """Both halves at numbers z, (n,), that stand for no units."""
    if isinstance(base, LKPReLU):
        base = _with_mean_slopes(base)
    if is_linkage(base):
        first, second = base.unit_outputs(z)
        return first, second
    assert callable(base)
    if isinstance(base, nn.Module) and not any(True for _ in base.parameters()):
        base = base.double()
    return base(z), base(-z)


def _with_mean_slopes(act: LKPReLU) -> LKPReLU:
    averaged = LKPReLU().double()
    averaged.positive.copy_(act.positive.double().mean())
    averaged.negative.copy_(act.negative.double().mean())
    return averaged


@torch.no_grad()
def looks_linear_(layer: nn.Module, scale: float = 1.0) -> nn.Module:
    """Weights [V, -V] / scale for a Linear or Conv that reads a linked activation, biases 0; in
    place, returned.

    V is orthogonal; of a convolution, its middle tap, all others 0. With g(z) - g(-z) = scale * z,
    see `odd_part`, the layer computes V z at first: stacked, the network is linear and keeps
    lengths. V has orthonormal rows or columns, whichever fit. Raises `ShapeError` for other layers
    and for an odd number of inputs. Source: Balduzzi et al. 2017 (arXiv 1702.08591), section 5; the
    kernel, Xiao et al. 2018 (arXiv 1806.05393).
    """
    weight = getattr(layer, "weight", None)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if (
        not isinstance(layer, kinds)
        or not isinstance(weight, Tensor)
        or getattr(layer, "groups", 1) != 1
    ):
        raise ShapeError(
            f"looks_linear_: {layer}; give a Linear, or a Conv with groups=1, that reads a linked "
            "activation"
        )
    if weight.shape[1] % 2:
        raise ShapeError(
            f"looks_linear_: {layer} reads {weight.shape[1]} features; a linked activation gives "
            "an even number"
        )
    half = weight.shape[1] // 2
    square = nn.init.orthogonal_(torch.empty(weight.shape[0], half, dtype=torch.float64)).to(weight)
    weight.zero_()
    tap = weight
    for size in weight.shape[2:]:
        tap = tap.select(2, size // 2)
    tap.copy_(torch.cat([square, -square], 1) / scale)
    if layer.bias is not None:
        layer.bias.zero_()
    return layer


@torch.no_grad()
def variance_(layer: nn.Module, activation: nn.Module | Callable[[Tensor], Tensor]) -> nn.Module:
    """Normal weights of variance 1 / (fan_in * second_moment(activation)), biases 0: a layer that
    reads this linked activation keeps the variance of unit-variance sums; in place, returned.

    That is 2 / fan_in for ReLU, 1 / fan_in for SELU, with the doubled fan_in. For SiLU and GELU the
    share that is passed on grows with the variance, so depth blows it up or lets it vanish: use
    `looks_linear_` there. Source: He et al. 2015, eq. 10, with the second moment of the activation
    in place of 1/2.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        raise ShapeError(f"variance_: {layer} has no weight matrix or kernel")
    nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel() * second_moment(activation)))
    if isinstance(bias := getattr(layer, "bias", None), Tensor):
        bias.zero_()
    return layer
