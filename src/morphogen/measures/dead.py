"""Units whose activation is flat wherever the data takes it: `dead_units(model, x)`."""

from typing import Any

import torch
from torch import Tensor, nn

from morphogen.activations import MODULES
from morphogen.layers.linked import Linked, LKSine
from morphogen.layers.units import unit_dim
from morphogen.tracing.trace import eval_mode

_ACTIVATIONS: tuple[type[nn.Module], ...] = (*MODULES, Linked, LKSine)


def dead_units(
    model: nn.Module, x: Tensor, tolerance: float = 0.0, dim: int | None = None
) -> dict[str, float]:
    """The share of units, by activation module in order of use, whose derivative is zero for every
    row of `x` and at every position; those get no gradient, whatever the loss.

    dim: of the units in what a module is given; by default as `unit_dim` says, and it must be given
    for three dimensions. A linked activation has its own, and a unit of it is dead where both
    halves are flat. tolerance: derivatives up to this size count as zero, in size. Functional
    activations are not seen. The model is run in evaluation mode.
    """
    found: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(_counter(name, found, tolerance, dim))
        for name, module in model.named_modules()
        if isinstance(module, _ACTIVATIONS) and not _inside(model, name)
    ]
    try:
        with eval_mode(model), torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _inside(model: nn.Module, name: str) -> bool:
    """Whether a module is a linked activation's base."""
    parent = name.rpartition(".")[0]
    return bool(name) and isinstance(model.get_submodule(parent), Linked)


def _counter(name: str, found: dict[str, float], tolerance: float, plain: int | None) -> Any:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = module.dim if isinstance(module, (Linked, LKSine)) else plain
        dim = unit_dim(inputs[0].shape, given, f"dead_units of '{name}'")
        with torch.enable_grad():
            z = inputs[0].detach().requires_grad_()
            halves = _halves(module, z)
            slopes = [
                torch.autograd.grad(half.sum(), z, retain_graph=True)[0].abs() for half in halves
            ]
        steepest = torch.stack(slopes).amax(0).movedim(dim, 0).flatten(1).amax(1)
        # a module that is used several times is dead only where it always is
        found[name] = min(found.get(name, 1.0), float((steepest <= tolerance).double().mean()))

    return count


def _halves(module: nn.Module, z: Tensor) -> tuple[Tensor, ...]:
    if isinstance(module, Linked):
        return module.pair(z)
    if isinstance(module, LKSine):
        return z.sin(), z.cos()
    # not a call: hooks would count again; of a copy: it may work in place
    return (type(module).forward(module, z.clone()),)
