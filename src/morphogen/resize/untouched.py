"""Running a model only to look at it: `untouched(model)`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from morphogen.graph.trace import modes_kept


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Under one seed; afterwards buffers, the modes of all modules and the random state are what they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with modes_kept(model), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
