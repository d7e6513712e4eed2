"""Sets of inputs: boxes, and what lies in a ball or moves in few places only, inside a box."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from morphogen.bounds.sums import dot, total
from morphogen.errors import ShapeError


class InputSet(Protocol):
    """Inputs of a batch of examples, each in a set of its own that lies in a box. Tensors are
    (batch, *shape).
    """

    @property
    def lower(self) -> Tensor:
        """The lower ends of the box around it."""

    @property
    def upper(self) -> Tensor:
        """The upper ends of the box around it."""

    @property
    def box(self) -> "Box":
        """The smallest box around it that is known."""

    @property
    def is_box(self) -> bool:
        """Whether it is all of its box, so that it can be cut into smaller boxes."""

    def lowest(self, a: Tensor) -> Tensor:
        """The least a . x, (batch, count), of coefficients a (batch, count, *shape)."""

    def lowest_at(self, a: Tensor) -> Tensor:
        """Where a . x is least, (batch, *shape), a too."""

    def inside(self, x: Tensor) -> Tensor:
        """Points of the set near x, (batch, *shape); x itself where it is one."""

    def contains(self, x: Tensor) -> Tensor:
        """Whether points (batch, *shape) are in the set, (batch,)."""

    def intersect(self, other: "InputSet") -> Self:
        """What lies in both, or more than that."""

    def with_signs(self, signs: Tensor) -> Self:
        """What has these signs, or more than that: 1 for at least 0, -1 for at most 0, 0 for any.
        signs: (batch or 1, *shape).
        """

    def as_input(self, dtype: torch.dtype) -> Self:
        """In a network's dtype. Raises `ShapeError` where an end is infinite, or where `dtype` does
        not hold it.
        """

    def __getitem__(self, rows: "slice | Tensor") -> Self:
        """The sets of some examples."""

    def repeated(self, count: int) -> Self:
        """One set as often, without a copy."""


Boxes = Mapping[str, InputSet]
"""By name of a value, the box that holds it; any set of inputs by the input's name."""


@dataclass(frozen=True)
class Box:
    """All x with lower <= x <= upper, elementwise; the leading dimension counts boxes."""

    lower: Tensor
    upper: Tensor
    is_box: ClassVar[bool] = True

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
    def box(self) -> "Box":
        return self

    @property
    def centre(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    def intersect(self, other: InputSet) -> "Box":
        """What lies in both; both hold what is bounded, so rounding that makes them miss each other
        is mended.
        """
        lower = torch.maximum(self.lower, other.lower)
        upper = torch.minimum(self.upper, other.upper)
        return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))

    def with_signs(self, signs: Tensor) -> "Box":
        lower = torch.where(signs > 0, self.lower.clamp_min(0), self.lower)
        upper = torch.where(signs < 0, self.upper.clamp_max(0), self.upper)
        return Box(torch.minimum(lower, upper), torch.maximum(lower, upper))

    def as_input(self, dtype: torch.dtype) -> "Box":
        """In a network's dtype, a little larger where that rounds. Raises `ShapeError` where an end
        is infinite.
        """
        finite = self.lower.isfinite() & self.upper.isfinite()
        if not bool(finite.all()):
            place = tuple((~finite).nonzero()[0].tolist())
            raise ShapeError(
                f"Box: from {float(self.lower[place])} to {float(self.upper[place])} at {place}; "
                "give inputs finite ends"
            )
        return Box(_rounded(self.lower, dtype, -1.0), _rounded(self.upper, dtype, 1.0))

    def __getitem__(self, rows: "slice | Tensor") -> "Box":
        return Box(self.lower[rows], self.upper[rows])

    def repeated(self, count: int) -> "Box":
        return Box(_repeated(self.lower, count), _repeated(self.upper, count))

    def lowest(self, a: Tensor) -> Tensor:
        # a centre - |a| radius
        return dot(a, self.centre[:, None]) - dot(a.abs(), self.radius[:, None])

    def lowest_at(self, a: Tensor) -> Tensor:
        return torch.where(a > 0, self.lower, self.upper)

    def inside(self, x: Tensor) -> Tensor:
        return x.clamp(self.lower, self.upper)

    def contains(self, x: Tensor) -> Tensor:
        return ((x >= self.lower) & (x <= self.upper)).flatten(1).all(1)

    def points(self, count: int, corners: int, generator: torch.Generator | None = None) -> Tensor:
        """Of the box of one example, so many points, (count, *shape), the first ones corners; the
        same ones every time without a generator.
        """
        share = cube_points(count, corners, self.lower.shape[1:], generator=generator)
        return self.lower + self.width * share


@dataclass(frozen=True)
class _Ball:
    """What of a box is near its point `middle`, (batch, *shape); how near, a subclass says."""

    box: Box
    middle: Tensor
    is_box: ClassVar[bool] = False

    @property
    def lower(self) -> Tensor:
        return self.box.lower

    @property
    def upper(self) -> Tensor:
        return self.box.upper

    def intersect(self, other: InputSet) -> Self:
        return self

    def with_signs(self, signs: Tensor) -> Self:
        return self

    def as_input(self, dtype: torch.dtype) -> Self:
        box = _exactly(self.box, self.middle, dtype, type(self).__name__)
        return replace(self, box=box, middle=self.middle.to(dtype))

    def __getitem__(self, rows: "slice | Tensor") -> Self:
        return replace(self, box=self.box[rows], middle=self.middle[rows])

    def repeated(self, count: int) -> Self:
        return replace(self, box=self.box.repeated(count), middle=_repeated(self.middle, count))


