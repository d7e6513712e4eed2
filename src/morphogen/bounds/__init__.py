"""Prove what a network does on a box: bounds on its outputs that hold for every input.

interval(model, box), linear(model, box, spec) -> Box of lower and upper bounds
"""

from morphogen.bounds.box import Box
from morphogen.bounds.interval import interval
from morphogen.bounds.linear import linear
from morphogen.bounds.program import Program, program

__all__ = ["Box", "Program", "interval", "linear", "program"]
