"""Every technique that bounds a network, by the name that its papers use.

What is tested of one is tested of all. An operation that a technique's rules lack is refused by
name; one more rule in each table makes it bounded by all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import jacrev

from morphogen.bounds.alpha_crown import ALPHA_CROWN, alpha_crown
from morphogen.bounds.box import Box, InputSet
from morphogen.bounds.crown import CROWN, crown
from morphogen.bounds.derivative import DERIVATIVE, derivative
from morphogen.bounds.dual import DUAL, dual
from morphogen.bounds.forward import FORWARD, forward
from morphogen.bounds.interval import IBP, interval
from morphogen.bounds.lp import lp_minimum
from morphogen.bounds.lp_encoding import LP
from morphogen.bounds.propagate import Rules
from morphogen.tracing.program import Program


@dataclass(frozen=True)
class Technique:
    """rules: its table; the tables of what it begins with, such as the intervals of all, are asked
    too. bounds: of what it gives bounds. run: (net, box, options of its own) -> boxes by name of a
    value: of every value, of the output alone, or of the output's derivatives, (batch, inputs,
    *outputs).
    """

    rules: Rules[Any, Any]
    bounds: Literal["values", "output", "derivatives"]
    run: Callable[..., Mapping[str, InputSet]]

    def at(self, net: Program, x: Tensor) -> Mapping[str, Tensor]:
        """What is bounded as it is at inputs x (batch, *shape), by name, shaped as its boxes."""
        if self.bounds != "derivatives":
            return net.values(x)
        # examples do not mix: the derivative of their sum is that of each
        jacobian = jacrev(lambda inputs: net(inputs).flatten(1).sum(0))(x)
        by_example = jacobian.flatten(2).permute(1, 2, 0)
        return {net.output: by_example.unflatten(2, net.shapes[net.output])}


def _derivative(net: Program, box: InputSet) -> dict[str, InputSet]:
    return {net.output: derivative(net, crown(net, box))}


def _dual(net: Program, box: InputSet, steps: int = 1000) -> dict[str, InputSet]:
    spec = _ends(net)
    least = dual(net, crown(net, box), spec[None], steps=steps).bound
    return _of_output(net, least)


def _lp(net: Program, box: InputSet) -> dict[str, InputSet]:
    boxes = crown(net, box)
    limit = torch.zeros(1, dtype=net.dtype)
    least = torch.empty(len(box.lower), 2 * math.prod(net.shapes[net.output]), dtype=net.dtype)
    for example in range(len(box.lower)):
        one = {name: bounds[example : example + 1] for name, bounds in boxes.items()}
        for place, row in enumerate(_ends(net)):
            least[example, place], _ = lp_minimum(net, one, row[None], limit)
    return _of_output(net, least)


def _ends(net: Program) -> Tensor:
    """Rows of y and of -y, (2 outputs, *shape)."""
    one = torch.eye(math.prod(net.shapes[net.output]), dtype=net.dtype)
    rows: Tensor = torch.cat([one, -one]).unflatten(1, net.shapes[net.output])
    return rows


def _of_output(net: Program, least: Tensor) -> dict[str, InputSet]:
    """min y <= y <= -min (-y), from the least values of `_ends`, (batch, 2 outputs)."""
    lower, upper = least.unflatten(1, (2, *net.shapes[net.output])).unbind(1)
    return {net.output: Box(lower, -upper)}


TECHNIQUES: Mapping[str, Technique] = {
    "IBP": Technique(IBP, "values", interval),
    "forward": Technique(FORWARD, "values", forward),
    "CROWN": Technique(CROWN, "values", crown),
    "alpha-CROWN": Technique(ALPHA_CROWN, "values", alpha_crown),
    "dual": Technique(DUAL, "output", _dual),
    "derivative": Technique(DERIVATIVE, "derivatives", _derivative),
    "LP": Technique(LP, "output", _lp),
}
