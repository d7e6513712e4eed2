"""What an affine step does to differences and to functions, by its derivative J: `abs_jacobian` and
`linear_step`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from morphogen.bounds.propagate import Rules
from morphogen.bounds.rules import WEIGHTED
from morphogen.tracing.program import Step, run

Values = Mapping[str, Tensor]


def abs_jacobian(step: Step, radius: Values) -> Tensor:
    """|J| radius, J the derivative of an affine step: how far its value can move when what it reads
    moves by `radius`.
    """
    return ABS_JACOBIAN.of(step)(step, radius)


def linear_step(step: Step, functions: Values) -> Tensor:
    """Affine functions, (batch, 1 + n, *shape) each: a constant, then coefficients, through an
    affine step: coefficients go without what is added.
    """
    first = functions[step.reads[0]]
    flat = {name: function.flatten(0, 1) for name, function in functions.items()}
    out = _run(step, flat).unflatten(0, first.shape[:2])
    added = offset(step, {name: function[:, 0] for name, function in functions.items()})
    return torch.cat([out[:, :1], out[:, 1:] - added], 1)


def offset(step: Step, values: Values) -> Tensor:
    """What an affine step adds, (1, *shape). values: any of what it reads, for their shapes."""
    return _run(step, {name: torch.zeros_like(value[:1]) for name, value in values.items()})


def _weighted(step: Step, radius: Values) -> Tensor:
    """|W| r, without the bias."""
    _, bias = WEIGHTED.get(step.kind, (None, None))
    arguments = list(step.args)
    for place, arg in enumerate(arguments):
        if isinstance(arg, Tensor):
            arguments[place] = torch.zeros_like(arg) if place == bias else arg.abs()
    return _run(replace(step, args=tuple(arguments)), radius)


def _difference(step: Step, radius: Values) -> Tensor:
    """r_x + r_y of x - y."""
    return sum((radius[name] for name in step.reads), start=torch.zeros(()))


def _multiplied(step: Step, radius: Values) -> Tensor:
    """|c| r of c x, r / |c| of x / c."""
    return _run(replace(step, args=tuple(_positive(arg) for arg in step.args)), radius)


def _negated(step: Step, radius: Values) -> Tensor:
    """r of -x and of c - x."""
    return radius[step.reads[0]]


def _normalised(step: Step, radius: Values) -> Tensor:
    """|w| r / sqrt(v + eps) of w (x - m) / sqrt(v + eps) + b."""
    x, weight, _, mean, variance, *options = step.args
    scale = None if weight is None else weight.abs()
    nothing = None if mean is None else torch.zeros_like(mean)
    return _run(replace(step, args=(x, scale, None, nothing, variance, *options)), radius)


def _monotone(step: Step, radius: Values) -> Tensor:
    """f(r) - f(0): what is constant among the arguments adds something."""
    zeros = {name: torch.zeros_like(value) for name, value in radius.items()}
    return _run(step, radius) - _run(step, zeros)


ABS_JACOBIAN: Rules[Values, Tensor] = Rules(
    "|J|",
    {
        "weighted": _weighted,
        "product": _weighted,
        "difference": _difference,
        "affine mul": _multiplied,
        "affine div": _multiplied,
        "affine neg": _negated,
        "affine rsub": _negated,
        "scaled": _normalised,
        "monotone": _monotone,
    },
)


def _run(step: Step, values: Values) -> Tensor:
    value: Tensor = run(step, values)
    return value


def _positive(arg: Any) -> Any:
    return abs(arg) if isinstance(arg, (Tensor, int, float)) else arg
