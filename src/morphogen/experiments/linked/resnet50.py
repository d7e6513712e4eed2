"""A small ResNet-50 with linked activations, with batch norm and without.

The article's table 4 and its times: bottlenecks whose two inner activations are linked, those of
the stem and behind an addition plain, on CIFAR-10 with moved and mirrored images, 2,000 epochs. Its
"200 % faster than batch norm" is the time of whole runs, 2.09 times that of LK-ReLU without norm.
default: a quarter of the blocks, fewer rows and epochs.

Source: Riera Molina & Pujol 2017 (arXiv 1712.02609), tables "ResNet50" and "without BN". Differs:
LK-SELU without norm has none in the stem either, where the original forgot one.
"""

from dataclasses import replace
from functools import partial

from torch import Tensor, nn
from torch.optim import Adam

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
    "ReLU": 0.8973,
    "LK-ReLU": 0.9027,
    "PReLU": 0.8907,
    "LK-PReLU": 0.9027,
    "SELU": 0.9041,
    "LK-SELU": 0.9134,
    "Swish": 0.9050,
    "LK-Swish": 0.9139,
    "LK-ReLU, no BN": 0.9048,
    "SELU, no BN": 0.8611,
    "LK-SELU, no BN": 0.9088,
}
BLOCKS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """act(past(x) + c(lk(b(lk(a(x)))))), convolutions of 1, 3 and 1, each with its norm where there
    are norms.
    """

    def __init__(
        self, kind: Kind, before: int, inner: int, units: int, stride: int, past: bool
    ) -> None:
        super().__init__()
        w = kind.widen
        self.a = layer(kind, nn.Conv2d(before, inner, 1, stride), False)
        self.b = layer(kind, nn.Conv2d(w * inner, inner, 3, padding=1), True)
        self.c = layer(kind, nn.Conv2d(w * inner, units, 1), True)
        self.past = (
            layer(kind, nn.Conv2d(before, units, 1, stride), False) if past else nn.Identity()
        )
        self.first = kind.build(inner)
        self.second = kind.build(inner)
        self.last = kind.plain(units)

    def forward(self, x: Tensor) -> Tensor:
        change = self.c(self.second(self.b(self.first(self.a(x)))))
        return self.last(change + self.past(x))  # type: ignore[no-any-return]


def layer(kind: Kind, conv: nn.Conv2d, reads: bool) -> nn.Module:
    """A convolution from its start, with a norm behind it where there are norms."""
    begun = started(conv, kind, reads)
    return (
        nn.Sequential(begun, nn.BatchNorm2d(conv.out_channels, eps=1e-3, momentum=0.01))
        if kind.norm
        else begun
    )


def network(kind: Kind, settings: Settings, classes: int) -> nn.Sequential:
    """Images (batch, 3, 32, 32) -> logits (batch, classes); settings.layers: blocks of all stages
    are divided by it.
    """
    width = kind.units(settings.width)
    blocks: list[nn.Module] = []
    before = width
    for stage, count in enumerate(BLOCKS):
        inner, units = (2 * width, 8 * width) if stage < 2 else (4 * width, 16 * width)
        for number in range(-(-count // settings.layers)):
            blocks.append(
                Bottleneck(
                    kind, before, inner, units, 2 if stage and not number else 1, number == 0
                )
            )
            before = units
    stem = nn.Sequential(layer(kind, nn.Conv2d(3, width, 3, padding=1), False), kind.plain(width))
    return nn.Sequential(
        stem,
        *blocks,
        nn.Flatten(),
        started(nn.Linear(before * 16, classes), replace(kind, init="glorot"), True),
    )


def _normed(kinds: dict[str, Kind]) -> dict[str, Kind]:
    return {name: replace(kind, norm=True) for name, kind in kinds.items()}


TABLE = Table(
    "linked-resnet50",
    "a small ResNet-50",
    "Linked neurons (arXiv 1712.02609), ResNet50",
    network,
    partial(Adam, eps=1e-8, fused=True),
    PUBLISHED,
    {
        **_normed(SINGLE | LINKED),
        "LK-ReLU, no BN": LINKED["LK-ReLU"],
        "SELU, no BN": SINGLE["SELU"],
        "LK-SELU, no BN": LINKED["LK-SELU"],
    },
    {
        f"{name}, no BN": STARTED[name]
        for name in ("LK-ReLU, looks linear", "LK-Swish, looks linear", "LK-SELU, variance")
    },
    default=Settings(width=8, layers=4, epochs=4, batch=64, shift=3, flip=True),
    faithful=Settings(
        width=8,
        layers=1,
        rows=0,
        epochs=2000,
        batch=128,
        decay=1e-6,
        published=True,
        shift=3,
        flip=True,
    ),
    smoke={"data": "digits", "width": 2, "layers": 4, "rows": 96, "epochs": 1, "shift": 0},
    clock="LK-ReLU, no BN",
)
reproduce = TABLE.reproduce
