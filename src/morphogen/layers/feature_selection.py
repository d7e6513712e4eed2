"""Which features of its input a network reads: `FeatureSelection(features)`."""

import torch
from torch import Tensor, fx, nn

from morphogen.layers.protocol import Fold


class Select(nn.Module):
    """Some of the features of an input (..., features), in the order of `index`: (..., count)."""

    index: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.arange(count))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(-1, self.index)


class FeatureSelection(Select):
    """All `features` at first; those that leave do so by `Shrink`, and with them what reads them.

    Input (..., features), output (..., units). Nothing is trained; a policy leaves it alone.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.features = features

    def unit_tensor(self) -> str:
        return "index"

    def wanted(self) -> int:
        return len(self.index)

    def reason(self) -> str:
        return "features leave when they are shrunk, never by themselves"

    def to_plain(self, fold: Fold) -> nn.Module:
        """An identity where all are kept; else traced, so that nothing of morphogen is in it."""
        if torch.equal(self.index.cpu(), torch.arange(self.features)):
            return nn.Identity()
        plain = Select(len(self.index))
        plain.index = self.index
        return fx.symbolic_trace(plain)


def is_selection(module: nn.Module) -> bool:
    """Whether it is what `FeatureSelection` becomes in a plain network."""
    return isinstance(module, fx.GraphModule) and [*module.state_dict()] == ["index"]
