"""A model's output before and after a change: `probe(model, example)`, `change_of(...)`."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from morphogen.edit.preserve_state import preserve_state
from morphogen.errors import NotExact
from morphogen.tracing.modes import eval_mode


def probe(model: nn.Module, example: Tensor | tuple[Any, ...] | None) -> Any:
    """The output on the example, for `change_of`; None without one."""
    if example is None:
        return None
    # a model that draws random numbers draws the same ones before and after
    with eval_mode(model), preserve_state(model), torch.no_grad():
        return model(*(example if isinstance(example, tuple) else (example,)))


# units of rounding at the largest output: sums in another order, through many layers
_ROUNDING = 1e4


def change_of(before: Any, after: Any, keeping: object | None) -> float | None:
    """Largest difference of the outputs. Raises `NotExact` where `keeping`, a plan, promised none
    but rounding.
    """
    if before is None:
        return None
    largest = 0.0
    for a, b in zip(tree_leaves(before), tree_leaves(after), strict=True):
        if (
            not isinstance(a, Tensor)
            or not a.is_floating_point()
            or not a.numel()
            or a.shape != b.shape
        ):
            continue
        # equal infinities differ by 0; what became NaN differs by NaN, which no bound allows
        change = float(torch.where(a == b, 0.0, (a - b).abs()).max())
        largest = change if math.isnan(change) else max(largest, change)
        scale = max(1.0, float(torch.nan_to_num(a, posinf=0.0, neginf=0.0).abs().max()))
        if keeping and not change <= (allowed := _ROUNDING * torch.finfo(a.dtype).eps * scale):
            raise NotExact(
                f"this plan should keep the function, but the output moved by {change:.2g} "
                f"(allowed {allowed:.2g}); nothing was changed. Some operation feels units in a "
                f"way that the trace does not show. Plan: {keeping}"
            )
    return largest
