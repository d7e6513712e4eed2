"""LEARN: modules whose structure is part of the forward pass."""

from morphogen.layers.dag.module import Dag
from morphogen.layers.depth import LearnedDepth
from morphogen.layers.posterior import DepthPosterior
from morphogen.layers.width import LearnedWidth

__all__ = ["Dag", "DepthPosterior", "LearnedDepth", "LearnedWidth"]
