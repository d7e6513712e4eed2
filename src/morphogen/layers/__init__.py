"""LEARN: modules whose structure is part of the forward pass."""

from morphogen.layers.depth import LearnedDepth
from morphogen.layers.penalty import penalty

__all__ = ["LearnedDepth", "penalty"]
