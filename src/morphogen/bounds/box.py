"""Sets of inputs: boxes, and what lies in a ball or moves in few places only, inside a box."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from morphogen.bounds.sums import dot, total
from morphogen.errors import ShapeError


@dataclass(frozen=True)
class Box:
    """All x with lower <= x <= upper, elementwise; the leading dimension counts boxes. whole: that
    is all of them; a set that is a part of its box cannot be cut into boxes.
    """

    lower: Tensor
    upper: Tensor
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ShapeError(
                f"Box: lower is {tuple(self.lower.shape)}, upper {tuple(self.upper.shape)}; give "
                "one shape"
            )
        if not self.lower.is_meta and bool((self.lower > self.upper).any()):
            place = tuple((self.lower > self.upper).nonzero()[0].tolist())
            raise ShapeError(
                f"Box: lower {float(self.lower[place])} is above upper {float(self.upper[place])} "
                f"at {place}; the box is empty"
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

    def intersect(self, other: "Box") -> "Box":
        """What lies in both; both hold what is bounded, so rounding that makes them miss each other
        is mended. A set that is more than a box stays as it is.
        """
        if not self.whole:
            return self
        lower = torch.maximum(self.lower, other.lower)
        upper = torch.minimum(self.upper, other.upper)
        return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))

    def as_input(self, dtype: torch.dtype) -> Self:
        """In a network's dtype, a little larger where that rounds. Raises `ShapeError` where an end
        is infinite, and for a set that is more than a box and would not be the same.
        """
        if not bool((self.lower.isfinite() & self.upper.isfinite()).all()):
            place = tuple((~(self.lower.isfinite() & self.upper.isfinite())).nonzero()[0].tolist())
            raise ShapeError(
                f"Box: from {float(self.lower[place])} to {float(self.upper[place])} at {place}; "
                "give inputs finite ends"
            )
        found = self._each(lambda t: t.to(dtype))
        tensors = [(getattr(self, f.name), getattr(found, f.name)) for f in fields(self)]
        if all(
            torch.equal(new.to(old.dtype), old) for old, new in tensors if isinstance(old, Tensor)
        ):
            return found
        if not self.whole:
            kind = str(dtype).removeprefix("torch.")
            raise ShapeError(
                f"{type(self).__name__}: {kind} does not hold its numbers; give it in {kind}"
            )
        lower, upper = (
            torch.where(
                side * new.to(old.dtype) < side * old,
                new.nextafter(torch.full_like(new, side * torch.inf)),
                new,
            )
            for side, (old, new) in zip((-1.0, 1.0), tensors, strict=True)
        )
        return replace(found, lower=lower, upper=upper)

    def __getitem__(self, rows: "slice | Tensor") -> Self:
        return self._each(lambda t: t[rows])

    def repeated(self, count: int) -> Self:
        """One set as often, without a copy."""
        return self._each(lambda t: t.expand(count, *t.shape[1:]))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def lowest(self, a: Tensor) -> Tensor:
        """The least a . x, (batch, count), of coefficients a (batch, count, *shape)."""
        return dot(a, self.centre[:, None]) - dot(a.abs(), self.radius[:, None])

    def lowest_at(self, a: Tensor) -> Tensor:
        """Where a . x is least, (batch, *shape), a too."""
        return torch.where(a > 0, self.lower, self.upper)

    def inside(self, x: Tensor) -> Tensor:
        """Points of the set near x, (batch, *shape); x itself where it is one."""
        return x.clamp(self.lower, self.upper)

    def points(self, count: int, corners: int) -> Tensor:
        """Of the box of one example, so many points, (count, *shape), the first ones corners; the
        same ones every time.
        """
        share = torch.rand(
            count,
            *self.lower.shape[1:],
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(0),
        )
        share[:corners].round_()
        return self.lower + self.width * share


Boxes = Mapping[str, Box]
"""By name of a value, what holds it; any set of inputs by the input's name."""


