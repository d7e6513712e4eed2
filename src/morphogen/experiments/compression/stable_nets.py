"""Perceptrons for MNIST that are trained to be compressed: l1, adversarial examples, a loss on
units of both signs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.bounds.box import Box, linf_ball, unit_cube
from morphogen.data.load import load_data
from morphogen.training.compressible import adversarial, instability, l1_step

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Training:
    """SGD as in the published grid: the rate 0.01, momentum 0.9, batch 128, the rate divided by ten
    twice.

    settled: epochs after these without the penalty, in which weights of zero stay zero. penalty: of
    the l1 norm. radius: of adversarial examples, 0 for none. stable: weight of `instability` on
    boxes of `radius` around the examples.
    """

    widths: tuple[int, ...] = (100, 100)
    epochs: int = 30
    penalty: float = 0.0
    radius: float = 0.0
    stable: float = 0.0
    settled: int = 0
    rate: float = 0.01
    batch: int = 128

    @property
    def named(self) -> str:
        told = [f"l1 {self.penalty:g}"] if self.penalty else []
        told += [f"adversarial {self.radius:g}"] if self.radius and not self.stable else []
        told += [f"stable units {self.stable:g} at {self.radius:g}"] if self.stable else []
        return ", ".join(told) or "plain"


def rows(name: str, count: int | None = None) -> dict[str, Part]:
    """Images as rows in [0, 1], the training and the test part. count: so many of the training
    part.
    """
    data = load_data(name)

    def part(x: object, y: object) -> Part:
        return torch.as_tensor(x).flatten(1).float(), torch.as_tensor(y)

    x, y = part(data.x_train, data.y_train)
    return {"train": (x[:count], y[:count]), "test": part(data.x_test, data.y_test)}


def perceptron(features: int, widths: Sequence[int], classes: int) -> nn.Sequential:
    sizes = (features, *widths)
    layers: list[nn.Module] = []
    for reads, makes in pairwise(sizes):
        layers += [nn.Linear(reads, makes), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def trained(part: Part, how: Training, seed: int) -> nn.Sequential:
    """A perceptron of these widths."""
    torch.manual_seed(seed)
    x, y = part
    model = perceptron(x.shape[1], how.widths, int(y.max()) + 1)
    optimizer = torch.optim.SGD(model.parameters(), how.rate, momentum=0.9, fused=True)
    drops = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [how.epochs * 5 // 12, how.epochs * 10 // 12], 0.1
    )

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if not how.stable:
            return F.cross_entropy(model(adversarial(model, x, y, how.radius, steps=3)), y)
        boxes = linf_ball(x, how.radius, 0.0, 1.0)
        return F.cross_entropy(model(x), y) + how.stable * instability(model, boxes)

    def shrink() -> None:
        if how.penalty:
            l1_step(optimizer, how.penalty)

    for _ in range(how.epochs):
        _epoch(part, how.batch, optimizer, loss, shrink)
        drops.step()
    _settle(model, part, how)
    return model


def _epoch(
    part: Part,
    size: int,
    optimizer: Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    after: Callable[[], None],
) -> None:
    """Not of `training.train`: the last, incomplete batch is in it, as published, and weights are
    changed after each step.
    """
    x, y = part
    for rows in torch.randperm(len(x)).split(size):
        optimizer.zero_grad()
        loss(x[rows], y[rows]).backward()
        optimizer.step()
        after()


def _settle(model: nn.Sequential, part: Part, how: Training) -> None:
    """The penalty, which also holds down the weights that stay, is let go; those that are zero stay
    so.
    """
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    there = [weight.detach() != 0 for weight in weights]
    optimizer = torch.optim.SGD(model.parameters(), how.rate / 5, momentum=0.9, fused=True)
    radius = 0.0 if how.stable else how.radius

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(adversarial(model, x, y, radius, steps=3)), y)

    @torch.no_grad()
    def mask() -> None:
        for weight, kept in zip(weights, there, strict=True):
            weight.mul_(kept)

    for epoch in range(how.settled):
        optimizer.param_groups[0]["lr"] = how.rate / (5 if 2 * epoch < how.settled else 50)
        _epoch(part, how.batch, optimizer, loss, mask)


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> float:
    """In percent."""
    return 100 * float(
        (model(part[0].to(next(model.parameters()).dtype)).argmax(1) == part[1]).double().mean()
    )


def pixels(inputs: int) -> Box:
    """Every image there is."""
    return unit_cube(inputs)
