"""READ: one traced graph of a model, and which of its tensor dimensions are one size."""

from morphogen.graph.trace import Graph, Node, trace
from morphogen.graph.widths import Slot, Span, Width, find, widths

__all__ = ["Graph", "Node", "Slot", "Span", "Width", "find", "trace", "widths"]
