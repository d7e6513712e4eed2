"""Counterexamples by descent: `attack(net, unsafe, box)`. It proves nothing where it finds none."""

import torch
from torch import Tensor

from morphogen.bounds.box import Box
from morphogen.bounds.program import Program
from morphogen.bounds.unsafe import Unsafe


def attack(
    net: Program, unsafe: Unsafe, box: Box, restarts: int = 16, steps: int = 30, generator: torch.Generator | None = None
) -> tuple[Tensor, float]:
    """(the input (1, *shape) that comes nearest to being unsafe, its excess), by signed gradient steps from random corners,
    random points and the centre. box: of one example, (1, *shape).

    Source: projected gradient descent, Madry et al. 2018 (arXiv 1706.06083).
    """
    share = torch.rand(restarts, *box.lower.shape[1:], dtype=net.dtype, generator=generator)
    share[: restarts // 2].round_()
    share[:1] = 0.5
    sets = box.repeated(restarts)
    x = sets.inside(box.lower + box.width * share)
    best, least = x[:1], torch.inf
    for step in range(steps + 1):
        x = x.detach().requires_grad_(step < steps)
        excess = unsafe.excess(net(x))
        nearest = excess.detach().min(0)
        if float(nearest.values) < least:
            best, least = x.detach()[nearest.indices][None], float(nearest.values)
        if least <= 0 or step == steps:
            break
        (gradient,) = torch.autograd.grad(excess.sum(), x)
        size = 0.5 * (1 - step / steps)
        x = sets.inside(x.detach() - size * box.width * gradient.sign())
    return best, least
