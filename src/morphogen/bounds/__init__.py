"""Prove what a network does on a box: bounds on its values that hold for every input.

net = program(model, example)       # the traced network as steps, in float64
linear(net, ball(x, 0.1))           # every value between two numbers, by name; net.output is the output's
verify(model, ball(x, 0.1), other_classes(label, 10))  # sat, unsat or unknown; of files: `files.verify_file`
stability(model, box)               # which ReLUs have one sign, proved, and which do not, with witnesses
"""

from morphogen.bounds.alpha import alpha, optimised
from morphogen.bounds.attack import attack
from morphogen.bounds.box import Ball, Box, Few, around, ball, few, within
from morphogen.bounds.branch import split_inputs
from morphogen.bounds.dual import dual
from morphogen.bounds.forward import forward
from morphogen.bounds.interval import interval
from morphogen.bounds.linear import Free, linear, lower_bound
from morphogen.bounds.lp import least_of
from morphogen.bounds.program import Program, program
from morphogen.bounds.stability import Stability, stability
from morphogen.bounds.units import split_units
from morphogen.bounds.unsafe import Unsafe, Verdict
from morphogen.bounds.verify import Robustness, other_classes, robust_accuracy, verify

__all__ = [
    "Ball", "Box", "Few", "Free", "Program", "Robustness", "Stability", "Unsafe", "Verdict", "alpha", "around", "attack",
    "ball", "dual", "few", "forward", "interval", "least_of", "linear", "lower_bound", "optimised", "other_classes", "program",
    "robust_accuracy", "split_inputs", "split_units", "stability", "verify", "within",
]  # fmt: skip
