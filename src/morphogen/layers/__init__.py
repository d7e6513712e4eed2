"""LEARN: modules whose structure is part of the forward pass."""

from morphogen.layers.depth import LearnedDepth

__all__ = ["LearnedDepth"]
