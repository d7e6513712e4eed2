"""Cut an optimizer's state by the same index map as its parameter."""

import math
from typing import Any

import torch
from torch import Tensor

from morphogen.errors import PlanError, Unsupported
from morphogen.resize.plan import NEW

# State that is a scale: it divides, or is the step itself; new entries take the mean of the kept ones. The number says with
# which power of the gradient's second moment it goes. Everything else, the momenta, starts at zero.
SCALES = {
    **dict.fromkeys("exp_avg_sq max_exp_avg_sq square_avg sum row_var col_var variance".split(), 1.0),
    "exp_inf": 0.5, "acc_delta": 0.0, "step_size": 0.0,
}  # fmt: skip

# Adafactor's factors keep one dimension at size 1 whatever the parameter's size there is.
FACTORED = {"row_var": -1, "col_var": -2}


def checked_fresh(fresh: float) -> float:
    """The share of the kept entries' mean second moment that new entries of an optimizer's state start with.

    1: the first steps have the size of the others' (measured: at most 1.2 times the learning rate under Adam), so where new
    units start with small gradients, as behind outgoing weights of zero, they learn slowly for a thousand steps. 0: as in a
    newly built optimizer, but with the old step count: first steps of up to 6.6 times the learning rate under Adam. Between:
    on perceptrons that grow from 8 to 64 units a share of 0.1 was 0.6 to 1.3 points better than 1 at a rate of 3e-3 and as much
    worse at 1e-2; with the better rate for each they are alike (`experiments/growing_controls.py`).

    Errors: `PlanError` below 0.
    """
    if not isinstance(fresh, (int, float)) or not 0 <= fresh < math.inf:
        raise PlanError(f"fresh={fresh!r}; give a share of at least 0, such as 1.0")
    return fresh


def take(tensor: Tensor, dim: int, index: Tensor, fill: float | Tensor = 0.0) -> Tensor:
    """A new tensor whose entry j along `dim` is entry index[j] of `tensor`, or `fill` where index[j] is `NEW`.

    index: whole numbers, on the CPU. fill: a number, or a tensor that broadcasts over the new slices.
    """
    out = tensor.index_select(dim, index.clamp_min(0).to(tensor.device))
    if len(new := (index == NEW).nonzero()[:, 0]):
        shape = [*out.shape[:dim], len(new), *out.shape[dim + 1 :]]
        filled = fill.expand(shape) if isinstance(fill, Tensor) else out.new_full(shape, fill)
        out.index_copy_(dim, new.to(out.device), filled)
    return out


def cut(state: dict[str, Any], shape: torch.Size, dim: int, index: Tensor, name: str, fresh: float = 1.0) -> dict[str, Any]:
    """`state[p]` of an optimizer after dimension `dim` of p, which had `shape`, was changed by `index`.

    A tensor is cut along `dim` where its size there equals the parameter's; size 1 stays; numbers stay. Anything else
    raises `Unsupported` naming the parameter and the entry. Holds for every optimizer of `torch.optim`. fresh: see
    `checked_fresh`.
    """
    return {key: _cut_one(key, value, shape, dim, index, name, fresh) for key, value in state.items()}


def _cut_one(key: str, value: Any, shape: torch.Size, dim: int, index: Tensor, name: str, fresh: float) -> Any:
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
    old = index[index != NEW]
    if key not in SCALES or len(old) in (0, len(index)):
        return take(value, dim, index)
    mean = value.index_select(dim, old.to(value.device)).mean(dim, keepdim=True)
    return take(value, dim, index, mean * fresh ** SCALES[key])
