"""A stack of blocks whose depth is one real number that the gradient learns."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError


def gate(w: Tensor, count: int) -> Tensor:
    """Gates of blocks 0 .. count-1 at depth `w` (a scalar): relu(1 - exp(i - w)), shape (count,).

    Written as -expm1(-relu(w - i)): the same value, finite gradients for every i, exact for tiny w - i, and a zero
    gradient at the kink i = w, where `w` starts. At least float32, since exp overflows in half precision beyond i - w = 11.
    """
    w = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
    return -torch.expm1(-torch.relu(w - torch.arange(count, dtype=w.dtype, device=w.device)))


def reinitialised(module: nn.Module) -> nn.Module:
    """`module` itself with fresh parameters, at the sizes it has now, wherever a part of it knows how to reset itself."""
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
    return module


class LearnedDepth(nn.Module):
    """g <- h(g + gate_i(w) * block_i(g)) for i = 0, 1, ..., w: as many blocks as the real number `w` asks for.

    Source: "Going Deeper: Infinite Deep Neural Networks", the general form g_{i+1} = h(g_i + delta_w(i) f_i(g_i)).
    Differs: only active blocks (i < w) exist and run; h is applied once where there is none, so the function is continuous
    as w crosses 0. Blocks join and leave through `morphogen.resize` (`AddBlock`, `DropBlock`), never by themselves, so
    that no optimizer is left behind; `wanted()` says when.

    block: `block(i)` builds sub-layer i, a module of equal input and output shape. h: the idempotent post-step.
    w: initial depth. max_blocks: the most that `wanted()` asks for, or None.
    Input and output: any shape that the blocks keep. At w <= 0 no task gradient reaches w (absorbing).
    """

    def __init__(
        self, block: Callable[[int], nn.Module], h: nn.Module | None = None, w: float = 1.0, max_blocks: int | None = None
    ) -> None:
        super().__init__()
        if not math.isfinite(w):
            raise ShapeError(f"LearnedDepth: w={w}; give a finite number, such as 1.0")
        self.h = nn.ReLU() if h is None else h
        self.w = nn.Parameter(torch.tensor(float(w)))
        self.max_blocks = max_blocks
        self.blocks = nn.ModuleList(block(i) for i in range(max(1, math.ceil(w))))
        self._active = self._count()

    def _count(self) -> int:
        w = float(self.w.detach())
        # a depth that is NaN reaches the loss like any other weight that is, where it can be caught
        return max(0, min(math.ceil(w), len(self.blocks))) if math.isfinite(w) else len(self.blocks)

    @property
    def active(self) -> int:
        """How many blocks run: max(0, ceil(w)), at most those that exist. Reading it syncs with the device."""
        if torch.compiler.is_exporting():
            # whoever reads the graph must see every block that exists, or a resize would miss those at rest
            return len(self.blocks)
        if not torch.compiler.is_compiling():  # a compiled graph has a fixed number: that of the last eager call
            self._active = self._count()
        return self._active

    @property
    def depth(self) -> float:
        """The learned depth w."""
        return float(self.w.detach())

    def gates(self) -> Tensor:
        """Gate values of the existing blocks, shape (blocks,)."""
        return gate(self.w, len(self.blocks))

    def wanted(self, margin: float = 0.25) -> int:
        """How many blocks should exist: one more once w exceeds them, one fewer once w is `margin` below the last.

        The margin is a hysteresis: w hovering at an integer does not flip the structure. At least one block stays.
        """
        w, built = self.depth, len(self.blocks)
        if w > built and (self.max_blocks is None or built < self.max_blocks):
            return built + 1
        return built - 1 if built > 1 and w < built - 1 - margin else built

    def new_block(self) -> nn.Module:
        """A freshly initialised block, at the width that the blocks have now."""
        return reinitialised(copy.deepcopy(self.blocks[-1]))

    def forward(self, x: Tensor) -> Tensor:
        active = self.active
        if active == 0:
            return self.h(x)  # type: ignore[no-any-return]
        gates = self.gates().to(x.dtype)
        for i in range(active):
            x = self.h(x + gates[i] * self.blocks[i](x))
        return x

    def extra_repr(self) -> str:
        return f"w={self.depth:.3f}, active={self.active}"
