"""The all-convolutional network with linked activations.

The article's table 3: nine convolutions of 96 and 192 units, dropout, global average pooling, on
CIFAR-10 with moved and mirrored images, 3,000 epochs. Linking loses there for PReLU, SELU and
Swish; its win, LK-ReLU, ran with batches of 128 where all others had 32, which faithful repeats.
default: a quarter of the width, fewer rows and epochs.

Source: Riera Molina & Pujol 2017 (arXiv 1712.02609), table "All-CNN", the constant rate.
"""

from dataclasses import replace
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
    halving,
    started,
)

PUBLISHED = {
    "ReLU": 0.9301,
    "LK-ReLU": 0.9468,
    "PReLU": 0.9422,
    "LK-PReLU": 0.9232,
    "SELU": 0.9304,
    "LK-SELU": 0.9197,
    "Swish": 0.9261,
    "LK-Swish": 0.8971,
}


def network(kind: Kind, settings: Settings, classes: int) -> nn.Sequential:
    """Images (batch, 3, 32, 32) -> logits (batch, classes); settings.width: 96 in the original."""
    small = kind.units(settings.width)
    large = kind.units(2 * settings.width)
    layers: list[nn.Module] = []
    before = 3
    reads = False
    # units, kernel, whether it halves the map: those have no activation, and dropout behind them
    plan = [
        (small, 3, False),
        (small, 3, False),
        (small, 3, True),
        (large, 3, False),
        (large, 3, False),
        (large, 3, True),
    ]
    for units, kernel, halves in [*plan, (large, 3, False), (large, 1, False), (classes, 1, None)]:
        made = (
            halving(before, units, 3)
            if halves
            else [nn.Conv2d(before, units, kernel, padding=kernel // 2)]
        )
        # without an activation before it a layer reads plain features, and starts as the first one
        # does
        layers += [*made[:-1], started(made[-1], kind, reads)]
        reads = halves is False
        layers += [kind.build(units)] if reads else [nn.Dropout(0.5)] if halves else []
        before = kind.widen * units if reads else units
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


TABLE = Table(
    "linked-allcnn",
    "the all-convolutional network",
    "Linked neurons (arXiv 1712.02609), All-CNN",
    network,
    partial(SGD, momentum=0.9, nesterov=True, fused=True),
    PUBLISHED,
    SINGLE | LINKED | {"LK-ReLU": replace(LINKED["LK-ReLU"], batch=128)},
    STARTED,
    default=Settings(width=24, rate=0.01, epochs=4, shift=3, flip=True),
    faithful=Settings(
        width=96, rate=0.01, decay=1e-6, rows=0, epochs=3000, published=True, shift=3, flip=True
    ),
    smoke={"data": "digits", "width": 4, "rows": 96, "epochs": 1, "shift": 0},
)
reproduce = TABLE.reproduce
