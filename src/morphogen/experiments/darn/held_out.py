"""The curve of a training: what held out rows cost, epoch by epoch."""

from collections.abc import Sequence

from morphogen.density.learn import Epoch
from morphogen.record import Curve


def held_out(panel: str, name: str, epochs: Sequence[Epoch]) -> Curve:
    """x: the epoch. y: the bound in nats a row."""
    x = tuple(float(epoch.epoch) for epoch in epochs)
    return Curve(panel, name, x, tuple(epoch.valid for epoch in epochs))
