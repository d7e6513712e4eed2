"""A table of claims as data: a row a figure, with what was published of it and what is accepted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.record import Claim


@dataclass(frozen=True)
class Row:
    """of: a run -> the figure. target: as published. low, high: what is accepted. source: of both,
    with its table or page.
    """

    name: str
    of: Callable[[Any], float]
    target: float | None = None
    low: float | None = None
    high: float | None = None
    source: str = ""


def claimed(rows: Iterable[Row], runs: Sequence[Any], where: str = "") -> list[Claim]:
    """Each row's mean over the runs, one a seed. where: what the names begin with."""
    return [
        over_seeds(
            where + row.name,
            [float(row.of(run)) for run in runs],
            row.target,
            row.low,
            row.high,
            row.source,
        )
        for row in rows
    ]
