"""Morphogen: a network's structure is something you learn, edit, rewrite exactly, judge and prove."""

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
from morphogen.layers import LearnedDepth
from morphogen.record import Certificate, Receipt, Report
from morphogen.resize import (
    AddBlock,
    Applied,
    DropBlock,
    Grow,
    Shrink,
    apply_,
    compiled,
    doctor,
    load,
    plan,
    replay,
    resize,
    save,
)
from morphogen.transforms import freeze

__version__ = "0.1.0"

__all__ = [
    "AddBlock", "Applied", "Certificate", "DataError", "DropBlock", "Graph", "Grow", "LearnedDepth", "MorphogenError",
    "NotExact", "PlanError", "Receipt", "Report", "RunError", "ShapeError", "Shrink", "Unsupported", "Width", "apply_",
    "compiled", "doctor", "freeze", "load", "plan", "replay", "resize", "save", "trace", "widths",
]  # fmt: skip
