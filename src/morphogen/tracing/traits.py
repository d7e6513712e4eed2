"""What is known of an operation whatever reads it, a row each in `TRAITS`: whether it moves numbers
or computes new ones, keeps zero, lets units through, is affine.

Tracing, bounds, `link`, `compress` and the recognition of residual branches derive their tables
from it; an operation without a row has none of these traits. Activations have rows of their own, in
`morphogen.activations`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from morphogen.activations import ACTIVATIONS
from morphogen.tracing.trace import Node

Affine = Literal["monotone", "scaled", "weighted", "product", "difference"]


@dataclass(frozen=True)
class Traits:
    """By torch's name of an operation.

    same: the numbers of its first argument in the same order. rearranged: in another order, shape
    or type. view: it shares their memory. zero:
    it is 0 where its first argument is. alone: each unit of its first argument is a unit of the
    result and goes there alone, which a pooling does for units in the second dimension. affine:
    "monotone" (no negative coefficient, so bounds go through as values do), "scaled" (each entry
    an affine function of one entry), "weighted" (of a weight and a bias), "product" (of a matrix),
    "difference".
    """

    same: bool = False
    rearranged: bool = False
    view: bool = False
    zero: bool = False
    alone: bool = False
    affine: Affine | None = None


_RESHAPE = Traits(same=True, view=True, zero=True, affine="monotone")
_COPY = replace(_RESHAPE, alone=True)
_PART = Traits(view=True, zero=True, affine="monotone")
_ORDER = replace(_PART, rearranged=True)
_MONOTONE = Traits(affine="monotone")
_WEIGHTED = Traits(affine="weighted")
_MEAN = Traits(zero=True, alone=True, affine="monotone")
_GROUPS: Mapping[str, Traits] = {
    "view reshape flatten unflatten _unsafe_view squeeze unsqueeze": _RESHAPE,
    "detach alias contiguous": _COPY,
    "clone": replace(_COPY, view=False),
    "slice select getitem split split_with_sizes chunk unbind narrow": _PART,
    "transpose permute swapaxes swapdims t numpy_T expand": _ORDER,
    "to _to_copy": replace(_ORDER, view=False),
    "dropout feature_dropout alpha_dropout": _MEAN,
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d": _MEAN,
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool2d": Traits(zero=True, alone=True),
    "cat stack index_select add mean sum pad constant_pad_nd roll flip upsample_nearest2d "
    "pixel_shuffle repeat": _MONOTONE,
    "mul": Traits(zero=True, affine="scaled"),
    "div neg rsub batch_norm instance_norm": Traits(affine="scaled"),
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d": _WEIGHTED,
    "matmul mm": Traits(affine="product"),
    "sub": Traits(affine="difference"),
}
TRAITS: Mapping[str, Traits] = {
    **{name: Traits(zero=kind.zero) for name, kind in ACTIVATIONS.items()},
    **{name: traits for names, traits in _GROUPS.items() for name in names.split()},
}


def named(has: Callable[[Traits], bool]) -> frozenset[str]:
    """The operations whose row has something."""
    return frozenset(name for name, traits in TRAITS.items() if has(traits))


def traits_of(node: Node) -> Traits:
    """An operation in place has those of its plain twin."""
    return TRAITS.get(node.kind.removesuffix("_"), Traits())


def flattens(before: Node, after: Node) -> bool:
    """Whether a view leaves every dimension, or joins all but the first, so that what is side by
    side stays so.
    """
    return after.shape in (before.shape, (before.shape[0], prod(before.shape[1:])))


def lets_through(before: Node, after: Node) -> bool:
    """Whether `after` leaves the units of its first argument, `before`, where they are."""
    traits = traits_of(after)
    if "pool" in after.kind:  # over what follows the units
        return traits.alone and len(after.shape) == int(after.kind[-2]) + 2
    return traits.alone or (traits.same and flattens(before, after))
