"""What layers of learned depth share: a list of blocks of equal input and output shape that can get one more."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.draws import own_draws


def reinitialised(module: nn.Module) -> nn.Module:
    """`module` itself with fresh parameters, at the sizes it has now, wherever a part of it knows how to reset itself."""
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return module


def last_weight(block: nn.Module) -> str:
    """The name of the weight of a block's last part that has one; "" where none has."""
    return next((name for name, _ in reversed([*block.named_parameters()]) if name.rpartition(".")[2] == "weight"), "")


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_SCALED_THROUGH = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)  # f(a x) = a f(x)


def last_norm(block: nn.Module) -> nn.Module | None:
    """The norm that a block ends with, dropout after it aside; None where there is none, or its scale is no plain parameter.

    What the block gives is linear in the norm's scale and shift: scaled, they scale it.
    """
    if isinstance(block, _NORMS):
        return block if type(block._parameters.get("weight")) is nn.Parameter else None
    if type(block) is nn.Sequential:
        for child in reversed(block._modules.values()):
            if child is not None and not isinstance(child, _SCALED_THROUGH):
                return last_norm(child)
    return None


@contextmanager
def scaled(norm: nn.Module, factor: Tensor) -> Iterator[None]:
    """For a while, scale and shift of a norm are `factor` times what they are; gradients reach both."""
    own = dict(norm._parameters)
    for name, parameter in own.items():
        norm._parameters[name] = None if parameter is None else factor * parameter  # type: ignore[assignment]
    try:
        yield
    finally:
        norm._parameters.update(own)


class BlockStack(nn.Module, ABC):
    """Blocks that are run in order, as many as the layer wants.

    Blocks join and leave through `morphogen.resize` (`AddBlock`, `DropBlock`, `adapt`), never by themselves, so that no
    optimizer is left behind. block: `block(i)` builds sub-layer i; kinds may differ by i. count: how many there are at first.
    """

    def __init__(self, block: Callable[[int], nn.Module], count: int, quiet: bool = False) -> None:
        super().__init__()
        self._build: Callable[[int], nn.Module] | None = block
        self.quiet = quiet
        self.blocks = nn.ModuleList(block(i) for i in range(count))

    @property
    @abstractmethod
    def depth(self) -> float:
        """The learned depth, a real number."""

    @abstractmethod
    def wanted(self) -> int:
        """How many blocks should exist."""

    def new_block(self) -> nn.Module:
        """A freshly initialised block for the next place, at the width that the blocks have now."""
        block = reinitialised(copy.deepcopy(self._like_the_next()))
        if self.quiet:
            last = last_weight(block)
            for name, parameter in block.named_parameters():
                if last and name in (last, f"{last.removesuffix('weight')}bias"):
                    nn.init.zeros_(parameter)
        return block

    def _like_the_next(self) -> nn.Module:
        """The last block of the kind that comes next; where no block is, the one that `block(i)` builds."""
        if self._build is None:
            return self.blocks[-1]
        with own_draws():
            built = self._build(len(self.blocks))
        alike = [block for block in self.blocks if _kind(block) == _kind(built)]
        return alike[-1] if alike else built.to(next(self.blocks.parameters(), torch.empty(0)))

    def __deepcopy__(self, memo: dict[int, Any]) -> "BlockStack":
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__dict__.update({k: v if k == "_build" else copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return result

    def __getstate__(self) -> dict[str, Any]:
        # `block` is often a lambda, which cannot be pickled; a copy of the last block stands in for it
        return {**vars(self), "_build": None}


def _kind(block: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in block.named_modules()]
