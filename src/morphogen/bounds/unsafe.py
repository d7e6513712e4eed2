"""What a network must not do, and what a search found out about it."""

from dataclasses import dataclass

from torch import Tensor

MARGIN = 1e-9  # by which a bound, already moved outward by what rounding may do, must clear 0


@dataclass(frozen=True)
class Unsafe:
    """Outputs y with rows y <= limits, all of them. rows: (k, outputs), limits: (k,)."""

    rows: Tensor
    limits: Tensor

    def excess(self, y: Tensor) -> Tensor:
        """By how much outputs (batch, ...) are safe: the largest row's surplus, (batch,); unsafe where it is at most 0."""
        return (y.flatten(1) @ self.rows.T - self.limits).amax(1)


@dataclass(frozen=True)
class Verdict:
    """status: "unsat" (no input of the box is unsafe: proved), "sat" (witness is one) or "unknown". bound: the excess of every
    input is at least so much. boxes: how many parts were bounded. seconds: that it took."""

    status: str
    bound: float
    witness: Tensor | None = None
    boxes: int = 0
    seconds: float = 0.0
