"""Ctrl-C once asks a run to come to its end, twice leaves it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SAID = (
    "stopping at the end of this round: the best network so far will be written "
    "(Ctrl-C again to leave at once)"
)


@contextmanager
def stopped_by_hand(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Has `stopping()`: whether Ctrl-C was pressed meanwhile, which is said at once. A second
    Ctrl-C raises `KeyboardInterrupt`, as ever.

    In a thread that is not the main one, where Python handles no signals, nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say(SAID)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
