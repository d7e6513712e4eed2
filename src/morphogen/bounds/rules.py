"""What kind of operation each step is, for every technique: affine, an activation, or a maximum."""

from typing import Any

import torch
from torch import Tensor

from morphogen.activations import ACTIVATIONS, Activation
from morphogen.errors import Unsupported
from morphogen.tracing.program import RESHAPES, Step
from morphogen.tracing.trace import Node, Ref, refs
from morphogen.tracing.traits import TRAITS, named

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


def classes(step: Step) -> tuple[str, ...]:
    """The names under which a table of rules may have a step, the most special one first.

    Of an affine step "affine " and torch's name of it, its family in `tracing.traits` ("monotone",
    "scaled", "weighted", "product" or "difference") and "affine"; one that leaves numbers in their
    order is an "affine reshape". Of an activation "activation " and torch's name, and "activation".
    Of a max-pooling "max_pool". Of any other torch's name alone, such as "mul" of a product of two
    values that both depend on the input.
    """
    if affine(step):
        name = "reshape" if step.kind in RESHAPES else step.kind
        return f"affine {name}", str(TRAITS[step.kind].affine), "affine"
    if activation(step) is not None:
        return f"activation {step.kind}", "activation"
    if step.kind in MAXIMA:
        return ("max_pool",)
    return (step.kind,)


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


def applied(step: Step) -> Activation:
    """`activation` of a step that is one."""
    h = activation(step)
    assert h is not None, step.name
    return h


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
        f"{technique}: no rule bounds '{step.kind}' at node '{step.name}'; add one to the table of "
        "each technique in morphogen.bounds, or verify the part of the network that does without it"
    )


def _varies(arg: Any) -> bool:
    return any(True for _ in refs(arg))
