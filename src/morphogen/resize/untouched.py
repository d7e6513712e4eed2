"""Running a model only to look at it: `untouched(model)`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from morphogen.draws import own_draws


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Under one seed; afterwards buffers and the random state are what they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with own_draws(0, model):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
