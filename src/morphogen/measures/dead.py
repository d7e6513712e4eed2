"""Units whose activation is flat wherever the data takes it: `dead_units(model, x)`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from morphogen.activations import MODULES
from morphogen.layers.protocol import is_linkage
from morphogen.layers.units import unit_dim
from morphogen.tracing.trace import eval_mode


def dead_units(
    model: nn.Module, x: Tensor, tolerance: float = 0.0, dim: int | None = None
) -> dict[str, float]:
    """The share of units, by activation module in order of use, whose derivative is zero for every
    row of `x` and at every position; those get no gradient, whatever the loss.

    dim: of the units in what a module is given; by default as `unit_dim` says, and it must be given
    for three dimensions. A linked activation has its own, and a unit of it is dead where both
    halves are flat; so has every layer that is a `Linkage` of `layers.protocol`. tolerance:
    derivatives up to this size count as zero, in size. Functional activations are not seen. The
    model is run in evaluation mode.
    """
    shares: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(_counter(name, shares, tolerance, dim))
        for name, module in model.named_modules()
        if _is_activation(module) and not _inside(model, name)
    ]
    try:
        with eval_mode(model), torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return shares


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, tuple(MODULES)) or is_linkage(module)


def _inside(model: nn.Module, name: str) -> bool:
    """Whether a module is a linked activation's base."""
    return bool(name) and is_linkage(model.get_submodule(name.rpartition(".")[0]))


def _counter(
    name: str, shares: dict[str, float], tolerance: float, plain_dim: int | None
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own = module.dim if is_linkage(module) else plain_dim
        dim = unit_dim(inputs[0].shape, own, f"dead_units of '{name}'")
        slopes = _slopes(module, inputs[0])
        steepest = slopes.movedim(dim, 0).flatten(1).amax(1)
        dead = float((steepest <= tolerance).double().mean())
        # a module that is used several times is dead only where it always is
        shares[name] = min(shares.get(name, 1.0), dead)

    return count


def _slopes(module: nn.Module, z: Tensor) -> Tensor:
    """max over the functions g that a unit puts out of |g'(z)|, of the shape of z."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        steepest = torch.zeros_like(z)
        for output in _outputs(module, z):
            (slope,) = torch.autograd.grad(output.sum(), z, retain_graph=True)
            steepest = torch.maximum(steepest, slope.abs())
    return steepest.detach()


def _outputs(module: nn.Module, z: Tensor) -> tuple[Tensor, ...]:
    if is_linkage(module):
        return module.unit_outputs(z)
    # not a call: hooks would count again; of a copy: it may work in place
    return (type(module).forward(module, z.clone()),)
