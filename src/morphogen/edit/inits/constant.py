"""How new entries of a tensor start, by what the dimension is for.

The default is function-preserving wherever the new units meet only sums: their outgoing weights are
zero; or, where they are twins of old ones, the outgoing weights are shared out between them.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from morphogen.edit.plan import NEW, Row
from morphogen.tracing.widths import FLAT

Init = Callable[[Row, Tensor, Tensor, torch.Generator | None], Tensor]
"""(row of the plan, the tensor with its new entries, their positions in row.dim, generator) ->
values of the new slices.
"""


def he(row: Row, tensor: Tensor, new: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal with standard deviation sqrt(2 / fan_in). Source: He et al. 2015, eq. 10. Drawn on the
    CPU in float64, so that a seed gives the same numbers on every device and in every precision.
    """
    shape = list(tensor.shape)
    fan_in = max(1, math.prod(shape[1:]) if row.dim == 0 else shape[0])
    shape[row.dim] = len(new)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * math.sqrt(2 / fan_in)
    return drawn.to(tensor)


def constant(value: float) -> Init:
    """Every new entry is `value`."""

    def init(row: Row, tensor: Tensor, new: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.full_like(tensor.index_select(row.dim, new), value)

    return init


def normal(std: float) -> Init:
    """Normal with mean 0 and that standard deviation, on either side of a unit: the function
    changes.
    """

    def init(row: Row, tensor: Tensor, new: Tensor, generator: torch.Generator | None) -> Tensor:
        shape = list(tensor.shape)
        shape[row.dim] = len(new)
        return (std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(tensor)

    return init


Inits = Mapping[str, Init]
"""How new entries start, by the role of their dimension."""

INITS: dict[str, Init] = {
    "out": he,
    "own": he,
    "in": constant(0.0),
    "in a group": constant(0.0),
    "in and more": constant(0.0),
    "value": constant(0.0),
    "index": constant(0.0),
    FLAT: constant(0.0),  # new nodes of a `Dag` draw theirs afterwards
    "bias": constant(0.0),
    "scale": constant(1.0),
    "slope": constant(0.25),
    "mean": constant(0.0),
    "variance": constant(1.0),
}


def given(values: Mapping[str, Tensor], others: Inits = INITS) -> dict[str, Init]:
    """`others`, but the new slices of some tensors, by name, are these."""

    def init(row: Row, tensor: Tensor, new: Tensor, generator: torch.Generator | None) -> Tensor:
        if row.tensor not in values:
            return others[row.role](row, tensor, new, generator)
        return values[row.tensor].to(tensor)

    return {**others, "out": init, "own": init}


def keeps_function(inits: Inits) -> bool:
    """Whether what reads new units starts as in `INITS`, so that they change nothing."""
    return all(
        inits[role] is INITS[role] for role in INITS if role.startswith("in") or role == "value"
    )


_SPREAD = 0.25


def share_out(tensor: Tensor, dim: int, index: Tensor, generator: torch.Generator | None) -> None:
    """Columns `dim` that `index` took several times become shares of one, in place: what twins give
    together is what the unit gave alone.

    Of c equal columns w, all but the first take w/c (1 + 0.25 n) with n normal for each weight; the
    first takes what is left. Source: Chen, Goodfellow & Shlens 2016 (Net2Net), eq. 6. Differs:
    unequal shares. Twins with equal outgoing weights get equal gradients and stay equal for ever;
    the paper adds noise instead, which changes the function.
    """
    sources, counts = index[index != NEW].unique(return_counts=True)
    for source in sources[counts > 1]:
        first, *others = (index == source).nonzero()[:, 0].tolist()
        rest = tensor.select(dim, first)
        share = rest / (1 + len(others))
        for other in others:
            drawn = torch.randn(share.shape, generator=generator, dtype=torch.float64).to(share)
            tensor.select(dim, other).copy_(share * (1 + _SPREAD * drawn))
            rest.sub_(tensor.select(dim, other))
