"""Honest timing on a shared machine: what is compared runs in turns, and ratios are taken within a
turn.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any


def in_turns(
    runs: Mapping[str, Callable[[], Any]], turns: int = 200, warm_up: int = 5
) -> dict[str, list[float]]:
    """Seconds of each, taken one after the other and back again, so that the machine's moods meet
    all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + warm_up):
        for name in list(runs) if turn % 2 else reversed(runs):
            began = time.perf_counter()
            runs[name]()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, list[float]], one: str, other: str) -> float:
    """Of the times of two, the median over the turns."""
    return median(a / b for a, b in zip(times[one], times[other], strict=True))
