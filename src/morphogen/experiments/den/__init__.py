"""Lifelong learning with dynamically expandable networks."""
