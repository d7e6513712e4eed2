"""Morphogen: a network's structure is something you learn, edit, rewrite exactly, judge and prove."""

from importlib import import_module

from morphogen.bounds import robust_accuracy, verify
from morphogen.errors import (
    DataError,
    MorphogenError,
    NotExact,
    PlanError,
    RunError,
    ShapeError,
    Unsupported,
)
from morphogen.graph import Graph, Width, trace, widths
from morphogen.layers import LearnedDepth, LearnedWidth
from morphogen.python_random import unmoved
from morphogen.record import Certificate, Receipt, Report
from morphogen.resize import (
    AddBlock,
    Applied,
    DropBlock,
    Grow,
    Shrink,
    Split,
    adapt,
    apply_,
    compiled,
    diff,
    doctor,
    follow,
    gradmax,
    load,
    plan,
    replay,
    resize,
    save,
    structure,
)
from morphogen.transforms import compress, freeze, regions, shallow

with unmoved():
    import_module("rich.style")  # draws a number as it is imported; what the command and scikit-learn import later, imports it

__version__ = "0.1.0"

__all__ = [
    "AddBlock", "Applied", "Certificate", "DataError", "DropBlock", "Graph", "Grow", "LearnedDepth", "LearnedWidth",
    "MorphogenError", "NotExact", "PlanError", "Receipt", "Report", "RunError", "ShapeError", "Shrink", "Split",
    "Unsupported", "Width", "adapt", "apply_", "compiled", "compress", "diff", "doctor", "follow", "freeze", "gradmax", "load",
    "plan", "regions", "replay", "resize", "robust_accuracy", "save", "shallow", "structure", "trace", "verify", "widths",
]  # fmt: skip
