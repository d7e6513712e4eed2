"""From deep to shallow: `shallow(model, box) -> (Form, Certificate)`.

form "maximum", `maximum.py`: max of concave networks with one hidden layer each; one a cell, less
by `prune`. "minimum", there too: min of convex ones.

form "max-min", `max_min.py`: max of min of affine functions of the first hidden layer; the patterns
of the later layers, squared.

form "split", `two_layers.py`: difference of two maxima, of two hidden layers one is left; the
subsets of the last layer that occur.

form "difference", `difference.py`: difference of two maxima over the first hidden layer; doubly
exponential, less by pruning.

`approximate.py` has a fixed number of units for any accuracy almost everywhere.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box
from morphogen.errors import NotExact, ShapeError
from morphogen.linear_regions.piecewise import Piecewise, piecewise
from morphogen.linear_regions.regions import Regions, regions
from morphogen.record import Certificate
from morphogen.tracing.trace import eval_mode
from morphogen.transforms.shallow.difference import difference
from morphogen.transforms.shallow.form import Form
from morphogen.transforms.shallow.max_min import max_min
from morphogen.transforms.shallow.maximum import maximum, minimum
from morphogen.transforms.shallow.two_layers import split

FORMS: Mapping[str, Callable[[Piecewise, Regions, float], Form]] = {
    "maximum": maximum,
    "minimum": minimum,
    "max-min": max_min,
    "split": split,
    "difference": difference,
}
_ALLOWED = 1e-9  # by which values may differ, relative to their size, in float64
_POINTS = 10_000


def shallow(
    model: nn.Module,
    box: Box,
    form: Literal["maximum", "minimum", "max-min", "split", "difference"] = "maximum",
    along: tuple[Tensor, Tensor] | None = None,
    max_cells: int = 100_000,
    seconds: float = float("inf"),
    limit: float = 20.0,
    prune: bool = False,
) -> tuple[Form, Certificate]:
    """`model` on the box of one example, (1, *shape), as functions of one hidden layer each; the
    model stays as it is.

    form: see this file's head. along, max_cells, seconds: of the cells, as in `regions`; where
    these end early the certificate says "bounds": `lower` and `upper` then hold the network between
    them, everywhere, and are equal where its cells were found. limit: log2 of the most terms.
    prune: leave out terms that the others replace on the box. Raises `Unsupported` for a network
    that is not piecewise linear and beyond the limit.
    """
    if form not in FORMS:
        raise ShapeError(f"shallow: form={form!r}; give one of {', '.join(FORMS)}")
    net = piecewise(model, box, along)
    cells = regions(net, max_cells=1 if form == "difference" else max_cells, seconds=seconds)
    whole = FORMS[form](net, cells, limit)
    made = whole.prune() if prune else whole
    complete = cells.complete or form == "difference"
    error, scale = measured(model, net, made)
    pruned = f" of {whole.n_terms:,}" if prune else ""
    reason = (
        f"{made.n_terms:,} terms{pruned} with {made.n_units:,} hidden units in all, for "
        f"{net.units:,} units on {len(net.layers)} layers; formally 2^{made.log2_formal:.1f} terms"
    )
    ends = (tuple(net.box.lower[0].tolist()), tuple(net.box.upper[0].tolist()))
    if not complete:
        reason += f"; the search for cells was stopped at {len(cells):,}"
        return made, Certificate("bounds", error, ends, True, reason)
    if not error <= _ALLOWED * scale:
        raise NotExact(
            f"shallow: values differ by {error:.2e} where rounding allows {_ALLOWED:.0e} of "
            f"{scale:.1e}; please report this model"
        )
    return made, Certificate("exact", error, ends, True, reason)


@torch.no_grad()
def measured(
    model: nn.Module, net: Piecewise, made: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """(the largest difference between a network and what should equal it, at random points and
    corners of the box, its largest value there).
    """
    x = net.box.points(_POINTS, _POINTS // 10)
    exact = copy.deepcopy(model).double()
    with eval_mode(exact):
        f = torch.cat([exact(part) for part in net.examples(x).split(500)])
    return float((made(net.given(x)) - f).abs().max()), float(f.abs().max())
