"""A distribution over depth instead of one depth: `DepthPosterior`, and the one depth that it ends
in.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError, Unsupported
from morphogen.layers.protocol import Fold
from morphogen.layers.stack import BlockStack
from morphogen.layers.units import unit_dim

Losses = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> the loss of each example, shape (batch,): negative log likelihoods."""


def discretised_normal(mean: Tensor, scale: Tensor, count: int) -> Tensor:
    """Probabilities of depths 1 .. count, shape (count,): a normal, rounded to whole numbers and
    cut to that range.

    P(l) is proportional to Phi((l + 1/2 - mean) / scale) - Phi((l - 1/2 - mean) / scale). Source:
    van Erp & de Vries 2024 (arXiv 2410.10395); a Poisson's variance is its mean, so that a deep
    posterior would span many layers.
    """
    depths = torch.arange(1, count + 1, dtype=mean.dtype, device=mean.device)
    upper = (depths + 0.5 - mean) / scale
    lower = (depths - 0.5 - mean) / scale
    # differences in the nearer tail, so that far depths keep their digits
    near = torch.where(lower > 0, -lower, upper)
    far = torch.where(lower > 0, -upper, lower)
    mass: Tensor = (torch.special.ndtr(near) - torch.special.ndtr(far)).clamp_min(
        torch.finfo(mean.dtype).tiny
    )
    return mass / mass.sum()


@dataclass(frozen=True)
class Collapse:
    """One fixed depth instead of the distribution, and its price.

    losses: mean loss of each fixed depth 1, 2, ...; mixture: that of the whole distribution; depth:
    the one that was chosen.
    """

    depth: int
    losses: tuple[float, ...]
    mixture: float

    def __str__(self) -> str:
        price = self.losses[self.depth - 1] - self.mixture
        return (
            f"depth {self.depth}: loss {self.losses[self.depth - 1]:.4f}, {price:+.4f} beside the "
            f"mixture of {len(self.losses)}"
        )


