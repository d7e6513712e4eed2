"""A multi-layer perceptron with a learned depth."""

from collections import OrderedDict

from torch import nn

from morphogen.layers.depth import LearnedDepth


def mlp(features: int, outputs: int, width: int = 8, dropout: float = 0.0, max_blocks: int = 6) -> nn.Sequential:
    """One linear layer into the hidden width, a learned number of blocks that keep it, one linear layer out.

    Input (batch, features), output (batch, outputs).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["hidden"] = nn.Linear(features, width, bias=False)
    layers["norm"] = nn.BatchNorm1d(width)
    layers["relu"] = nn.ReLU()
    layers["depth"] = LearnedDepth(lambda _: _block(width), max_blocks=max_blocks)
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["output"] = nn.Linear(width, outputs)
    return nn.Sequential(layers)


def _block(width: int) -> nn.Module:
    return nn.Sequential(OrderedDict(linear=nn.Linear(width, width, bias=False), norm=nn.BatchNorm1d(width)))
