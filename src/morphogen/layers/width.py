"""A layer whose number of units is one real number that the gradient learns."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError, Unsupported
from morphogen.layers.affine import AFFINE, along_features, in_groups, scale_columns, scale_rows
from morphogen.layers.gate import Gate, exponential
from morphogen.layers.units import unit_dim

_HINT = (
    "put it right before a Linear or Conv, or after one with nothing but ReLU, LeakyReLU and "
    "pooling between"
)


class LearnedWidth(nn.Module):
    """y = x * gate((1 - j / w) / soft) for unit j = 0, 1, ...: as many units as the real number `w`
    asks for.

    Put it after the activation of the layer whose units are learned. A unit's gate falls with its
    place and is 0 from place w on, so units order themselves by importance, new ones (appended)
    start unimportant, and cutting the last is free. `wanted()` says how many should exist; a
    `Controller`, or `morphogen.edit.adapt(..., example=)`, brings them. `freeze` multiplies the
    gates into the layer before and drops what is closed: the learned width ends in a fixed one.

    units: how many exist at first. w: initial width, by default all of them. dim: of the units in
    x; by default as `unit_dim` says, and it must be given for three dimensions. soft: over what
    share of w the gates fall; where it is small, a single useful unit far out holds w there while
    those before it idle. floor: the least width. max_units: the most units that `wanted()` asks
    for, or None. gate: its form, see `layers.gate`. penalty: layer -> scalar, what width costs, see
    `layers.penalty`; without one nothing holds w back. Weight decay helps idle units give way to
    useful ones further out. What is trained is log w: an optimizer's step is a share of the width.

    Source: Errica et al. 2025 (arXiv 2501.15889), units weighted by a decreasing function of their
    place, truncated. Differs: a gate that ends at w instead of an exponential cut at its 0.9
    quantile, so that closing a unit changes nothing; one number and a price instead of a
    distribution and its divergence from a prior.
    """

    def __init__(
        self,
        units: int,
        w: float | None = None,
        *,
        dim: int | None = None,
        soft: float = 1.0,
        floor: float = 1.0,
        max_units: int | None = None,
        gate: Gate = exponential,
        penalty: "Callable[[LearnedWidth], Tensor] | None" = None,
    ) -> None:
        super().__init__()
        w = float(units) if w is None else w
        if not units >= 1:
            raise ShapeError(f"LearnedWidth: units={units}; give at least 1")
        if not (math.isfinite(w) and w > 0):
            raise ShapeError(f"LearnedWidth: w={w}; give a positive number, such as {units}")
        if not soft > 0 or not floor > 0:
            raise ShapeError(
                f"LearnedWidth: soft={soft}, floor={floor}; give positive numbers, such as 1.0"
            )
        self.log_w = nn.Parameter(torch.tensor(math.log(w)))
        # its sums are the places; a tensor of the units' own, so that it grows and shrinks with
        # them
        self.register_buffer("ones", torch.ones(units))
        self.ones: Tensor
        self.dim = dim
        self.soft = soft
        self.floor = floor
        self.max_units = max_units
        self.gate = gate
        self.penalty = penalty

    @property
    def w(self) -> Tensor:
        """The learned width as a scalar that the gradient reaches, at least the floor."""
        w = self.log_w.exp()
        return w + torch.relu(self.floor - w).detach()

    @property
    def width(self) -> float:
        """The learned width w."""
        return float(self.w.detach())

    @property
    def active_units(self) -> int:
        """How many units have an open gate: ceil(w), at most those that exist."""
        w = self.width
        built = len(self.ones)
        return min(math.ceil(w), built) if math.isfinite(w) else built

    def gates(self) -> Tensor:
        """Gate values of the existing units, shape (units,), at least float32."""
        ones = (
            self.ones.float() if self.ones.dtype in (torch.float16, torch.bfloat16) else self.ones
        )
        place = ones.cumsum(0) - 1
        return self.gate((1 - place / self.w.to(ones.dtype)) / self.soft)

    def wanted(self, margin: float = 0.5) -> int:
        """How many units should exist: a chunk (an eighth) more once w exceeds them, fewer once w
        is 1 + `margin` chunks below.

        The margin is a hysteresis; units between w and their number are closed and cost time only.
        """
        w = self.width
        built = len(self.ones)
        chunk = max(1, built // 8)
        if not math.isfinite(w) or built - chunk * (1 + margin) <= w <= built:
            return built
        if w < built:
            return max(1, math.ceil(w))
        wanted = max(built + chunk, math.ceil(w))
        return wanted if self.max_units is None else max(built, min(self.max_units, wanted))

    def reason(self) -> str:
        """Why so many are wanted."""
        return f"learned width w = {self.width:.1f}"

    def unit_tensor(self) -> str:
        """What grows and shrinks with the units."""
        return "ones"

    def size_parameters(self) -> list[nn.Parameter]:
        """log w."""
        return [self.log_w]

    @property
    def scales_units(self) -> bool:
        """Each by its gate."""
        return True

    def count_dim_from_end(self, shape: Sequence[int]) -> None:
        """Make `dim` negative, for an input of this shape."""
        self.dim = unit_dim(shape, self.dim, type(self).__name__) - len(shape)

    def fold_into_producer(self, producer: nn.Module) -> None:
        """The gates go into the rows of its weight and into its bias."""
        if not isinstance(producer, AFFINE) or not along_features(producer, self.dim):
            raise Unsupported(
                f"freeze: a LearnedWidth of dim={self.dim} behind {producer} does not gate its "
                f"features; {_HINT}"
            )
        scale_rows(producer, self.gates())

    def fold_into_consumer(self, consumer: nn.Module) -> None:
        """The gates go into the columns of its weight."""
        if (
            not isinstance(consumer, AFFINE)
            or in_groups(consumer)
            or not along_features(consumer, self.dim)
        ):
            raise Unsupported(
                f"freeze: a LearnedWidth before {type(consumer).__name__} cannot be folded; {_HINT}"
            )
        scale_columns(consumer, self.gates())

    def forward(self, x: Tensor) -> Tensor:
        dim = unit_dim(x.shape, self.dim, "LearnedWidth")
        if x.shape[dim] != len(self.ones):
            raise ShapeError(
                f"LearnedWidth: {len(self.ones)} units, but an input of shape {tuple(x.shape)} has "
                f"{x.shape[dim]} in dimension {dim}; give the dimension of the units as dim="
            )
        return x * self.gates().to(x.dtype).view(-1, *[1] * (x.dim() - 1 - dim))

    def extra_repr(self) -> str:
        return f"w={self.width:.2f}, units={len(self.ones)}"