class DepthPosterior(BlockStack):
    """g_l = block_l(g_{l-1}), a read-out o_l after each, and q(l), a learned distribution over the
    depth l.

    block: `block(i)` builds the module of depth i + 1, of equal input and output shape; a residual
    connection is the block's own business. readout: `readout()` builds what turns features into
    outputs, one for every depth. mean, scale: of q at the start. prior: (mean, scale) of p(l).
    quantile: blocks exist up to this quantile of q; deeper ones have no share.

    `losses(x, y, loss, rows)` is the objective; calling the module gives the mixture's prediction:
    the mean of the outputs of all depths under q, or, where `probabilities`, the log of the mean of
    the probabilities whose logits the outputs are. dim: of the classes then; by default the last of
    up to two dimensions, and of more the last behind a linear layer, the channels behind a
    convolution; where the readout ends in neither, it must be given.

    Source: Nazaret & Blei 2022 (arXiv 2209.10091), the truncated variational family and its
    objective. Differs: a discretised normal for q and p.
    """

    # what depth costs is the divergence from the prior, a part of the objective
    penalty = None

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        readout: Callable[[], nn.Module],
        *,
        mean: float = 1.0,
        scale: float = 1.0,
        prior: tuple[float, float] = (1.0, 3.0),
        quantile: float = 0.95,
        max_blocks: int | None = None,
        probabilities: bool = True,
        dim: int | None = None,
    ) -> None:
        for name, value in (("scale", scale), ("prior", prior[1]), ("quantile", quantile)):
            if not value > 0 or (name == "quantile" and not value < 1):
                raise ShapeError(
                    f"DepthPosterior: {name}={value}; give a positive "
                    f"number{' below 1' if name == 'quantile' else ''}"
                )
        start = _reach(mean, scale, quantile)
        super().__init__(
            partial(_stage, block, readout), start if max_blocks is None else min(start, max_blocks)
        )
        self.mean = nn.Parameter(torch.tensor(float(mean)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.prior = prior
        self.quantile = quantile
        self.max_blocks = max_blocks
        self.probabilities = probabilities
        self.dim = dim

    @property
    def depth(self) -> float:
        """The mean of q: sum of q(l) * l."""
        return float(self.w.detach())

    @property
    def w(self) -> Tensor:
        """The same, as a scalar that the gradient reaches."""
        depths = torch.arange(1, len(self.blocks) + 1, device=self.mean.device)
        return (self.q() * depths).sum()

    def q(self) -> Tensor:
        """Probabilities of depths 1 .. blocks, shape (blocks,)."""
        return discretised_normal(self.mean, self.log_scale.exp(), len(self.blocks))

    def wanted(self) -> int:
        """Blocks up to the quantile of q, one more or fewer than there are; one fewer only when two
        are beyond it.
        """
        mean = float(self.mean.detach())
        scale = float(self.log_scale.detach().exp())
        if not (math.isfinite(mean) and math.isfinite(scale)):
            return len(self.blocks)
        reach = _reach(mean, scale, self.quantile)
        reach = reach if self.max_blocks is None else min(reach, self.max_blocks)
        built = len(self.blocks)
        return built + 1 if reach > built else built - 1 if reach < built - 1 else built

    def new_block_is_silent(self) -> bool:
        """A new depth gets a share of q at once."""
        return False

    def size_parameters(self) -> list[nn.Parameter]:
        """Those of q."""
        return [self.mean, self.log_scale]

    def to_plain(self, fold: Fold) -> nn.Module:
        """Refused: which depth it is has not been decided."""
        raise Unsupported(
            f"freeze: {type(self).__name__} has no single depth yet; put "
            "`fixed(collapse(...).depth)` of it in its place"
        )

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs of all depths, one pass through the deepest; shape (blocks, *output)."""
        outputs = []
        for stage in self.blocks:
            x = stage["block"](x)  # type: ignore[index]
            outputs.append(stage["readout"](x))  # type: ignore[index]
        return torch.stack(outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.outputs(x)
        q = self.q()
        q = q.view(-1, *[1] * (outputs.dim() - 1))
        if self.probabilities:
            # dimension 0 is that of the depths
            return torch.logsumexp(
                outputs.log_softmax(self._classes(outputs.shape[1:]) + 1) + q.log(), 0
            )
        return (q * outputs).sum(0)

    def _classes(self, shape: torch.Size) -> int:
        """The dimension of the classes in an output."""
        last = self.blocks[0]["readout"]  # type: ignore[index]
        while type(last) is nn.Sequential and len(last):
            last = last[-1]
        if self.dim is not None:
            return unit_dim(shape, self.dim, "DepthPosterior")
        if isinstance(last, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return len(shape) - last.weight.dim() + 1  # an example may come without a batch
        if len(shape) < 3 or isinstance(last, nn.Linear):
            return len(shape) - 1
        raise ShapeError(
            f"DepthPosterior: outputs of shape {tuple(shape)} from a {type(last).__name__}; give "
            "dim=, that of the classes"
        )

    def losses(self, x: Tensor, y: Tensor, loss: Losses, rows: int) -> Tensor:
        """The negative evidence bound per example: sum of q(l) * mean loss at depth l, plus KL(q ||
        p) / rows. A scalar.

        loss: of each example, a negative log likelihood. rows: of the whole training set.
        """
        q = self.q()
        expected = (q * torch.stack([loss(output, y).mean() for output in self.outputs(x)])).sum()
        return expected + self.divergence(q) / rows

    def divergence(self, q: Tensor) -> Tensor:
        """KL(q || p), p cut to the same depths as q."""
        mean, scale = (q.new_tensor(value) for value in self.prior)
        return (q * (q.log() - discretised_normal(mean, scale, len(q)).log())).sum()

    def fixed(self, depth: int) -> nn.Sequential:
        """The network of one depth, a copy: its blocks and its read-out."""
        if not 1 <= depth <= len(self.blocks):
            raise ShapeError(
                f"DepthPosterior: depth={depth}; the blocks that exist allow 1 to "
                f"{len(self.blocks)}"
            )
        blocks = [copy.deepcopy(stage["block"]) for stage in list(self.blocks)[:depth]]  # type: ignore[index]
        return nn.Sequential(*blocks, copy.deepcopy(self.blocks[depth - 1]["readout"]))  # type: ignore[index]

    @torch.no_grad()
    def collapse(self, x: Tensor, y: Tensor, loss: Losses, within: float = 0.0) -> Collapse:
        """Choose the smallest depth whose mean loss on (x, y) is at most `within` above the best
        depth's; give data that was not trained on. `fixed(result.depth)` is the network.
        """
        losses = tuple(float(loss(output, y).mean()) for output in self.outputs(x))
        allowed = min(losses) + within
        depth = next(i for i, value in enumerate(losses, start=1) if value <= allowed)
        return Collapse(depth, losses, float(loss(self(x), y).mean()))

    def extra_repr(self) -> str:
        return (
            f"mean={float(self.mean.detach()):.3f}, "
            f"scale={float(self.log_scale.detach().exp()):.3f}, blocks={len(self.blocks)}"
        )


def _stage(
    block: Callable[[int], nn.Module], readout: Callable[[], nn.Module], i: int
) -> nn.Module:
    return nn.ModuleDict({"block": block(i), "readout": readout()})


def _reach(mean: float, scale: float, quantile: float) -> int:
    """The smallest depth up to which the normal, rounded and cut to 1, 2, ..., has the share
    `quantile`.
    """

    def below(value: float) -> float:
        return 0.5 * math.erfc((mean - value) / (scale * math.sqrt(2)))

    start = below(0.5)
    depth = 1
    while below(depth + 0.5) - start < quantile * (1 - start):
        depth += 1
    return depth
