"""Equal parameters: a convolutional network with linked activations beside one that is wider by the
root of two.

The article's table of parameters: two pairs of convolutions, 32 and 64, a dense layer of 512, on
CIFAR-10, RMSprop. Its text says that linked nets win in all cases; its own row of Swish does not.
faithful: 200 epochs in one order, decided by the test part.

Source: Riera Molina & Pujol 2017 (arXiv 1712.02609), table "number of parameters". Differs:
Glorot's uniform weights where the original has normal ones of the same variance.
"""

from functools import partial

from torch import nn
from torch.optim import RMSprop

from morphogen.experiments.linked.nets import (
    LINKED,
    SINGLE,
    STARTED,
    WIDER,
    Kind,
    Settings,
    Table,
    started,
)

PUBLISHED = {
    "ReLU": 0.7337,
    "ReLU √2": 0.7581,
    "LK-ReLU": 0.7696,
    "PReLU": 0.7201,
    "PReLU √2": 0.7568,
    "LK-PReLU": 0.7687,
    "SELU": 0.6981,
    "SELU √2": 0.7012,
    "LK-SELU": 0.7559,
    "Swish": 0.6961,
    "Swish √2": 0.7376,
    "LK-Swish": 0.7368,
}


def network(kind: Kind, settings: Settings, classes: int) -> nn.Sequential:
    """Images (batch, 3, 32, 32) -> logits (batch, classes); settings.width: 32 in the original."""
    small, large, dense = (kind.units(factor * settings.width) for factor in (1, 2, 16))
    layers: list[nn.Module] = []
    before = 3
    for units, padding in ((small, 1), (small, 0), (large, 1), (large, 0)):
        conv = nn.Conv2d(before, units, 3, padding=padding)
        layers += [started(conv, kind, reads=before > 3), kind.build(units)]
        layers += [] if padding else [nn.MaxPool2d(2)]
        before = kind.widen * units
    layers += [
        nn.Flatten(),
        started(nn.Linear(before * 6 * 6, dense), kind, True),
        kind.build(dense),
    ]
    return nn.Sequential(*layers, started(nn.Linear(kind.widen * dense, classes), kind, True))


TABLE = Table(
    "linked-extended",
    "linked or wider",
    "Linked neurons (arXiv 1712.02609), number of parameters",
    network,
    partial(RMSprop, alpha=0.9, eps=1e-8),
    PUBLISHED,
    SINGLE | WIDER | LINKED,
    STARTED,
    default=Settings(width=32, rate=3e-4, epochs=4),
    faithful=Settings(
        width=32, rate=1e-4, decay=1e-6, rows=0, epochs=200, published=True, shuffled=False
    ),
    smoke={"data": "digits", "width": 4, "rows": 96, "epochs": 1},
)
reproduce = TABLE.reproduce
