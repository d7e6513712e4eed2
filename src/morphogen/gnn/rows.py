"""What the operations over neighbours share: who hears in each entry, and compiled loops over the
rows of a result.
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.gnn.adjacency import Adjacency
from morphogen.layers.kernels.threads import shared

ARGUMENTS = "Tensor indptr, Tensor indices, Tensor into_indptr, Tensor into_indices"
"""Of an operation that is given an `Adjacency`."""

# nodes that are worth another thread
_LEAST = 512


def hearing(adjacency: Adjacency) -> Tensor:
    """(entries,) who hears in each entry."""
    return torch.repeat_interleave(adjacency.degrees())


def compilable(x: Tensor) -> bool:
    """Whether the compiled loops take it."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def run(name: str, given: Sequence[Tensor | float]) -> None:
    """A compiled loop over the rows that given[0] starts."""
    kernel = getattr(_kernels(), name)
    first = given[0]
    assert isinstance(first, Tensor)
    plain = [g.detach().numpy() if isinstance(g, Tensor) else g for g in given]
    like = next(a for a in plain if isinstance(a, np.ndarray) and a.dtype.kind == "f")
    arrays = [a if isinstance(a, np.ndarray) else like.dtype.type(a) for a in plain]
    shared(lambda begin, end: kernel(*arrays, begin, end), len(first) - 1, _LEAST)


@lru_cache(maxsize=1)
def _kernels() -> Any:
    return import_module("morphogen.gnn.kernels")
