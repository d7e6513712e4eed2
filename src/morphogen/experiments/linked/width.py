"""One convolution, from narrow to wide: what does linking add where depth plays no part?

The article's table 1: a 3 x 3 convolution with W filters, an activation, one linear layer, on
CIFAR-10; W = 50 here, the settings say. faithful: 200 epochs of all rows in one order, decided by
the test part. default: fewer rows and epochs, a validation part, and the starts that belong to
linked nets.

Source: Riera Molina & Pujol 2017 (arXiv 1712.02609), table 1, the rows of W = 50.
"""

from functools import partial

from torch import nn
from torch.optim import SGD

from morphogen.experiments.linked.nets import (
    LINKED,
    SINGLE,
    STARTED,
    Kind,
    Settings,
    Table,
    started,
)

PUBLISHED = {
    "ReLU": 0.5767,
    "LK-ReLU": 0.5909,
    "PReLU": 0.5771,
    "LK-PReLU": 0.5908,
    "SELU": 0.4992,
    "LK-SELU": 0.5730,
    "Swish": 0.5559,
    "LK-Swish": 0.5488,
}


def network(kind: Kind, settings: Settings, classes: int) -> nn.Sequential:
    """Images (batch, 3, 32, 32) -> logits (batch, classes)."""
    units = kind.units(settings.width)
    conv = nn.Conv2d(3, units, 3)
    output = nn.Linear(kind.widen * units * 30 * 30, classes)
    return nn.Sequential(
        started(conv, kind, False), kind.build(units), nn.Flatten(), started(output, kind, True)
    )


TABLE = Table(
    "linked-width", "one wide layer", "Linked neurons (arXiv 1712.02609), "
                                      "table 1", network, partial(SGD, fused=True),
    PUBLISHED, SINGLE | LINKED, STARTED,
    default=Settings(width=50, rate=0.01, epochs=4),
    faithful=Settings(width=50, rate=0.01, rows=0, epochs=200, published=True, shuffled=False),
    smoke={"data": "digits", "width": 4, "rows": 96, "epochs": 1},
)  # fmt: skip
reproduce = TABLE.reproduce
