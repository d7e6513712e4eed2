"""What a network must not do, and what a search found out about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.errors import ShapeError



@dataclass(frozen=True)
class Unsafe:
    """Outputs y with rows y <= limits, all of them; no rows are all outputs. rows: (k, outputs), limits: (k,)."""

    rows: Tensor
    limits: Tensor

    def __post_init__(self) -> None:
        rows, limits = self.rows.to(torch.float64), self.limits.to(torch.float64)
        if rows.dim() != 2 or limits.shape != rows.shape[:1]:
            raise ShapeError(f"Unsafe: rows is {tuple(rows.shape)}, limits {tuple(limits.shape)}; give (k, outputs) and (k,)")
        if bool(rows.isnan().any() | limits.isnan().any()):
            raise ShapeError("Unsafe: a row or a limit is NaN; give numbers")
        if not len(rows):  # 0 <= 0
            rows, limits = rows.new_zeros(1, rows.shape[1]), rows.new_zeros(1)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "limits", limits)

    def excess(self, y: Tensor) -> Tensor:
        """By how much outputs (batch, ...) are safe: the largest row's surplus, (batch,); unsafe where it is at most 0."""
        return (y.flatten(1).to(self.rows.dtype) @ self.rows.T - self.limits).amax(1)


def excess_of(sets: Sequence[Unsafe], y: Tensor) -> Tensor:
    """Of outputs (batch, ...) the excess of the set that they come nearest to, (batch,)."""
    return torch.stack([each.excess(y) for each in sets]).amin(0)


def stacked(sets: Sequence[Unsafe]) -> tuple[Tensor, Tensor]:
    """(rows (sets, k, outputs), limits (sets, k)), k the most that one has: a row that stands twice changes nothing."""
    most = max(len(each.rows) for each in sets)
    fill = [torch.arange(most).clamp_max(len(each.rows) - 1) for each in sets]
    pairs = list(zip(sets, fill, strict=True))
    return torch.stack([each.rows[at] for each, at in pairs]), torch.stack([each.limits[at] for each, at in pairs])


@dataclass(frozen=True)
class Verdict:
    """status: "unsat" (no input of the box is unsafe: proved), "sat" (witness is one) or "unknown". bound: the excess of every
    input is at least so much. boxes: how many parts were bounded. seconds: that it took."""

    status: str
    bound: float
    witness: Tensor | None = None
    boxes: int = 0
    seconds: float = 0.0
