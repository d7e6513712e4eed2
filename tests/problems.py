"""Small networks whose widths are known by hand."""

import torch
from torch import Tensor, nn

from morphogen.models import convnet, dagnet, mlp


class Residual(nn.Module):
    """Two convolutions added, two widths side by side, a flatten: every kind of span."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.side = nn.Conv2d(2, 4, 1)
        self.third = nn.Conv2d(16, 5, 3, padding=1)
        self.hidden, self.output = nn.Linear(5 * 4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x)).relu()
        h = h + self.second(h)
        h = torch.cat([h, self.side(x), h], 1)
        h = nn.functional.max_pool2d(self.third(h).relu(), 2).flatten(1)
        return self.output(self.hidden(h).relu())


class Embedded(nn.Module):
    """An embedding, layer norm over a width, PReLU slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.hidden, self.slope, self.output = nn.Linear(8, 6), nn.PReLU(6), nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.slope(self.hidden(self.norm(self.table(tokens)).mean(1))))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    )


PROBLEMS = {
    "chain": (chain, (5, 4), {"0": 8, "2": 6}),
    "residual": (Residual, (3, 2, 4, 4), {"first": 6, "side": 4, "third": 5, "hidden": 7}),
    "convnet": (lambda: convnet((1, 8, 8), 3, 4), (3, 1, 8, 8), {"conv1": 4}),
    "mlp": (lambda: mlp(5, 2, 4), (6, 5), {"hidden": 4}),
    "dagnet": (lambda: dagnet(5, 2, 4), (6, 5), {"dag": 4}),
}
"""name -> (build, shape of an example, free widths and their sizes)."""


def problem(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network whose norms have seen data, and an example."""
    build, shape, _ = PROBLEMS[name]
    model = build().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model, torch.randn(shape, dtype=dtype)
