"""A network without layers: every neuron reads the inputs and every neuron before it."""

from collections import OrderedDict
from typing import Any

from torch import nn

from morphogen.layers.dag import Dag


def dagnet(features: int, outputs: int, nodes: int = 8, **options: Any) -> nn.Sequential:
    """A `Dag` over all numbers of an example, read out linearly.

    features: how many numbers an example has, whatever its shape. nodes, options: of `Dag`. Its width, "dag", grows and shrinks
    by `resize`, a policy or `fit(..., wiring="dag")`. Input (batch, ...), output (batch, outputs).
    """
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), dag=Dag(features, nodes, outputs, **options)))
