"""Derivatives that a compiled loop does not give: those carried forward, and those of a
gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from morphogen.errors import Unsupported


def forward_mode() -> bool:
    """Whether derivatives may be carried forward now (`torch.func.jvp`,
    `torch.autograd.forward_ad`). A custom operation would drop them, which reads as a derivative of
    zero.
    """
    # not public: where it is missing, every call goes the longer way
    return bool(getattr(forward_ad, "_current_level", 0) >= 0)


def transformed() -> bool:
    """Whether derivatives are taken in a way that a custom operation does not follow: carried
    forward, or by `torch.func.grad` and its kin. `torch.vmap` alone it follows.
    """
    if forward_mode():
        return True
    if torch.compiler.is_compiling() or not _active():
        return False
    return any(level.key() != _VMAP for level in _levels())


# not public; where the first is missing, every call looks at the second
_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_levels = torch._C._functorch.get_interpreter_stack
_VMAP = torch._C._functorch.TransformType.Vmap


def further() -> bool:
    """Whether a gradient that is computed now may itself be differentiated."""
    return torch.is_grad_enabled() or forward_mode()


def refuse_forward_mode(operation: str) -> None:
    """Raise `Unsupported` where a custom operation itself, as an exported graph calls it, would
    drop derivatives.
    """
    if forward_mode():
        raise Unsupported(
            f"morphogen::{operation} carries no derivatives forward; inside jvp or dual_level, "
            "call the module that it is of, not an exported or compiled graph"
        )


def gradient(
    run: Callable[..., Tensor], inputs: Sequence[Tensor], wanted: Sequence[bool], above: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of run(*inputs), made of plain operations, by the inputs that are `wanted`,
    None for others; they can be differentiated again, in either direction. above: the gradient of
    its result.
    """
    with torch.enable_grad():
        # names of their own, since one input may be computed from another
        names = [
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_(want)
            for t, want in zip(inputs, wanted, strict=True)
        ]
        asked = [name for name, want in zip(names, wanted, strict=True) if want]
        gradients = torch.autograd.grad(
            run(*names), asked, above, create_graph=True, materialize_grads=True
        )
    left = iter(gradients)
    return tuple(next(left) if want else None for want in wanted)


def one_by_one(operation: Callable[..., Any]) -> Callable[..., Any]:
    """A rule of `torch.vmap` for an operation that returns a tuple: examples one after the
    other.
    """

    def mapped(
        info: Any, dims: tuple[Any, ...], *arguments: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        results = []
        for i in range(info.batch_size):
            pairs = zip(arguments, dims, strict=True)
            example = [a.select(d, i) if isinstance(d, int) else a for a, d in pairs]
            results.append(operation(*example))
        stacked = tuple(torch.stack(part) for part in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return mapped
