"""Random networks of convolutions, norms, residual adds, concatenations, attention and linked
pairs.
"""

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn

Layer = tuple[str, Callable[["RandomNet", Tensor], Tensor]]


class RandomNet(nn.Module):
    """A convolutional trunk, perhaps attention over its positions, and a head; drawn from a seed.

    Input (batch, 2, 4, 4), output (batch, 3).
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw, self.steps = Random(seed), []
        channels = self.add_conv(2)
        for _ in range(self.draw.randint(1, 4)):
            kind = self.draw.choice(
                ("conv", "residual", "concat", "group_norm", "linked", "depthwise", "gate")
            )
            channels = getattr(self, f"add_{kind}")(channels)
        if self.draw.random() < 0.4:
            self.steps.append(lambda m, x: x.flatten(2).transpose(1, 2))
            channels = self.add_attention(channels)
            self.steps.append(lambda m, x: x.mean(1))
        else:
            self.steps.append(lambda m, x: x.flatten(1))
            channels *= 16
        hidden, output = self.new(nn.Linear(channels, 5)), self.new(nn.Linear(5, 3))
        self.steps.append(lambda m, x: m.layer(output)(torch.tanh(m.layer(hidden)(x))))
        del self.draw

    def new(self, module: nn.Module) -> str:
        name = f"{type(module).__name__.lower()}{len(self._modules)}"
        self.add_module(name, module)
        return name

    def layer(self, name: str) -> nn.Module:
        return self.get_submodule(name)

    def add_conv(self, channels: int) -> int:
        planes = self.draw.randint(2, 5)
        conv, norm = (
            self.new(nn.Conv2d(channels, planes, 3, padding=1)),
            self.new(nn.BatchNorm2d(planes)),
        )
        self.steps.append(lambda m, x: m.layer(norm)(m.layer(conv)(x)).relu())
        return planes

    def add_residual(self, channels: int) -> int:
        planes = self.draw.randint(2, 5)
        into, out = (
            self.new(nn.Conv2d(channels, planes, 3, padding=1)),
            self.new(nn.Conv2d(planes, channels, 1)),
        )
        self.steps.append(lambda m, x: x + m.layer(out)(m.layer(into)(x).relu()))
        return channels

    def add_concat(self, channels: int) -> int:
        planes = self.draw.randint(2, 4)
        side = self.new(nn.Conv2d(channels, planes, 1))
        order = self.draw.random() < 0.5
        self.steps.append(
            lambda m, x: torch.cat([x, m.layer(side)(x)] if order else [m.layer(side)(x), x], 1)
        )
        return channels + planes

    def add_group_norm(self, channels: int) -> int:
        conv, norm = (
            self.new(nn.Conv2d(channels, 6, 1)),
            self.new(nn.GroupNorm(self.draw.choice((1, 2, 3)), 6)),
        )
        self.steps.append(lambda m, x: m.layer(norm)(m.layer(conv)(x)).relu())
        return 6

    def add_linked(self, channels: int) -> int:
        conv = self.new(nn.Conv2d(channels, planes := self.draw.randint(2, 4), 1))

        def run(m: "RandomNet", x: Tensor) -> Tensor:
            h = m.layer(conv)(x)
            return torch.cat([h.relu(), (-h).relu()], 1)

        self.steps.append(run)
        return 2 * planes

    def add_depthwise(self, channels: int) -> int:
        planes = self.draw.randint(2, 4)
        into, deep = (
            self.new(nn.Conv2d(channels, planes, 1)),
            self.new(nn.Conv2d(planes, planes, 3, padding=1, groups=planes)),
        )
        self.steps.append(lambda m, x: m.layer(deep)(m.layer(into)(x)))
        return planes

    def add_gate(self, channels: int) -> int:
        down, up = self.new(nn.Conv2d(channels, 2, 1)), self.new(nn.Conv2d(2, channels, 1))
        self.steps.append(
            lambda m, x: (
                x * m.layer(up)(m.layer(down)(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
            )
        )
        return channels

    def add_attention(self, channels: int) -> int:
        heads, width = self.draw.choice((1, 2)), 4
        q, k, v = (self.new(nn.Linear(channels, width)) for _ in range(3))
        out = self.new(nn.Linear(width, channels))

        def run(m: "RandomNet", x: Tensor) -> Tensor:
            parts = (m.layer(n)(x).view(*x.shape[:2], heads, -1).transpose(1, 2) for n in (q, k, v))
            h = nn.functional.scaled_dot_product_attention(*parts)
            return x + m.layer(out)(h.transpose(1, 2).flatten(2))

        self.steps.append(run)
        return channels

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self, x)
        return x
