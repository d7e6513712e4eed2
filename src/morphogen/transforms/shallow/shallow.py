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
import math
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn

from morphogen.bounds.box import Box
from morphogen.certify import certify
from morphogen.errors import ShapeError
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
    pruned = f" of {whole.n_terms:,}" if prune else ""
    reason = (
        f"{made.n_terms:,} terms{pruned} with {made.n_units:,} hidden units in all, for "
        f"{net.units:,} units on {len(net.layers)} layers; formally 2^{made.log2_formal:.1f} terms"
    )
    if complete:
        return made, certified(model, net, made, reason)
    reason += f"; the search for cells was stopped at {len(cells):,}"
    return made, certified(model, net, made, reason, "bounds")


def certified(
    model: nn.Module,
    net: Piecewise,
    made: Callable[[Tensor], Tensor],
    reason: str,
    kind: Literal["exact", "bounds", "measured"] = "exact",
) -> Certificate:
    """The certificate of a form of a network, seen at random points and corners of the box. Raises
    `NotExact` where it should be exact, and is not.
    """
    exact = copy.deepcopy(model).double()

    def network(x: Tensor) -> Tensor:
        with eval_mode(exact):
            return exact(net.examples(x))  # type: ignore[no-any-return]

    return certify(
        "shallow",
        network,
        lambda x: made(net.given(x)),
        net.box.points(_POINTS, _POINTS // 10),
        kind=kind,
        box=(tuple(net.box.lower[0].tolist()), tuple(net.box.upper[0].tolist())),
        reason=reason,
        floor=0.0,  # terms are pruned by their size, however small a network's values are
        allowed=None if kind == "exact" else math.inf,
        at_once=500,
    )
