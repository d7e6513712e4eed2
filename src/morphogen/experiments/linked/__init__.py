"""Linked neurons: activations that never die."""
