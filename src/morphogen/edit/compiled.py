"""A compiled model that goes on compiled when its structure changes: `compiled(model)`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from morphogen.layers.depth import reading


def compiled(model: nn.Module, **options: Any) -> Callable[..., Any]:
    """`torch.compile(model, dynamic=True, **options)`, set up so that resizes cost at most one
    recompilation in all.

    By default dynamo treats every parameter's shape as fixed: a growing network is compiled anew at
    each step, and after eight times runs uncompiled for ever, with one line in a log. Call it
    instead of `torch.compile`, go on resizing the model itself, and call the result. Sets two
    switches of `torch._dynamo.config` for the process: both say that sizes of parameters and
    modules may change. A compiled graph has a fixed number of blocks of a learned depth: each
    number is compiled once and cached, and which one runs is read from w at every call.
    """
    torch._dynamo.config.force_parameter_static_shapes = False
    torch._dynamo.config.force_nn_module_property_static_shapes = False
    fast = torch.compile(model, dynamic=True, **options)

    def run(*args: Any, **kwargs: Any) -> Any:
        with reading(model):
            return fast(*args, **kwargs)

    return run
