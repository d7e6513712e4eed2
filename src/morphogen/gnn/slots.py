"""One number for every node of a graph, -1 between two uses: how compiled loops find what they have
touched, and reset that alone.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from morphogen.layers.kernels.threads import shared

_OWN = threading.local()
# roots that are worth another thread
_LEAST = 8


@contextmanager
def slots_of(nodes: int) -> Iterator[np.ndarray]:
    """(at least nodes,) int32 of -1, which whoever borrows it leaves as it was. One for each
    thread, kept for the next time.
    """
    held = getattr(_OWN, "slots", None)
    if held is None or len(held) < nodes:
        held = np.full(nodes, -1, np.int32)
    _OWN.slots = None  # not again where an interruption leaves it half reset, or a call is nested
    yield held
    _OWN.slots = held


def in_parts(run: Callable[[int, int, np.ndarray], Any], count: int, nodes: int) -> list[Any]:
    """What run(begin, end, slots) gives for consecutive parts of 0 .. count, on as many threads as
    PyTorch uses.
    """
    results: dict[int, Any] = {}

    def part(begin: int, end: int) -> None:
        with slots_of(nodes) as slots:
            results[begin] = run(begin, end, slots)

    shared(part, count, _LEAST)
    return [results[begin] for begin in sorted(results)]
