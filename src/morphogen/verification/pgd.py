"""Counterexamples by descent: `attack(net, unsafe, box)`. It proves nothing where it finds none."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from morphogen.bounds.box import InputSet, cube_points
from morphogen.tracing.program import Program
from morphogen.verification.unsafe import Unsafe

_CHUNK = 2**22  # numbers in the largest value of as many points as descend at once


def attack(
    net: Program,
    unsafe: Unsafe,
    box: InputSet,
    restarts: int = 16,
    steps: int = 30,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, float]:
    """(the input (1, *shape) that comes nearest to being unsafe, its margin), by signed gradient
    steps from random corners, random points and the centre. box: of one example, (1, *shape).
    generator: None for one of our own. The points of a large network descend some after the others,
    so that no single operation takes long.

    Source: projected gradient descent, Madry et al. 2018 (arXiv 1706.06083).
    """
    share = cube_points(restarts, restarts // 2, box.lower.shape[1:], net.dtype, generator)
    share[:1] = 0.5
    best = box.box.centre
    least = torch.inf
    for part in share.split(max(1, _CHUNK // max(map(math.prod, net.shapes.values())))):
        point, margin = nearest(
            lambda x: unsafe.margin(net(x)), box.repeated(len(part)), part, steps
        )
        if margin < least:
            best = point
            least = margin
        if least <= 0:
            break
    return best, least


def nearest(
    score: Callable[[Tensor], Tensor], sets: InputSet, share: Tensor, steps: int
) -> tuple[Tensor, float]:
    """(the point (1, *shape) of the least score on a `descent`, its score); the first that is not
    above 0 ends it.
    """
    best = sets.box.centre[:1]
    least = torch.inf
    for x, value in descent(score, sets, share, steps):
        lowest, at = value.min(0)
        if float(lowest) < least:
            best = x[at][None]
            least = float(lowest)
        if least <= 0:
            break
    return best, least


def descent(
    score: Callable[[Tensor], Tensor], sets: InputSet, share: Tensor, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Points x (n, *shape) and their scores (n,), which signed gradient steps lower, as they come;
    shorter and shorter steps, half of each box at first. sets: one for each point. share: where in
    their boxes the points begin, from 0 to 1.
    """
    x = sets.inside(sets.lower + sets.box.width * share)
    for step in range(steps + 1):
        x = x.detach().requires_grad_(step < steps)
        value = score(x)
        yield x.detach(), value.detach()
        if step < steps:
            (gradient,) = torch.autograd.grad(value.sum(), x)
            x = sets.inside(
                x.detach() - 0.5 * (1 - step / steps) * sets.box.width * gradient.sign()
            )
