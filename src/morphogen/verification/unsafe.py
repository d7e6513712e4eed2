"""What a network must not do, and what a search found out about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morphogen.bounds.box import InputSet
from morphogen.errors import ShapeError


@dataclass(frozen=True)
class Unsafe:
    """Outputs y with rows y <= limits, all of them; no rows are all outputs. rows: (k, outputs),
    limits: (k,). strict: (k,), the rows with < in the place of <=; none by default.
    """

    rows: Tensor
    limits: Tensor
    strict: Tensor | None = None

    def __post_init__(self) -> None:
        rows = self.rows.to(torch.float64)
        limits = self.limits.to(torch.float64)
        if rows.dim() != 2 or limits.shape != rows.shape[:1]:
            raise ShapeError(
                f"Unsafe: rows is {tuple(rows.shape)}, limits {tuple(limits.shape)}; give (k, "
                "outputs) and (k,)"
            )
        if bool(rows.isnan().any() | limits.isnan().any()):
            raise ShapeError("Unsafe: a row or a limit is NaN; give numbers")
        strict = (
            torch.zeros(len(rows), dtype=torch.bool)
            if self.strict is None
            else self.strict.to(torch.bool)
        )
        if strict.shape != limits.shape:
            raise ShapeError(
                f"Unsafe: strict is {tuple(strict.shape)}, limits {tuple(limits.shape)}; give one "
                "for each row"
            )
        if not len(rows):  # 0 <= 0
            rows, limits, strict = (
                rows.new_zeros(1, rows.shape[1]),
                rows.new_zeros(1),
                strict.new_zeros(1),
            )
        object.__setattr__(self, "strict", strict)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "limits", limits)

    def margin(self, y: Tensor) -> Tensor:
        """By how much outputs (batch, ...) are safe: the largest row's surplus, (batch,); unsafe
        where it is at most 0.
        """
        surplus = y.flatten(1).to(self.rows.dtype) @ self.rows.T - self.limits
        if self.strict is not None:  # what touches its limit is a little too much
            surplus = surplus + torch.finfo(surplus.dtype).tiny * ((surplus == 0) & self.strict).to(
                surplus.dtype
            )
        return surplus.amax(1)

    def missed(self, box: InputSet) -> bool:
        """Whether some strict row cannot hold for any output of a box, (1, ...), found without a
        margin: outputs may touch its limit. Only where nothing is rounded: a single output with
        weight 1 or -1, or no negative term and no positive limit.
        """
        if self.strict is None or not bool(self.strict.any()):
            return False
        lower = box.lower[0].flatten().to(self.rows.dtype)
        upper = box.upper[0].flatten().to(self.rows.dtype)
        sizes = self.rows.abs()
        ends = torch.where(self.rows > 0, lower, -upper)
        least = torch.where(sizes > 0, ends, 0.0)
        alone = ((sizes > 0).sum(1) == 1) & (sizes.amax(1) == 1) & (least.sum(1) >= self.limits)
        signed = (least >= 0).all(1) & (self.limits <= 0)
        return bool(((alone | signed) & self.strict).any())


def margin_of(sets: Sequence[Unsafe], y: Tensor) -> Tensor:
    """Of outputs (batch, ...) the margin of the set that they come nearest to, (batch,)."""
    return torch.stack([each.margin(y) for each in sets]).amin(0)


def stacked(sets: Sequence[Unsafe]) -> tuple[Tensor, Tensor]:
    """(rows (sets, k, outputs), limits (sets, k)), k the most that one has: a row that stands twice
    changes nothing.
    """
    most = max(len(each.rows) for each in sets)
    fill = [torch.arange(most).clamp_max(len(each.rows) - 1) for each in sets]
    pairs = list(zip(sets, fill, strict=True))
    return torch.stack([each.rows[at] for each, at in pairs]), torch.stack(
        [each.limits[at] for each, at in pairs]
    )


@dataclass(frozen=True)
class Verdict:
    """status: "unsat" (no input of the box is unsafe: proved), "sat" (witness is one) or "unknown".
    bound: the margin of every input is at least so much. boxes: how many parts were bounded.
    seconds: that it took.
    """

    status: Literal["sat", "unsat", "unknown"]
    bound: float
    witness: Tensor | None = None
    boxes: int = 0
    seconds: float = 0.0
