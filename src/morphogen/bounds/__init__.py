"""Prove what a network does on a box: bounds on its values that hold for every input.

net = program(model, example)       # the traced network as steps, in float64
linear(net, ball(x, 0.1))           # every value between two numbers, by name; net.output is the output's
verify("net.onnx", "p.vnnlib")      # sat, unsat or unknown
"""

from morphogen.bounds.box import Box, ball
from morphogen.bounds.branch import Unsafe, Verdict, split_inputs
from morphogen.bounds.forward import forward
from morphogen.bounds.interval import interval
from morphogen.bounds.linear import linear, lower_bound
from morphogen.bounds.program import Program, program
from morphogen.bounds.verify import Answer, verify

__all__ = [
    "Answer", "Box", "Program", "Unsafe", "Verdict", "ball", "forward", "interval", "linear", "lower_bound", "program",
    "split_inputs", "verify",
]  # fmt: skip
