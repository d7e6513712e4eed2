"""Training after which there is more to compress: weights of zero, units with one sign, few linear
regions.

Three helpers for any loop: `l1_step(optimizer, price)` after each step, `instability(model, box)`
as a part of the loss, and `adversarial(model, x, y, radius)` in the place of x.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.bounds.box import Box, linf_ball
from morphogen.errors import ShapeError, Unsupported
from morphogen.training.proximal import soft
from morphogen.verification.pgd import descent


@torch.no_grad()
def l1_step(optimizer: Optimizer, price: float) -> None:
    """The proximal step of price * |weights|_1 after an optimizer's step: small weights become
    zero, and not nearly so. Tensors of one dimension, biases and norms, are left alone.

    Momentum takes the loss's gradient 1 / (1 - momentum) times as far as the learning rate says; so
    goes the penalty.
    """
    for group in optimizer.param_groups:
        far = float(group["lr"]) * price / (1 - group.get("momentum", 0.0))
        for parameter in group["params"]:
            if parameter.dim() > 1:
                parameter.copy_(soft(parameter, far))


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # the height of the triangle that a ReLU with both signs needs
    "gap": lambda low, high: torch.where(
        (low < 0) & (high > 0), -low * high / (high - low).clamp_min(1e-12), 0.0
    ),
    "tanh": lambda low, high: -torch.tanh(1 + low * high),
}


def instability(model: nn.Sequential, box: Box, measure: Literal["gap", "tanh"] = "gap") -> Tensor:
    """How far units are from having one sign on boxes, a number to add to a loss, mean over boxes,
    summed over units.

    box: one for each example, (batch, *shape). measure: "gap", u |l| / (u - l) of the bounds l < 0
    < u before a ReLU, else 0; or "tanh", -tanh(1 + l u). Bounds are by interval, through the layers
    of a Sequential. Raises `Unsupported` for another layer.

    Source: "tanh" is Xiao et al. 2019 (arXiv 1809.03008), eq. 4; "gap" the triangle of Ehlers 2017.
    """
    if measure not in MEASURES:
        raise ShapeError(f"instability: measure={measure!r}; give one of {', '.join(MEASURES)}")
    centre = box.centre
    radius = box.radius
    total = torch.zeros(())
    for layer in _flat(model):
        if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            total = (
                total + MEASURES[measure](centre - radius, centre + radius).flatten(1).sum(1).mean()
            )
            low = layer(centre - radius)
            high = layer(centre + radius)
            centre = (low + high) / 2
            radius = (high - low) / 2
            continue
        centre, radius = _move_of(layer)(layer, centre, radius)
    return total


def _move_of(layer: nn.Module) -> "Move":
    """How intervals go through a layer."""
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise Unsupported(
            f"instability: no bounds for padding_mode={layer.padding_mode!r}; pad with zeros"
        )
    for kind, move in _MOVES.items():
        if isinstance(layer, kind):
            return move
    known = ", ".join(kind.__name__ for kind in _MOVES)
    raise Unsupported(
        f"instability: no bounds for {type(layer).__name__}; layers may be ReLU, LeakyReLU, {known}"
    )


def adversarial(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    steps: int = 5,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Inputs within `radius` of x in every coordinate, in [low, high], on which the cross-entropy
    with labels y is large.

    Source: Madry et al. 2018 (arXiv 1706.06083). Differs: steps get shorter, from half the radius
    on.
    """
    if not radius:
        return x
    held = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)

    def score(at: Tensor) -> Tensor:
        return -F.cross_entropy(model(at), y, reduction="none")

    try:
        *_, (worst, _) = descent(score, linf_ball(x, radius, low, high), torch.rand_like(x), steps)
    finally:
        for parameter, wanted in zip(model.parameters(), held, strict=True):
            parameter.requires_grad_(wanted)
    return worst


def _flat(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, nn.Sequential):
        return [layer for child in model for layer in _flat(child)]
    return [model]


Move = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(layer, centre, radius) -> (centre, radius) of the interval behind it."""


def _affine(run: Callable[..., Tensor]) -> Move:
    def move(layer: Any, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        options = (
            ()
            if isinstance(layer, nn.Linear)
            else (layer.stride, layer.padding, layer.dilation, layer.groups)
        )
        return layer(centre), run(radius, layer.weight.abs(), None, *options)

    return move


def _same(layer: Any, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    return layer(centre), layer(radius)


def _monotone(layer: Any, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    low = layer(centre - radius)
    high = layer(centre + radius)
    return (low + high) / 2, (high - low) / 2


_MOVES: dict[type[nn.Module], Move] = {
    nn.Linear: _affine(F.linear),
    nn.Conv1d: _affine(F.conv1d),
    nn.Conv2d: _affine(F.conv2d),
    nn.Conv3d: _affine(F.conv3d),
    nn.Flatten: _same,
    nn.Identity: _same,
    nn.AvgPool2d: _same,
    nn.MaxPool2d: _monotone,
}
