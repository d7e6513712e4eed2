"""Bounds by the Lagrangian: any multipliers give one, and it can be stopped at any time, `dual(net,
boxes, spec)`.

Every equation z = W x + b may be broken at a price, its multiplier; what is left falls apart into
one small problem a unit and one over the inputs, each solved in closed form. The least value over
everything is a bound, whatever the multipliers are. Those of linear bounds give linear bounds; the
best ones give the optimum of the relaxation by the convex hull of each activation.

Source: Dvijotham et al. 2018 (arXiv 1803.06567), in the form without the second set of multipliers,
which has the same optimum. Differs: it begins from linear bounds, not from zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from morphogen.bounds.box import Boxes
from morphogen.bounds.crown import CROWN, Backward, Below, Variables, backward, bounded
from morphogen.bounds.maximum import added_up, lined, relaxed, windows
from morphogen.bounds.propagate import Rules
from morphogen.bounds.relaxation import linear_relaxation
from morphogen.bounds.rules import applied
from morphogen.bounds.sums import total
from morphogen.tracing.program import Program, Step


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
    boxes: Boxes,
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
            bound = lagrangian(net, boxes, spec, multipliers, name)
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


def lagrangian(
    net: Program,
    boxes: Boxes,
    spec: Tensor,
    multipliers: Mapping[str, Tensor],
    name: str | None = None,
) -> Tensor:
    """The lower bounds, (batch, count), that multipliers give; other arguments as for
    `crown.lower_bound`.
    """
    return bounded(net, boxes, spec, name, Variables(duals=multipliers), rules=DUAL).least


def of_lines(
    net: Program, boxes: Boxes, spec: Tensor, name: str | None = None
) -> dict[str, Tensor]:
    """The multipliers by which `dual` gives the bounds of `crown.lower_bound`."""
    coefficients: dict[str, Tensor] = {}
    multipliers = {}
    with torch.no_grad():
        backward(net, boxes, spec, name, None, coefficients)
        for step in net.forth():
            rule = DUAL.of(step)
            if step.name in coefficients and isinstance(rule, Relaxed):
                multipliers[step.name] = rule.start(step, coefficients[step.name], boxes)
    return multipliers


@dataclass(frozen=True)
class Relaxed:
    """The rule of a step y = h(z) that is not affine: a h(z) is at least c z + the least of a h(z)
    - c z, whatever the multipliers c are.

    start: (step, a, boxes) -> the c that linear bounds have. least: (step, state), see
    `crown.Below`, with c among the state's `free.duals`.
    """

    start: Callable[[Step, Tensor, Boxes], Tensor]
    least: Callable[[Step, Backward], Below]

    def __call__(self, step: Step, state: Backward) -> Below:
        return self.least(step, state)


def _of_line(step: Step, a: Tensor, boxes: Boxes) -> Tensor:
    """c = a+ b + a- B, of the slopes b below and B above."""
    line = linear_relaxation(applied(step), boxes[step.reads[0]])
    return a.clamp_min(0) * line.lower_slope + a.clamp_max(0) * line.upper_slope


def _least_on_interval(step: Step, state: Backward) -> Below:
    """c z + min over l <= z <= u of a h(z) - c z, which is at an end or where h'(z) = c / a."""
    (read,) = step.reads
    h = applied(step)
    a = state.coefficients[step.name]
    c = state.free.duals[step.name]
    lower = state.boxes[read].lower[:, None]
    upper = state.boxes[read].upper[:, None]
    with torch.no_grad():
        inside = [torch.nan_to_num(z).clamp(lower, upper) for z in h.stationary(c / a)]
    values = torch.stack([a * h.value(z) - c * z for z in (lower, upper, *inside)])
    return {read: c}, total(values.amin(0))


def _of_entries(step: Step, a: Tensor, boxes: Boxes) -> Tensor:
    box = boxes[step.reads[0]]
    c, _ = lined(windows(step, box.lower.shape[1:]), a, box)
    return c


def _least_in_windows(step: Step, state: Backward) -> Below:
    """See `maximum.relaxed`."""
    (read,) = step.reads
    box = state.boxes[read]
    c = state.free.duals[step.name]
    shape = box.lower.shape[1:]
    at = windows(step, shape)
    # where windows overlap, what is rounded adds up, what goes on may cancel
    state.count(read, added_up(at, c.abs(), shape))
    constant = relaxed(at, state.coefficients[step.name], c, box)
    return {read: added_up(at, c, shape)}, constant


DUAL: Rules[Backward, Below] = Rules(
    "dual",
    {
        "affine": CROWN.table["affine"],
        "affine linear": CROWN.table["affine linear"],
        "affine reshape": CROWN.table["affine reshape"],
        "activation": Relaxed(_of_line, _least_on_interval),
        "max_pool": Relaxed(_of_entries, _least_in_windows),
    },
)


def _shape(net: Program, boxes: Boxes, spec: Tensor) -> tuple[int, int]:
    return len(boxes[net.input].lower), spec.shape[1]
