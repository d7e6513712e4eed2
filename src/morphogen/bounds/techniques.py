"""Every technique that bounds all values of a network, by the name that its papers use.

(net, box) -> by name of a value, the box that holds it for every input of `box`. What is tested of
one is tested of all.
"""

from collections.abc import Callable, Mapping

from morphogen.bounds.alpha_crown import alpha_crown
from morphogen.bounds.box import Box
from morphogen.bounds.crown import crown
from morphogen.bounds.forward import forward
from morphogen.bounds.interval import interval
from morphogen.tracing.program import Program

Technique = Callable[[Program, Box], dict[str, Box]]

TECHNIQUES: Mapping[str, Technique] = {
    "IBP": interval,
    "forward": forward,
    "CROWN": crown,
    "alpha-CROWN": alpha_crown,
}
