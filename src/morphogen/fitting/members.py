"""Several networks of one shape side by side, each trained without one fold of the rows: `Members`,
`train_members`.

Networks as small as those of a table spend their time in waiting for the next operation; five side
by side, one batched product a layer, take hardly longer than one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from morphogen.training.train import generator

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (..., outputs), targets) -> the loss of each example, (...)."""


class Members(nn.Module):
    """`count` perceptrons, one weight (count, inputs, units) a layer, ReLU between, dropout before
    each layer but the first.

    Input (n, features) for all, or (count, n, features); output (count, n, outputs).
    """

    def __init__(self, count: int, sizes: Sequence[int], dropout: float, seed: int) -> None:
        super().__init__()
        draw = generator(seed, 6)
        self.dropout = dropout
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, units in pairwise(sizes):
            scale = math.sqrt(2 / inputs)
            weight = torch.randn(count, inputs, units, generator=draw) * scale
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(count, 1, units)))

    @property
    def count(self) -> int:
        return len(self.weights[0])

    def forward(self, x: Tensor) -> Tensor:
        h = x if x.dim() == 3 else x.expand(self.count, *x.shape)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number:
                h = F.dropout(F.relu(h), self.dropout, self.training)
            h = torch.baddbmm(bias, h, weight)
        return h

    @torch.no_grad()
    def member(self, number: int) -> nn.Sequential:
        """One of them as plain modules, in evaluation mode."""
        layers: list[nn.Module] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if layers:
                layers.append(nn.ReLU())
            layer = nn.Linear(*weight.shape[1:])
            layer.weight.copy_(weight[number].T)
            layer.bias.copy_(bias[number, 0])
            layers.append(layer)
        return nn.Sequential(*layers).eval()


@dataclass(frozen=True)
class Training:
    """How members are trained. epochs: at most. patience: epochs without a better one for any
    member, after which training ends. rate: of AdamW, it falls to 0 along a cosine.
    """

    epochs: int = 60
    patience: int = 12
    rate: float = 1e-3
    decay: float = 0.1
    dropout: float = 0.2


def train_members(
    members: Members,
    x: Tensor,
    y: Tensor,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    loss: Loss,
    how: Training,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Member k learns from one part of fold k and keeps the epoch that was best on the other.

    x: (n, features). y: targets, (n, ...). stopped: asked after each epoch whether to end early.
    """
    inside = [torch.as_tensor(rows) for rows, _ in folds]
    fewest = min(map(len, inside))
    size = min(fewest, max(16, min(256, fewest // 16)))
    steps = fewest // size
    optimizer = AdamW(
        [
            {"params": [*members.weights], "weight_decay": how.decay},
            {"params": [*members.biases], "weight_decay": 0.0},
        ],
        lr=how.rate,
        betas=(0.9, 0.99),
        fused=True,
    )
    best = _Best(members, x, y, [torch.as_tensor(rows) for _, rows in folds], loss)
    draw = generator(seed, 7)
    for epoch in range(how.epochs):
        members.train()
        orders = [rows[torch.randperm(len(rows), generator=draw)] for rows in inside]
        batches = torch.stack([order[: steps * size].view(steps, size) for order in orders], 1)
        for number, rows in enumerate(batches):
            share = (epoch * steps + number) / (how.epochs * steps)
            warm = min(1.0, (epoch * steps + number + 1) / 20)
            for group in optimizer.param_groups:
                group["lr"] = how.rate * warm * (1 + math.cos(math.pi * share)) / 2
            optimizer.zero_grad()
            # a sum over members: each has the gradient it would have alone
            loss(members(x[rows]), y[rows]).mean(1).sum().backward()
            optimizer.step()
        if best.keep(epoch) > how.patience or stopped():
            break
    best.restore()


class _Best:
    """The weights of each member at its best epoch."""

    def __init__(
        self, members: Members, x: Tensor, y: Tensor, held: Sequence[Tensor], loss: Loss
    ) -> None:
        self.members = members
        self.loss = loss
        longest = max(map(len, held))
        # filled up with rows that then count for nothing
        places = torch.stack([F.pad(rows, (0, longest - len(rows))) for rows in held])
        counts = torch.tensor([[len(rows)] for rows in held])
        self.counted = torch.arange(longest) < counts
        self.x = x[places]
        self.y = y[places]
        self.losses = torch.full((len(held),), torch.inf)
        self.weights = [p.detach().clone() for p in members.parameters()]
        self.epoch = 0

    @torch.no_grad()
    def keep(self, epoch: int) -> int:
        """Keeps what is better now; returns for how many epochs nothing was."""
        self.members.eval()
        losses = self.loss(self.members(self.x), self.y)
        means = (losses * self.counted).sum(1) / self.counted.sum(1)
        better = means < self.losses
        self.losses = torch.where(better, means, self.losses)
        for kept, weight in zip(self.weights, self.members.parameters(), strict=True):
            kept[better] = weight[better]
        if bool(better.any()):
            self.epoch = epoch
        return epoch - self.epoch

    @torch.no_grad()
    def restore(self) -> None:
        for kept, weight in zip(self.weights, self.members.parameters(), strict=True):
            weight.copy_(kept)
        self.members.eval()
