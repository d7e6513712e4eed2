"""Sums over everything but the batch and the count of functions."""

from torch import Tensor


def total(a: Tensor) -> Tensor:
    """Of a (batch, count, *shape), (batch, count)."""
    return a.reshape(*a.shape[:2], -1).sum(2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Of a (batch, count, *shape) times b (batch or 1, 1 or count, *shape), (batch, count)."""
    a = a.reshape(*a.shape[:2], -1)
    b = b.reshape(*b.shape[:2], -1)
    return (a @ b.transpose(1, 2))[..., 0] if b.shape[1] == 1 else (a * b).sum(2)
