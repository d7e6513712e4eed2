"""A model without data: what its shapes alone say about whether it runs."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from morphogen.graph.trace import evaluating


def shapes_of(model: nn.Module) -> nn.Module:
    """A copy of `model` whose tensors have shapes and types, but no data; costs no memory. Tied tensors stay tied."""
    tensors = (*model.parameters(), *model.buffers())
    memo: dict[int, Any] = {}
    for tensor in tensors:
        bare = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
    return copy.deepcopy(model, memo)


def stops(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Exception | None:
    """What stops a model of shapes from running on the shapes of `example`; None where nothing does."""
    args = tree_map(
        lambda v: v.to("meta") if isinstance(v, Tensor) else v, example if isinstance(example, tuple) else (example,)
    )
    try:
        with evaluating(model), torch.no_grad():
            model(*args)
    except Exception as error:
        return error
    return None
