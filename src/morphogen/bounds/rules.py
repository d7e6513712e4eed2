"""What kind of operation each step is, for every technique: affine, an activation, or a maximum."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from morphogen.activations import ACTIVATIONS, Activation
from morphogen.errors import Unsupported
from morphogen.tracing.program import Step, run
from morphogen.tracing.trace import Node, Ref, refs
from morphogen.tracing.traits import named

# Linear with coefficients that are not negative: bounds go through as values do.
MONOTONE = named(lambda traits: traits.affine == "monotone")
# Each entry of the result is an affine function of one entry: its ends are those of the bounds, in
# one order or the other.
SCALED = named(lambda traits: traits.affine == "scaled")
# (weight, bias) among the arguments.
WEIGHTED = dict.fromkeys(named(lambda traits: traits.affine == "weighted"), (1, 2))
PRODUCTS = named(lambda traits: traits.affine == "product")
DIFFERENCES = named(lambda traits: traits.affine == "difference")
MAXIMA = frozenset("max_pool1d max_pool2d max_pool3d".split())


def affine(step: Step) -> bool:
    """Whether the step is an affine function of what it reads. Products and quotients of two such
    values are not.
    """
    variables = [i for i, arg in enumerate(step.args) if _varies(arg)]
    if _odd(step):
        return False
    if step.kind in SCALED:
        return len(variables) == 1 and (step.kind != "div" or variables == [0])
    if step.kind in PRODUCTS:
        return len(variables) == 1
    return (
        step.kind in MONOTONE
        or step.kind in DIFFERENCES
        or (step.kind in WEIGHTED and variables == [0])
    )


def _odd(step: Step) -> bool:
    """Whether options make another operation of it: a factor in a sum, division to whole numbers, a
    norm by what it is given, a type that is not floating.
    """
    if step.kwargs.get("alpha", 1) != 1 or step.kwargs.get("rounding_mode"):
        return True
    if step.kind in ("batch_norm", "instance_norm"):
        return bool(step.args[5])
    types = [arg for arg in (*step.args, *step.kwargs.values()) if isinstance(arg, torch.dtype)]
    return any(not kind.is_floating_point for kind in types)


def activation(step: Step) -> Activation | None:
    """What the step applies to each entry, None where it is no activation, or one with options that
    are not understood.
    """
    kind = ACTIVATIONS.get(step.kind)
    options = {} if kind is None else {**kind.options}
    given = step.args[1:]
    named = step.kwargs
    if kind is None or len(given) > len(options) or not named.keys() <= options.keys():
        return None
    if any(refs(given)) or not isinstance(step.args[0], Ref):
        return None
    options |= dict(zip(options, given, strict=False)) | named
    return kind.of(*(_along_channels(option, len(step.shape)) for option in options.values()))


def _along_channels(option: Any, rank: int) -> Any:
    """An option that is a tensor has an entry for each channel, the first of `rank` dimensions of
    an example, or one for all.
    """
    if not isinstance(option, Tensor):
        return option
    return option.reshape(-1, *[1] * (rank - 1)) if option.numel() > 1 else option.reshape(())


def rectifier(step: Step | Node) -> float | None:
    """The slope below 0 of a ReLU or a leaky ReLU with one in [0, 1); None for anything else."""
    if step.kind.removesuffix("_") == "relu":
        return 0.0
    slope = (
        float((*step.args[1:], 0.01)[0]) if step.kind.removesuffix("_") == "leaky_relu" else -1.0
    )
    return slope if 0 <= slope < 1 else None


def refuse(step: Step, technique: str) -> Unsupported:
    """The error for a step that a technique has no rule for."""
    return Unsupported(
        f"{technique}: no rule bounds '{step.kind}' at node '{step.name}'; add one to "
        "morphogen.bounds.rules, or verify the part of the network that does without it"
    )


def _varies(arg: Any) -> bool:
    return any(True for _ in refs(arg))


def abs_jacobian(step: Step, radius: Mapping[str, Tensor]) -> Tensor:
    """|J| radius, J the derivative of an affine step: how far its value can move when what it reads
    moves by `radius`.
    """
    if step.kind in WEIGHTED or step.kind in PRODUCTS:
        _, bias = WEIGHTED.get(step.kind, (None, None))
        arguments = tuple(
            arg
            if not isinstance(arg, Tensor)
            else torch.zeros_like(arg)
            if i == bias
            else arg.abs()
            for i, arg in enumerate(step.args)
        )
        return _run(replace(step, args=arguments), radius)
    if step.kind in DIFFERENCES:
        return sum((radius[name] for name in step.reads), start=torch.zeros(()))
    if step.kind in ("mul", "div"):
        return _run(replace(step, args=tuple(_positive(arg) for arg in step.args)), radius)
    if step.kind in ("neg", "rsub"):
        return radius[step.reads[0]]
    if step.kind in SCALED:
        x, weight, _, mean, variance, *options = step.args
        scale = None if weight is None else weight.abs()
        nothing = None if mean is None else torch.zeros_like(mean)
        return _run(replace(step, args=(x, scale, None, nothing, variance, *options)), radius)
    # what is constant among the arguments of the others adds something
    return _run(step, radius) - _run(
        step, {name: torch.zeros_like(value) for name, value in radius.items()}
    )


def linear_step(step: Step, functions: Mapping[str, Tensor]) -> Tensor:
    """Affine functions, (batch, 1 + n, *shape) each: a constant, then coefficients, through an
    affine step: coefficients go without what is added.
    """
    first = functions[step.reads[0]]
    out = _run(
        step, {name: function.flatten(0, 1) for name, function in functions.items()}
    ).unflatten(0, first.shape[:2])
    added = _run(
        step, {name: torch.zeros_like(function[:1, 0]) for name, function in functions.items()}
    )
    return torch.cat([out[:, :1], out[:, 1:] - added], 1)


def _run(step: Step, values: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = run(step, values)
    return found


def _positive(arg: Any) -> Any:
    return (
        arg.abs() if isinstance(arg, Tensor) else abs(arg) if isinstance(arg, (int, float)) else arg
    )
