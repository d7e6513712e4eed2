"""Random piecewise linear networks in float64: plain, leaky, residual, concatenating,
convolutional.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box


class Residual(nn.Module):
    """Layers that add to a stream, the last one's slope below 0 being `slope`."""

    def __init__(
        self, inputs: int, width: int, layers: int, outputs: int, slope: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inputs if i == 0 else width, width) for i in range(layers)
        )
        self.out, self.slope = nn.Linear(width, outputs), slope

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            h = (
                nn.functional.leaky_relu(layer(x), self.slope)
                if self.slope
                else torch.relu(layer(x))
            )
            x = x + h if i else h
        return self.out(x)


class Concatenating(nn.Module):
    """The second layer reads the input, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(2, 4), nn.Linear(6, 3), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.out(torch.cat([h, torch.relu(self.second(torch.cat([x, h], 1)))], 1))


def plain(inputs: int, widths: tuple[int, ...], outputs: int, slope: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    sizes, layers = (inputs, *widths), []
    for reads, makes in pairwise(sizes):
        layers += [nn.Linear(reads, makes), nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


BUILD: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: plain(2, (5, 4), 1),
    "deep": lambda: plain(2, (4, 3, 3), 2),
    "three inputs": lambda: plain(3, (4, 3), 2),
    "leaky": lambda: plain(2, (4, 3), 2, slope=0.2),
    "residual": lambda: Residual(2, 3, 3, 2),
    "residual, leaky": lambda: Residual(2, 2, 3, 1, slope=0.1),
    "concatenating": Concatenating,
}


def drawn(name: str, seed: int) -> tuple[nn.Module, Box]:
    """A network without gradients, and the box from -3 to 3; weights and biases as in the
    specification's table.
    """
    torch.manual_seed(seed)
    model = BUILD[name]().double().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.4 / layer.in_features**0.5)
            nn.init.normal_(layer.bias, std=0.5)
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    return model, cube(first.in_features)


def cube(inputs: int, radius: float = 3.0) -> Box:
    ends = torch.full((1, inputs), radius, dtype=torch.float64)
    return Box(-ends, ends)
