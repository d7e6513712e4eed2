"""Networks of every kind of step, small enough that every technique bounds them in a moment, and
points of a box.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen.bounds.box import Box
from morphogen.layers.linked import LKReLU
from morphogen.models import convnet, dagnet


class Branches(nn.Module):
    """Sums, differences, parts and joints."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        first, second = (x - torch.sigmoid(self.two(y))).chunk(2, 1)
        return self.three(torch.cat([first, 2 * y, second.tanh()], 1))


def between(activation: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), activation, nn.Linear(12, 12), activation, nn.Linear(12, 3)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        type(activation).__name__: (lambda a=activation: between(a), (6,))
        for activation in (
            nn.ReLU(),
            nn.Sigmoid(),
            nn.Tanh(),
            nn.ELU(),
            nn.SELU(),
            nn.GELU(),
            nn.SiLU(),
            nn.Softplus(),
            nn.LeakyReLU(0.1),
        )
    },
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (1, 8, 8),
    ),
    "overlapping pools": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(48, 3)
        ),
        (1, 8, 8),
    ),
    "convnet": (lambda: convnet((1, 8, 8), 3, 4), (1, 8, 8)),
    "branches": (Branches, (6,)),
    "DAG": (lambda: dagnet(6, 3, 7), (6,)),
    "linked DAG": (lambda: dagnet(6, 3, 5, linked=True), (6,)),
    "linked": (lambda: nn.Sequential(nn.Linear(6, 8), LKReLU(), nn.Linear(16, 3)), (6,)),
    "learned depth": (
        lambda: nn.Sequential(
            nn.Linear(6, 5), mg.LearnedDepth(lambda _: nn.Linear(5, 5), w=2.3), nn.Linear(5, 3)
        ),
        (6,),
    ),
}


def inside(box: Box, count: int, draw: torch.Generator) -> Tensor:
    """Points of a box: corners and others, (count, *shape)."""
    share = torch.rand(count, *box.lower.shape, generator=draw, dtype=box.lower.dtype)
    share = torch.where(
        torch.rand(count, *[1] * box.lower.dim(), generator=draw) < 0.5, share.round(), share
    )
    return (box.lower + share * box.width).clamp(box.lower, box.upper)
