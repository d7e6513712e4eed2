"""The gates of a learned depth over time, as a panel of a reproduction."""

import math
from collections.abc import Sequence

from morphogen.record import Curve


def gate_curves(x: Sequence[float], w: Sequence[float]) -> list[Curve]:
    """One curve for each block that was ever open: relu(1 - exp(i - w))."""
    blocks = max(1, math.ceil(max(w)))
    gates = ((i, tuple(max(0.0, -math.expm1(i - value)) for value in w)) for i in range(blocks))
    return [Curve("gates", f"block {i}", tuple(x), values) for i, values in gates]
