"""A model's output before and after a change: `probe(model, example)`, `change_of(...)`."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from morphogen.certify import difference, require_equal
from morphogen.edit.preserve_state import preserve_state
from morphogen.tracing.modes import eval_mode


def probe(model: nn.Module, example: Tensor | tuple[Any, ...] | None) -> Any:
    """The output on the example, for `change_of`; None without one."""
    if example is None:
        return None
    # a model that draws random numbers draws the same ones before and after
    with eval_mode(model), preserve_state(model), torch.no_grad():
        return model(*(example if isinstance(example, tuple) else (example,)))


def change_of(before: Any, after: Any, keeping: object | None) -> float | None:
    """Largest difference of the outputs. Raises `NotExact` where `keeping`, a plan, promised none
    but rounding.
    """
    if before is None:
        return None
    pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
    comparable = [(a, b) for a, b in pairs if _comparable(a, b)]
    seen_before = [a for a, _ in comparable]
    seen_after = [b for _, b in comparable]
    if not keeping:
        return difference(seen_before, seen_after)
    return require_equal(
        "this plan should keep the function",
        seen_before,
        seen_after,
        hint="nothing was changed. Some operation reads units in a way that the trace does not "
        f"show. Plan: {keeping}",
    )


def _comparable(a: object, b: object) -> bool:
    return (
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.is_floating_point()
        and a.shape == b.shape
    )