@dataclass(frozen=True)
class LpBall(Box):
    """What of a box lies within `radius` of its point `middle` in the norm 1 or 2."""

    middle: Tensor
    radius_: float
    norm: float
    whole: ClassVar[bool] = False

    def lowest(self, a: Tensor) -> Tensor:
        dual = torch.inf if self.norm == 1 else 2.0
        straight = total(a * self.middle[:, None]) - self.radius_ * a.flatten(2).norm(dual, 2)
        return torch.maximum(super().lowest(a), straight)

    def lowest_at(self, a: Tensor) -> Tensor:
        flat = a.flatten(1)
        if self.norm == 1:  # all of it in the one place that counts the most
            step = (
                torch.zeros_like(flat).scatter(1, flat.abs().argmax(1, keepdim=True), 1.0)
                * flat.sign()
            )
        else:
            step = flat / flat.norm(2, 1, keepdim=True).clamp_min(1e-300)
        return super().inside(self.middle - self.radius_ * step.view_as(a))

    def inside(self, x: Tensor) -> Tensor:
        # a coordinate that is cut to the box comes nearer to the middle, which is in it
        away = super().inside(x) - self.middle
        far: Tensor = away.flatten(1).norm(self.norm, 1).view(-1, *[1] * (x.dim() - 1))
        return self.middle + away * (far.clamp_min(1e-300).reciprocal() * self.radius_).clamp_max(
            1.0
        )


@dataclass(frozen=True)
class L0Ball(Box):
    """What of a box differs from its point `middle` in at most `count` coordinates."""

    middle: Tensor
    count: int
    whole: ClassVar[bool] = False

    def lowest(self, a: Tensor) -> Tensor:
        gains = torch.minimum(
            a * (self.lower - self.middle)[:, None], a * (self.upper - self.middle)[:, None]
        ).flatten(2)
        best, _ = gains.topk(self.count, 2, largest=False)
        return total(a * self.middle[:, None]) + best.sum(2)

    def lowest_at(self, a: Tensor) -> Tensor:
        return self.inside(super().lowest_at(a), (a * (super().lowest_at(a) - self.middle)).abs())

    def inside(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        away = super().inside(x) - self.middle
        most = (away.abs() if weight is None else weight).flatten(1).topk(self.count, 1).indices
        moved: Tensor = torch.zeros_like(away).flatten(1).scatter(1, most, 1.0).view_as(away)
        return self.middle + away * moved


def lp_ball(
    x: Tensor,
    radius: float,
    norm: float = torch.inf,
    low: float = -torch.inf,
    high: float = torch.inf,
) -> Box:
    """All points within `radius` of x, (batch, ...), in the norm 1, 2 or infinity, cut to [low,
    high].
    """
    box = linf_ball(x, radius, low, high)
    if norm == torch.inf:
        return box
    if norm not in (1, 2):
        raise ShapeError(f"lp_ball: norm={norm}; give 1, 2 or torch.inf")
    if bool(((x < low) | (x > high)).any()):
        raise ShapeError(f"lp_ball: x leaves [{low}, {high}]; give an x that is there")
    return LpBall(box.lower, box.upper, x.clamp(low, high), radius, float(norm))


def l0_ball(x: Tensor, count: int, low: float, high: float) -> L0Ball:
    """All points that differ from x, (batch, ...), in at most `count` coordinates, which go
    anywhere in [low, high].
    """
    if not 1 <= count <= x[0].numel():
        raise ShapeError(
            f"l0_ball: count={count}; give a number from 1 to {x[0].numel()}, the coordinates of "
            "an input"
        )
    if bool(((x < low) | (x > high)).any()):
        raise ShapeError(f"l0_ball: x leaves [{low}, {high}]; give an x that is there")
    return L0Ball(torch.full_like(x, low), torch.full_like(x, high), x, count)


def bounding_box(rows: Tensor) -> Box:
    """The smallest box that holds all rows, (n, *shape), as one example, (1, *shape)."""
    if not len(rows):
        raise ShapeError("bounding_box: there are no rows; give at least one")
    return Box(rows.amin(0, keepdim=True), rows.amax(0, keepdim=True))


def linf_ball(x: Tensor, radius: float, low: float = -torch.inf, high: float = torch.inf) -> Box:
    """All points within `radius` of x in every coordinate, cut to [low, high]. x: (batch, ...)."""
    if bool(((x + radius < low) | (x - radius > high)).any()):
        raise ShapeError(
            f"linf_ball: nothing within {radius} of x lies in [{low}, {high}]; give an x that is "
            "there"
        )
    return Box((x - radius).clamp(low, high), (x + radius).clamp(low, high))
