"""JUDGE: one function a number, (model, data) -> value."""

from morphogen.measures.dead import dead_units
from morphogen.measures.importance import unit_importance
from morphogen.measures.natural import natural_norm

__all__ = ["dead_units", "natural_norm", "unit_importance"]
