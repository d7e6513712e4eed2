"""The linear model that comes closest to what a network is to learn: `closest(x, y, ...)`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS

_MOST_ROWS = 20_000
_MOST_FEATURES = 2000
_STEPS = 50
_RIDGE = 1e-5


def closest(
    x: Tensor, y: Tensor, regression: bool, weight: Tensor | None, generator: torch.Generator
) -> nn.Linear | None:
    """A layer from x (n, features) to y (n, outputs), numbers or shares of classes; None where
    there are more than 2,000 features. weight: (n,), of the rows.

    Least squares, or log loss by L-BFGS, on at most 20,000 of the rows, with a small ridge.
    """
    if x.shape[1] > _MOST_FEATURES:
        return None
    chosen = torch.randperm(len(x), generator=generator)[:_MOST_ROWS].to(x.device)
    x, y = x[chosen], y[chosen]
    share = torch.ones(len(x)) if weight is None else weight[chosen.to(weight.device)]
    share = (share / share.sum()).to(x)
    layer = nn.Linear(x.shape[1], y.shape[1], device=x.device)
    if regression:
        _solve(layer, x.double(), y.double(), share.double())
    else:
        _descend(layer, x, y, share)
    return layer


@torch.no_grad()
def _solve(layer: nn.Linear, x: Tensor, y: Tensor, share: Tensor) -> None:
    x_mean, y_mean = share @ x, share @ y
    x, y = x - x_mean, y - y_mean
    joint = (x * share[:, None]).T @ x
    joint += _RIDGE * torch.eye(len(joint)).to(joint)
    weight = torch.linalg.solve(joint, (x * share[:, None]).T @ y)
    layer.weight.copy_(weight.T)
    layer.bias.copy_(y_mean - x_mean @ weight)


@torch.enable_grad()
def _descend(layer: nn.Linear, x: Tensor, y: Tensor, share: Tensor) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = LBFGS(layer.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        losses = F.cross_entropy(layer(x), y, reduction="none")
        value = share @ losses + _RIDGE * layer.weight.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
