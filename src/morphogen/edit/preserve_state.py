"""Running a model only to observe it: `preserve_state(model)`."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from morphogen.random_state import random_kept
from morphogen.tracing.modes import attributes_kept, values_kept


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Under one seed; afterwards buffers, the modules' attributes and the random state are what
    they were.
    """
    with random_kept(0), values_kept(model.buffers()), attributes_kept(model):
        yield
