"""JUDGE: one function a number, (model, data) -> value."""

from morphogen.measures.importance import unit_importance

__all__ = ["unit_importance"]
