"""A claim about the mean of a figure over seeds."""

from collections.abc import Sequence
from statistics import mean, stdev

from morphogen.record import Claim


def over_seeds(
    name: str,
    values: Sequence[float],
    target: float | None = None,
    low: float | None = None,
    high: float | None = None,
    source: str = "",
) -> Claim:
    """The mean of `values`, with the standard deviation where there are several."""
    return Claim(
        name, target, mean(values), low, high, stdev(values) if len(values) > 1 else None, source
    )
