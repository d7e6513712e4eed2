"""Cut an optimizer's state by the same index map as its parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from morphogen.errors import Unsupported
from morphogen.resize.plan import NEW

# State that is a scale: it divides, or is the step itself. Everything else, the momenta, starts at zero.
SCALES = frozenset("exp_avg_sq max_exp_avg_sq exp_inf square_avg acc_delta sum step_size row_var col_var variance".split())

# Adafactor's factors keep one dimension at size 1 whatever the parameter's size there is.
FACTORED = {"row_var": -1, "col_var": -2}


def _scaled(key: str, kept: Tensor, dim: int) -> float | Tensor:
    return kept.mean(dim, keepdim=True) if key in SCALES and kept.shape[dim] else 0.0


Fresh = Callable[[str, Tensor, int], float | Tensor]
FRESH: dict[str, Fresh] = {"scaled": _scaled, "zero": lambda key, kept, dim: 0.0}
"""How new entries of an optimizer's state start, from (key, the kept entries, dimension). "scaled": scales take the mean of
the kept ones, so that the first steps have the size of the others' (measured: at most 1.2 times the learning rate under
Adam). "zero": as a newly built optimizer, but with the old step count, so that the first steps are up to 6.6 times the
learning rate under Adam, and there are none under Rprop."""


def take(tensor: Tensor, dim: int, index: Sequence[int], fill: float | Tensor = 0.0) -> Tensor:
    """A new tensor whose entry j along `dim` is entry index[j] of `tensor`, or `fill` where index[j] is `NEW`.

    Fill: a number, or a tensor that broadcasts over the new slices.
    """
    out = tensor.index_select(dim, _positions([max(i, 0) for i in index], tensor))
    if new := [j for j, i in enumerate(index) if i == NEW]:
        shape = [*out.shape[:dim], len(new), *out.shape[dim + 1 :]]
        filled = fill.expand(shape) if isinstance(fill, Tensor) else out.new_full(shape, fill)
        out.index_copy_(dim, _positions(new, tensor), filled)
    return out


def _positions(index: Sequence[int], beside: Tensor) -> Tensor:
    return torch.tensor(index, dtype=torch.long, device=beside.device)


def cut(
    state: dict[str, Any], shape: torch.Size, dim: int, index: Sequence[int], name: str, fresh: Fresh = _scaled
) -> dict[str, Any]:
    """`state[p]` of an optimizer after dimension `dim` of p, which had `shape`, was changed by `index`.

    A tensor is cut along `dim` where its size there equals the parameter's; size 1 stays; numbers stay. Anything else
    raises `Unsupported` naming the parameter and the entry. Holds for every optimizer of `torch.optim`.
    """
    return {key: _cut_one(key, value, shape, dim, index, name, fresh) for key, value in state.items()}


def _cut_one(key: str, value: Any, shape: torch.Size, dim: int, index: Sequence[int], name: str, fresh: Fresh) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        if isinstance(value, (list, tuple, dict)) and value:
            raise Unsupported(f"optimizer state '{key}' of '{name}' is a {type(value).__name__}: no rule to resize it")
        return value.clone() if isinstance(value, Tensor) else value
    if value.dim() != len(shape) or value.shape[dim] not in (1, shape[dim]):
        raise Unsupported(
            f"optimizer state '{key}' of '{name}' has shape {tuple(value.shape)} beside a parameter of shape {tuple(shape)}: "
            "no rule to resize it; rebuild the optimizer after the resize"
        )
    factored = key in FACTORED and dim == FACTORED[key] % value.dim()
    if factored or (value.shape[dim] == 1 and shape[dim] != 1):
        return value.clone()
    kept = take(value, dim, [i for i in index if i != NEW])
    return take(value, dim, index, fresh(key, kept, dim))
