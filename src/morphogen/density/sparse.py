"""Bits of h that are seldom 1, and samples that cost only those: `Sparse`, `sample_sparse`.

A column of weights is added for each bit that is 1, and nothing for one that is 0. With a share a
of n bits active, a row costs about a n (n / 2 + visible bits) additions, and no multiplication at
all; a NADE of as many hidden units costs visible bits times hidden units multiplications.

Source: Gregor et al. 2014, section 3.4 (fDARN). Differs: the penalty, which is not in the paper, is
a share of the mean of q, whose weight is raised until the share is as asked.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphogen.density.autoregressive import AutoregressiveBernoulli, Independent, Linear
from morphogen.density.darn import Darn, likelier
from morphogen.errors import Unsupported

_RATE = 0.02  # by how much the logarithm of the penalty's weight moves in one step, at most


class Sparse(nn.Module):
    """An estimator's step with a price for bits that are 1. share: of the bits that should be."""

    weight: Tensor

    def __init__(self, step: Callable[[Darn, Tensor], Tensor], share: float) -> None:
        super().__init__()
        self.step = step
        self.share = share
        self.register_buffer("weight", torch.tensor(1e-2))

    def forward(self, model: Darn, x: Tensor) -> Tensor:
        q = torch.cat([torch.sigmoid(own) for own in model.encode(x, likelier).logits], 1)
        active = q.mean()
        if self.training:
            excess = (active.detach() / self.share - 1).clamp(-1, 1)
            self.weight.mul_((_RATE * excess).exp()).clamp_(1e-4, 1e2)
        # nats for each bit that is expected to be 1
        return self.step(model, x) + self.weight * q.sum(1).mean()


@dataclass(frozen=True)
class SparseSample:
    """x: (rows, bits). active: bits of h that are 1, a row. additions: of a weight to a sum, a row:
    what in a dense product is a multiplication and an addition.
    """

    x: Tensor
    active: float
    additions: float


@torch.no_grad()
def sample_sparse(model: Darn, rows: int) -> SparseSample:
    """The same distribution as `model.sample`, by the columns of active bits alone.

    Raises `Unsupported` where something between the bits is dense: tanh layers of the decoder, a
    MADE, a NADE or local windows; or where a variable is a category.
    """
    _check(model)
    counter = _Counter()
    h: list[Tensor] = []
    for level in reversed(range(model.stochastic)):
        h.insert(0, _drawn(model, level + 1, h, rows, counter))
    x = _drawn(model, 0, h, rows, counter)
    active = float(sum(part.sum() for part in h)) / rows if h else 0.0
    return SparseSample(x, active, counter.additions / rows)


@dataclass
class _Counter:
    additions: int = 0


def _drawn(model: Darn, level: int, above: list[Tensor], rows: int, counter: _Counter) -> Tensor:
    decoder = model.decoder(level)
    sums = decoder.bias.expand(rows, -1).clone()
    if above and decoder.from_context is not None:
        given = torch.cat(above if model.shape.skips else above[:1], 1)
        # rows of the transposed weights, added up for the bits that are 1
        places = given.nonzero()
        columns = decoder.from_context.weight.T[places[:, 1]]
        sums.index_add_(0, places[:, 0], columns)
        counter.additions += columns.numel()
    if isinstance(decoder.head, Independent):
        return torch.bernoulli(torch.sigmoid(sums))
    weight = decoder.head.weight
    drawn = torch.empty_like(sums)
    for bit in range(sums.shape[1]):
        drawn[:, bit] = torch.bernoulli(torch.sigmoid(sums[:, bit]))
        active = drawn[:, bit].nonzero()[:, 0]
        later = weight[bit + 1 :, bit]
        sums[active, bit + 1 :] += later
        counter.additions += len(active) * len(later)
    return drawn


def _check(model: Darn) -> None:
    decoders = [layer for layer in model.decoders if isinstance(layer, AutoregressiveBernoulli)]
    for layer in decoders:
        if not isinstance(layer.head, (Linear, Independent)):
            raise Unsupported(
                f"visible={model.shape.visible!r}: sparse sampling adds columns of weights, which "
                "linear and independent heads have; use model.sample(rows)"
            )
        if not layer.groups.single:
            raise Unsupported("sparse sampling is of single bits: a variable here is a category")
    if any(not isinstance(between, nn.Identity) for between in model.between):
        raise Unsupported(
            "the decoder has tanh layers, which are dense: give DarnShape(decoder_hidden=0)"
        )


def multiplications_of_nade(bits: int, hidden: int) -> int:
    """For one row: each hidden unit is read once for each bit; what a bit adds is no product."""
    return bits * hidden
