"""Sets of values with a lower and an upper bound each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.errors import ShapeError


@dataclass(frozen=True)
class Box:
    """All x with lower <= x <= upper, elementwise; the leading dimension counts boxes."""

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ShapeError(f"Box: lower is {tuple(self.lower.shape)}, upper {tuple(self.upper.shape)}; give one shape")
        if not self.lower.is_meta and bool((self.lower > self.upper).any()):
            place = tuple((self.lower > self.upper).nonzero()[0].tolist())
            raise ShapeError(
                f"Box: lower {float(self.lower[place])} is above upper {float(self.upper[place])} at {place}; the box is empty"
            )
        if bool(self.lower.isnan().any() | self.upper.isnan().any()):
            raise ShapeError("Box: a bound is NaN; give numbers")

    @property
    def centre(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    def meet(self, other: "Box") -> "Box":
        """What lies in both; both hold what is bounded, so rounding that makes them miss each other is mended."""
        lower, upper = torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper)
        return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))

    def to(self, dtype: torch.dtype) -> "Box":
        return Box(self.lower.to(dtype), self.upper.to(dtype))

    def __getitem__(self, rows: "slice | Tensor") -> "Box":
        return Box(self.lower[rows], self.upper[rows])


def ball(x: Tensor, radius: float, low: float = -torch.inf, high: float = torch.inf) -> Box:
    """All points within `radius` of x in every coordinate, cut to [low, high]. x: (batch, ...)."""
    return Box((x - radius).clamp(low, high), (x + radius).clamp(low, high))