@dataclass(frozen=True)
class LpBall(_Ball):
    """What of a box lies within `radius` of its point `middle` in the norm 1 or 2."""

    radius: float
    norm: float

    def lowest(self, a: Tensor) -> Tensor:
        # the larger of the box's and a middle - radius |a|, in the dual norm
        dual = torch.inf if self.norm == 1 else 2.0
        straight = total(a * self.middle[:, None]) - self.radius * a.flatten(2).norm(dual, 2)
        return torch.maximum(self.box.lowest(a), straight)

    def lowest_at(self, a: Tensor) -> Tensor:
        flat = a.flatten(1)
        if self.norm == 1:  # all of it in the one place that counts the most
            most = flat.abs().argmax(1, keepdim=True)
            step = torch.zeros_like(flat).scatter(1, most, 1.0) * flat.sign()
        else:
            step = flat / flat.norm(2, 1, keepdim=True).clamp_min(1e-300)
        return self.box.inside(self.middle - self.radius * step.view_as(a))

    def inside(self, x: Tensor) -> Tensor:
        # a coordinate that is cut to the box comes nearer to the middle, which is in it
        away = self.box.inside(x) - self.middle
        far: Tensor = away.flatten(1).norm(self.norm, 1).view(-1, *[1] * (x.dim() - 1))
        share = (far.clamp_min(1e-300).reciprocal() * self.radius).clamp_max(1.0)
        return self.middle + away * share

    def contains(self, x: Tensor) -> Tensor:
        """As it is computed: a point on the edge may be off by rounding, on either side."""
        far: Tensor = (x - self.middle).flatten(1).norm(self.norm, 1)
        return self.box.contains(x) & (far <= self.radius)


@dataclass(frozen=True)
class L0Ball(_Ball):
    """What of a box differs from its point `middle` in at most `count` coordinates."""

    count: int

    def lowest(self, a: Tensor) -> Tensor:
        # a middle + the `count` least of min a (x - middle), one for each coordinate
        down = a * (self.lower - self.middle)[:, None]
        up = a * (self.upper - self.middle)[:, None]
        best, _ = torch.minimum(down, up).flatten(2).topk(self.count, 2, largest=False)
        return total(a * self.middle[:, None]) + best.sum(2)

    def lowest_at(self, a: Tensor) -> Tensor:
        corner = self.box.lowest_at(a)
        return self._moved(corner - self.middle, (a * (corner - self.middle)).abs())

    def inside(self, x: Tensor) -> Tensor:
        away = self.box.inside(x) - self.middle
        return self._moved(away, away.abs())

    def _moved(self, away: Tensor, weight: Tensor) -> Tensor:
        """The middle moved in the coordinates of the largest weights."""
        most = weight.flatten(1).topk(self.count, 1).indices
        chosen = torch.zeros_like(away).flatten(1).scatter(1, most, 1.0).view_as(away)
        return self.middle + away * chosen

    def contains(self, x: Tensor) -> Tensor:
        return self.box.contains(x) & ((x != self.middle).flatten(1).sum(1) <= self.count)


def _repeated(x: Tensor, count: int) -> Tensor:
    return x.expand(count, *x.shape[1:])


def _rounded(x: Tensor, dtype: torch.dtype, side: float) -> Tensor:
    """In a dtype, no nearer to 0 than x is from its side: -1 down, 1 up."""
    new = x.to(dtype)
    beyond = new.nextafter(torch.full_like(new, side * torch.inf))
    return torch.where(side * new.to(x.dtype) < side * x, beyond, new)


def _exactly(box: Box, middle: Tensor, dtype: torch.dtype, name: str) -> Box:
    """A ball's box in a dtype that holds its numbers: another ball would not be the same."""
    new = box.as_input(dtype)
    for old in (box.lower, box.upper, middle):
        if not torch.equal(old.to(dtype).to(old.dtype), old):
            kind = str(dtype).removeprefix("torch.")
            raise ShapeError(f"{name}: {kind} does not hold its numbers; give it in {kind}")
    return new


def cube_points(
    count: int,
    corners: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """So many points of the unit cube, (count, *shape), the first ones corners; the same ones every
    time without a generator.
    """
    generator = generator or torch.Generator().manual_seed(0)
    share = torch.rand(count, *shape, dtype=dtype, generator=generator)
    share[:corners].round_()
    return share


def unit_cube(*shape: int, dtype: torch.dtype = torch.float32) -> Box:
    """[0, 1] in every coordinate, of one example, (1, *shape)."""
    return Box(torch.zeros(1, *shape, dtype=dtype), torch.ones(1, *shape, dtype=dtype))


def lp_ball(
    x: Tensor,
    radius: float,
    norm: float = torch.inf,
    low: float = -torch.inf,
    high: float = torch.inf,
) -> InputSet:
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
    return LpBall(box, x.clamp(low, high), radius, float(norm))


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
    box = Box(torch.full_like(x, low), torch.full_like(x, high))
    return L0Ball(box, x, count)


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
