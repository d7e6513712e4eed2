"""How many threads PyTorch uses, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads inside, as many as before afterwards; None leaves them as they are. Also a
    decorator.

    Small networks take one: more would wait for each other at every operation, and results would
    depend on how many there are.
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
