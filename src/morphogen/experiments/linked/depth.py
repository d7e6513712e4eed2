"""Fifty convolutions of four units: with which activation do they learn anything?

The article's table 2: a strided convolution, fifty more of width 4, one linear layer, on CIFAR-10.
ReLU, PReLU, Swish and LK-Swish stay at chance there; linked and SELU nets train. All of its nets
start from Glorot's weights, which happen to suit SELU and shrink the others at every layer; so
every linked net is run from the start that belongs to it, too.

faithful: the article's 13 nets, 200 epochs of all rows in one order, decided by the test part as
its best epoch was. default: rows in a new order each epoch, fewer of them and fewer epochs, a
validation part, and the five nets with other starts.

Source: Riera Molina & Pujol 2017 (arXiv 1712.02609), table 2 (medians) and the code beside it.
Differs: PReLU has one slope a channel where the original has one a position.
"""

from collections import OrderedDict
from functools import partial

from torch import nn
from torch.optim import Adam

from morphogen.experiments.linked.nets import (
    LINKED,
    NORMED,
    SINGLE,
    STARTED,
    WIDER,
    Kind,
    Settings,
    Table,
    halving,
    started,
)

PUBLISHED = {
    "ReLU": 0.1,
    "LK-ReLU": 0.5607,
    "ReLU √2": 0.1,
    "PReLU": 0.1,
    "LK-PReLU": 0.5210,
    "PReLU √2": 0.1,
    "BN+ReLU": 0.5114,
    "SELU": 0.5643,
    "LK-SELU": 0.5670,
    "SELU √2": 0.5703,
    "Swish": 0.1,
    "LK-Swish": 0.1,
    "Swish √2": 0.1,
}
AT_CHANCE = ("ReLU", "PReLU", "Swish", "LK-Swish")
TRAINS = ("LK-ReLU, looks linear", "LK-Swish, looks linear")


def network(kind: Kind, settings: Settings, classes: int) -> nn.Sequential:
    """Images (batch, 3, 32, 32) -> logits (batch, classes)."""
    units = kind.units(settings.width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["pad"], first = halving(3, units, 7)
    for number in range(settings.layers + 1):
        layer = nn.Conv2d(kind.widen * units, units, 3, padding=1) if number else first
        layers[f"conv{number}"] = started(layer, kind, reads=number > 0)
        if kind.norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(units, eps=1e-3, momentum=0.01)
        layers[f"act{number}"] = kind.build(units)
    layers["flatten"] = nn.Flatten()
    layers["output"] = started(nn.Linear(kind.widen * units * 16 * 16, classes), kind, reads=True)
    return nn.Sequential(layers)


TABLE = Table(
    "linked-depth", "fifty layers of four "
                    "units", "Linked neurons (arXiv 1712.02609), table 2", network,
    partial(Adam, eps=1e-8, fused=True), PUBLISHED, SINGLE | LINKED | WIDER | NORMED, STARTED,
    default=Settings(layers=50),
    faithful=Settings(layers=50, rows=0, epochs=200, published=True, shuffled=False),
    smoke={"data": "digits", "layers": 6, "rows": 96, "epochs": 1},
    low=dict.fromkeys(TRAINS, 0.2), high=dict.fromkeys(AT_CHANCE, 0.12),
)  # fmt: skip
reproduce = TABLE.reproduce
