"""What a learned depth or width costs, as terms of the objective: functions layer -> scalar, and
their sum over a model.

LearnedDepth(block, penalty=partial(quadratic, factor=1e-4)) loss = task_loss + penalty(model)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from morphogen.layers.depth import LearnedDepth
from morphogen.layers.protocol import LearnsSize, learns_size
from morphogen.layers.stack import last_weight


def penalty(model: nn.Module) -> Tensor | float:
    """The sum of the penalties of all layers that learn their size, depths and widths; 0.0 where
    there are none.
    """
    total: Tensor | float = 0.0
    for layer in model.modules():
        if learns_size(layer) and layer.penalty is not None:
            total = total + layer.penalty(layer)
    return total


def linear(layer: LearnsSize, factor: float) -> Tensor:
    """factor * w: every unit, or block, costs the same."""
    return factor * layer.w


def quadratic(layer: LearnsSize, factor: float) -> Tensor:
    """factor * w^2. Source: Going Deeper, the w regulariser: a sum of squares without 1/2,
    symmetric about 0.
    """
    return factor * layer.w.square()


def priced(
    layer: LearnedDepth, factor: float, cost: Callable[[nn.Module], float] | None = None
) -> Tensor:
    """factor * sum of gate_i * cost(block i): a depth of large blocks costs more than one of small
    blocks.

    cost: of a block; its number of parameters by default, see `flops` for another. Source: the open
    point of Going Deeper, which charges w alike whatever a block brings.
    """
    costs = [float(parameters(block) if cost is None else cost(block)) for block in layer.blocks]
    gates = layer.gates()
    return factor * (gates * gates.new_tensor(costs)).sum()


def scale_penalty(
    layer: LearnedDepth,
    factor: float,
    free: float = 0.0,
    step: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """factor * sum of s(gate_i) * sum of relu(v^2 - free) over the weights v of block i's last
    affine part.

    Without it a block cheats: it scales itself up by 1/gate instead of paying for a larger w. free:
    squares up to this cost nothing. step: s, the identity by default; `hard_step` and `soft_step`
    of `layers.gate` charge all open blocks alike. Closed blocks cost nothing. Source: Going Deeper,
    the f regulariser on the gamma of the last batch norm. Differs: no shift of the gate by epsilon,
    since the gate's slope at the kink is 0 already.
    """
    gates = layer.gates() if step is None else step(layer.gates())
    terms = [
        torch.relu(last_affine(b).square() - free).sum()
        for b in list(layer.blocks)[: layer.active_blocks]
    ]
    return factor * sum(
        (g * term for g, term in zip(gates, terms, strict=False)), start=gates.new_zeros(())
    )


def last_affine(block: nn.Module) -> Tensor:
    """The weight of a block's last part that has one: the gamma of a norm, or the matrix or kernel
    of a layer.
    """
    if not (name := last_weight(block)):
        raise ValueError(f"{type(block).__name__} has no weight to penalise")
    return block.get_parameter(name)


def parameters(block: nn.Module) -> int:
    """How many parameters a block has."""
    return sum(p.numel() for p in block.parameters())


def flops(example: Tensor) -> Callable[[nn.Module], float]:
    """A cost for `priced`: floating point operations of a block on `example`, counted once for each
    size that it has.
    """
    counted: dict[tuple[tuple[int, ...], ...], float] = {}

    def cost(block: nn.Module) -> float:
        key = tuple(tuple(p.shape) for p in block.parameters())
        if key not in counted:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                block(example)
            counted[key] = float(counter.get_total_flops())
        return counted[key]

    return cost
