"""A model without data: what its shapes alone say about whether it runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.random_state import random_kept
from morphogen.tracing.modes import attributes_kept, eval_mode, on_meta, shapes_of

__all__ = ["shapes_of", "stops"]


def stops(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    mode: Callable[[nn.Module], AbstractContextManager[None]] = eval_mode,
) -> Exception | None:
    """What stops a model of shapes from running on the shapes of `example`; None where nothing
    does.
    """
    try:
        with attributes_kept(model), mode(model), random_kept(), torch.no_grad():
            model(*on_meta(example if isinstance(example, tuple) else (example,)))
    except Exception as error:
        return error
    return None
