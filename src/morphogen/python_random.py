"""Python's own random numbers, which the modules of others move as they are imported."""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unmoved() -> Iterator[None]:
    """What the user's `random` holds is afterwards what it was before."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
