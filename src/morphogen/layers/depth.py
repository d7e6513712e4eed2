"""A stack of blocks whose depth is one real number that the gradient learns."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError, Unsupported
from morphogen.layers.affine import AFFINE, Affine, gate_and_add
from morphogen.layers.gate import Gate, exponential
from morphogen.layers.merge import Merge, convex, residual
from morphogen.layers.protocol import Fold
from morphogen.layers.stack import BlockStack, last_norm, scaled


def gate(w: Tensor, count: int, shape: Gate = exponential) -> Tensor:
    """Gates of blocks 0 .. count-1 at depth `w` (a scalar), shape (count,): relu(1 - exp(i - w))
    unless another is given.

    At least float32, since exp overflows in half precision beyond i - w = 11.
    """
    w = w.float() if w.dtype in (torch.float16, torch.bfloat16) else w
    return shape(w - torch.arange(count, dtype=w.dtype, device=w.device))


# what stays of a block's input beside gate * block(x), for the merges that are affine
_KEPT: dict[Merge, Callable[[float], float]] = {
    residual: lambda gate: 1.0,
    convex: lambda gate: 1.0 - gate,
}


class LearnedDepth(BlockStack):
    """g <- h(merge(g, block_i(g), gate_i(w))) for i = 0, 1, ..., w: as many blocks as the real
    number `w` asks for.

    Source: "Going Deeper: Infinite Deep Neural Networks", the general form g_{i+1} = h(g_i +
    delta_w(i) f_i(g_i)). Differs: only active blocks (i < w) exist and run; h is applied once where
    there is none, so the function is continuous as w crosses 0. `wanted()` says when blocks should
    join and leave, see `BlockStack`.

    block: `block(i)` builds sub-layer i, a module of equal input and output shape; kinds may differ
    by i. h: the post-step, h(h(g)) = h(g). w: initial depth. max_blocks: the most that `wanted()`
    asks for, or None. merge: how a block joins, see `layers.merge`. gate: its gate by distance, see
    `layers.gate`; a module's parameters are trained. penalty: layer -> scalar, summed over a model
    by `layers.penalty.penalty`. floor: the least depth. At w <= 0 no task gradient reaches w in the
    original (it is absorbing); below a floor > 0 the depth is the floor, and the gradient still
    reaches w. lookahead: in training the first closed block runs too, with a gate of 0 that has the
    slope of an open one: the value stays, the gradient of w says whether that block would help, and
    its batch norm sees data. zero_init: a new block starts with its last weight at 0, so that it
    changes nothing however far w has gone past it.

    Input and output: any shape that the blocks keep. Further arguments of a call go to every block
    as they are: what blocks share, such as who hears whom in a graph. `torch.compile` compiles the
    blocks and leaves the graph to read w; with `morphogen.compiled` a model stays one graph for
    each number of blocks.
    """

    # active blocks, where whoever called a compiled model has read w for it
    _read: int | None = None

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        h: nn.Module | None = None,
        w: float = 1.0,
        max_blocks: int | None = None,
        *,
        merge: Merge = residual,
        gate: Gate = exponential,
        penalty: "Callable[[LearnedDepth], Tensor] | None" = None,
        floor: float | None = None,
        lookahead: bool = False,
        zero_init: bool = False,
    ) -> None:
        if not math.isfinite(w):
            raise ShapeError(f"LearnedDepth: w={w}; give a finite number, such as 1.0")
        if floor is not None and not floor > 0:
            raise ShapeError(
                f"LearnedDepth: floor={floor}; give a positive number such as 0.1, or None for none"
            )
        super().__init__(block, max(1, math.ceil(max(w, floor or w))) + lookahead, zero_init)
        self.h = nn.ReLU() if h is None else h
        self.w = nn.Parameter(torch.tensor(float(w)))
        self.max_blocks = max_blocks
        self.merge = merge
        self.gate = gate
        self.penalty = penalty
        self.floor = floor
        self.lookahead = lookahead

    def _count(self) -> int:
        w = self.depth
        # a depth that is NaN reaches the loss like any other weight that is, where it can be caught
        most = (
            len(self.blocks) if self.max_blocks is None else min(len(self.blocks), self.max_blocks)
        )
        return max(0, min(math.ceil(w), most)) if math.isfinite(w) else most

    @property
    def active_blocks(self) -> int:
        """How many blocks run: max(0, ceil(w)), at most those that exist. Reading it syncs with the
        device.
        """
        if torch.compiler.is_exporting():
            # whoever reads the graph must see every block that exists, or a resize would miss those
            # at rest
            return len(self.blocks)
        if not torch.compiler.is_compiling():
            return self._count()
        # a graph has a fixed number of blocks, so w is read between two graphs, or before the one
        # that asked `reading`
        return _counted(self) if self._read is None else self._read

    @property
    def depth(self) -> float:
        """The learned depth w, at least the floor."""
        w = float(self.w.detach())
        return w if self.floor is None else max(w, self.floor)

    def gates(self) -> Tensor:
        """Gate values of the existing blocks, shape (blocks,)."""
        lift = 0.0 if self.floor is None else torch.relu(self.floor - self.w).detach()
        return gate(self.w + lift, len(self.blocks), self.gate)

    def wanted(self, margin: float = 0.25) -> int:
        """How many blocks should exist: one more once w exceeds them, one fewer once w is `margin`
        below the last.

        The margin is a hysteresis: w hovering at an integer does not flip the structure. At least
        one block stays; with `lookahead` there is one more than that.
        """
        w = self.depth
        built = len(self.blocks) - self.lookahead
        if not math.isfinite(w):
            return len(self.blocks)
        if w > built and (self.max_blocks is None or built < self.max_blocks):
            return built + 1 + self.lookahead
        return built + self.lookahead - (built > 1 and w < built - 1 - margin)

    def fix_depth(self, least: float = 0.1) -> None:
        """End the search: from now on the depth stays, and no closed block is looked at. A last
        block whose gate is below `least`, which changes little and costs as much as any, is closed;
        the blocks go on learning.
        """
        whole = math.floor(self.depth) if math.isfinite(self.depth) else 0
        with torch.no_grad():
            if 0 < whole < min(self.depth, len(self.blocks)) and float(self.gates()[whole]) < least:
                self.w.fill_(float(whole))
        self.w.requires_grad_(False)
        self.w.grad = None
        self.lookahead = False

    def new_block_is_silent(self) -> bool:
        """Its gate is closed, or it starts at zero and is added."""
        return self.depth <= len(self.blocks) or (self.zero_init and self.merge is residual)

    def size_parameters(self) -> list[nn.Parameter]:
        """w."""
        return [self.w]

    def to_plain(self, fold: Fold) -> nn.Sequential:
        """The active blocks, each one affine layer with its gate and the identity multiplied out,
        and h after each.

        Source: Going Deeper, the gated form: W' = s W + I, b' = s (b - mean) + gate beta, s = gate
        gamma / sqrt(var + eps). Raises `Unsupported` for blocks and merges that are not affine.
        """
        kept = _KEPT.get(self.merge)
        if kept is None:
            name = getattr(self.merge, "__name__", self.merge)
            raise Unsupported(
                f"freeze: the merge '{name}' is not affine and cannot be folded; use residual or "
                "convex"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        h = "relu" if isinstance(self.h, nn.ReLU) else "h"
        gates = self.gates().tolist()
        for number in range(1, self.active_blocks + 1):
            gate = gates[number - 1]
            layer = _affine(fold(self.blocks[number - 1]))
            gate_and_add(layer, gate, kept(gate))
            layers[f"block{number}"] = layer
            layers[f"{h}{number}"] = copy.deepcopy(self.h)
        return nn.Sequential(layers or OrderedDict(h=copy.deepcopy(self.h)))

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        active = self.active_blocks
        gates = self.gates()[:active].unbind()
        for block, own in zip(self.blocks, gates, strict=False):
            x = self.h(self._joined(block, x, own, context))
        if active == 0:
            x = self.h(x)
        if self.lookahead and self.training and active < len(self.blocks):
            with torch.no_grad():  # a closed block's own weights get no gradient, not even zeros
                closed = self.blocks[active](x, *context)
            # a gate of 0 with slope 1
            x = self.merge(x, closed, (self.w - self.w.detach()).to(x.dtype))
        return x

    def _joined(
        self, block: nn.Module, x: Tensor, gate: Tensor, context: tuple[Any, ...]
    ) -> Tensor:
        """merge(x, block(x), gate). In training the gate goes into the norm that a block ends with,
        where there is one: a few numbers are scaled instead of a batch, forward and backward. A
        compiler fuses the product anyway.
        """
        foldable = (
            self.training
            and self.merge is residual
            and not context
            and not torch.compiler.is_compiling()
        )
        if foldable and (steps_and_place := last_norm(block)) is not None:
            return x + scaled(*steps_and_place, x, gate)
        return self.merge(x, block(x, *context), gate.to(x.dtype))

    def extra_repr(self) -> str:
        return f"w={self.depth:.3f}, active={self.active_blocks}"


def _affine(block: nn.Module) -> Affine:
    """The one affine layer that a block of plain modules is, as a copy: blocks may share it."""
    layers = [module for module in block.modules() if not isinstance(module, nn.Sequential)]
    if len(layers) != 1 or not isinstance(layers[0], AFFINE):
        raise Unsupported(
            f"freeze: a block of {', '.join(type(m).__name__ for m in layers)} is not one affine "
            "layer and cannot be folded with its gate; use blocks of Linear or Conv with "
            "BatchNorm and Dropout"
        )
    return copy.deepcopy(layers[0])


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """For a while, compiled graphs take the number of active blocks as it is now, and need not stop
    to read w.
    """
    layers = [module for module in model.modules() if isinstance(module, LearnedDepth)]
    try:
        for layer in layers:
            layer._read = layer._count()
        yield
    finally:
        for layer in layers:
            layer._read = None


@partial(
    torch.compiler.disable,
    reason="a LearnedDepth reads w; for a whole graph use morphogen.compiled(model)",
)
def _counted(layer: LearnedDepth) -> int:
    return layer._count()
