"""What an experiment returns: the page of a paper that was run again."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from morphogen.record import Claim, Curve, Reproduction

Axes = Mapping[str, tuple[str, str]]
"""The labels of x and y by panel."""


@dataclass(frozen=True)
class Paper:
    """What is known of an experiment before it is run."""

    name: str
    title: str
    source: str
    axes: Axes = field(default_factory=dict)


def page(
    paper: Paper,
    settings: Any,
    began: float,
    claims: Iterable[Claim],
    curves: Iterable[Curve],
    notes: Iterable[str] = (),
    faithful: bool = False,
    **more: Any,
) -> Reproduction:
    """settings: a dataclass or a mapping. began: of the clock, `time.perf_counter`. more: other
    fields of `Reproduction`.
    """
    held = settings if isinstance(settings, Mapping) else vars(settings)
    return Reproduction(
        paper.name,
        paper.title,
        paper.source,
        "faithful" if faithful else "default",
        {key: str(value) for key, value in held.items()},
        tuple(claims),
        tuple(curves),
        dict(paper.axes),
        tuple(notes),
        time.perf_counter() - began,
        **more,
    )
