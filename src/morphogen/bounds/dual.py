"""Bounds by the Lagrangian: any multipliers give one, and it can be stopped at any time, `dual(net,
boxes, spec)`.

Every equation z = W x + b may be broken at a price, its multiplier; what is left falls apart into
one small problem a unit and one over the inputs, each solved in closed form. The least value over
everything is a bound, whatever the multipliers are. Those of linear bounds give linear bounds; the
best ones give the optimum of the relaxation by the convex hull of each activation.

Source: Dvijotham et al. 2018 (arXiv 1803.06567), in the form without the second set of multipliers,
which has the same optimum. Differs: it begins from linear bounds, not from zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from morphogen.bounds.box import Box
from morphogen.bounds.crown import Variables, backward, linear_relaxation, lower_bound
from morphogen.bounds.maximum import lined, windows
from morphogen.bounds.rules import activation
from morphogen.tracing.program import Program


@dataclass(frozen=True)
class Dual:
    """bound: (batch, count), the best. multipliers: by activation, of the last step. path: the mean
    best bound after each step, the first being that of linear bounds.
    """

    bound: Tensor
    multipliers: Mapping[str, Tensor]
    path: tuple[float, ...]


def dual(
    net: Program,
    boxes: Mapping[str, Box],
    spec: Tensor,
    name: str | None = None,
    steps: int = 1000,
    rate: float = 0.1,
) -> Dual:
    """The best lower bounds on linear functions of a value that the steps come by; arguments as for
    `crown.lower_bound`.

    boxes: `boxes[net.input]` may be any set of `bounds.box`. rate: of Adam, relative to the mean
    size of each activation's multipliers; it falls to zero.
    """
    multipliers = {n: c.requires_grad_() for n, c in of_lines(net, boxes, spec, name).items()}
    sizes = {n: float(c.detach().abs().mean().clamp_min(1e-12)) for n, c in multipliers.items()}
    groups = [{"params": [c], "size": sizes[n]} for n, c in multipliers.items()]
    optimizer = Adam(groups, lr=rate) if groups else None
    best = torch.full(_shape(net, boxes, spec), -torch.inf, dtype=net.dtype)
    path = []
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps and optimizer is not None):
            bound = lower_bound(net, boxes, spec, name, Variables(duals=multipliers))
        best = torch.maximum(best, bound.detach())
        path.append(float(best.mean()))
        if optimizer is None or not bound.requires_grad:
            break
        optimizer.zero_grad()
        (-bound.sum()).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * group["size"] * (1 - step / steps)
        optimizer.step()
    return Dual(best, {n: c.detach() for n, c in multipliers.items()}, tuple(path))


def of_lines(
    net: Program, boxes: Mapping[str, Box], spec: Tensor, name: str | None = None
) -> dict[str, Tensor]:
    """The multipliers by which `dual` gives the bounds of `crown.lower_bound`."""
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        backward(net, boxes, spec, name, None, seen)
        found = {}
        for step in net.forth():
            if (a := seen.get(step.name)) is None:
                continue
            h, (read,) = activation(step), step.reads
            if h is None:
                found[step.name], _ = lined(windows(step, net.shapes[read]), a, boxes[read])
            else:
                line = linear_relaxation(h, boxes[read])
                found[step.name] = (
                    a.clamp_min(0) * line.lower_slope + a.clamp_max(0) * line.upper_slope
                )
    return found


def _shape(net: Program, boxes: Mapping[str, Box], spec: Tensor) -> tuple[int, int]:
    return len(boxes[net.input].lower), spec.shape[1]
