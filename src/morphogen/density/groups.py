"""How the bits of a row belong together: `Groups`.

A group of one bit is a Bernoulli variable; a group of k bits is a category with k levels, of which
one bit is 1. Logits a of a group give

    log p(x) = x . a - log Z,    Z = 1 + exp(a) for one bit, sum_i exp(a_i) for several
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.errors import ShapeError


@dataclass(frozen=True)
class Groups:
    """sizes: bits of each group, in the order in which the groups stand in a row."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.sizes):
            raise ShapeError(f"sizes={self.sizes}: every group has at least 1 bit")
        # made now: what is made while a model is traced has no numbers in it
        _ = self.group_of_bit, self.start_of_bit, self._by_size

    @staticmethod
    def of_bits(count: int) -> "Groups":
        """`count` Bernoulli variables."""
        return Groups((1,) * count)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def single(self) -> bool:
        """Whether there is no category."""
        return set(self.sizes) <= {1}

    @cached_property
    def bits(self) -> int:
        return sum(self.sizes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first bit of each group."""
        starts = [0]
        for size in self.sizes[:-1]:
            starts.append(starts[-1] + size)
        return tuple(starts)

    def slice(self, group: int) -> slice:
        """The bits of one group."""
        return slice(self.starts[group], self.starts[group] + self.sizes[group])

    @cached_property
    def group_of_bit(self) -> Tensor:
        """(bits,), the group that each belongs to."""
        return torch.repeat_interleave(
            torch.arange(len(self)), torch.tensor(self.sizes, dtype=torch.long)
        )

    @cached_property
    def start_of_bit(self) -> Tensor:
        """(bits,), the first bit of the group that each belongs to."""
        return torch.tensor(self.starts)[self.group_of_bit]

    @cached_property
    def _by_size(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """For each size: (its groups, their bits (groups, size))."""
        rows = []
        for size in sorted(set(self.sizes)):
            chosen = [group for group, other in enumerate(self.sizes) if other == size]
            places = torch.tensor([self.starts[group] for group in chosen])
            rows.append((torch.tensor(chosen), places[:, None] + torch.arange(size)))
        return tuple(rows)

    def log_normaliser(self, logits: Tensor) -> Tensor:
        """log Z of each group: (..., bits) -> (..., groups)."""
        if self.single:
            return F.softplus(logits)
        out = logits.new_empty(*logits.shape[:-1], len(self))
        for groups, value in self._log_normalisers(logits):
            out = out.index_copy(-1, groups.to(out.device), value)
        return out

    def _log_normalisers(self, logits: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(groups, their log Z) of all that have one size."""
        for groups, bits in self._by_size:
            yield groups, log_normaliser_of(logits[..., bits.to(logits.device)])

    def log_probs(self, logits: Tensor, x: Tensor) -> Tensor:
        """Of each group of rows x, (..., bits) twice -> (..., groups). The gradient reaches x as if
        it were real.
        """
        linear = x * logits
        if self.single:
            return linear - F.softplus(logits)
        sums = linear.new_zeros(*linear.shape[:-1], len(self))
        sums = sums.index_add(-1, self.group_of_bit.to(x.device), linear)
        return sums - self.log_normaliser(logits)

    def log_prob(self, logits: Tensor, x: Tensor) -> Tensor:
        """Of whole rows, (..., bits) twice -> (...)."""
        total = (x * logits).sum(-1)
        if self.single:
            return total - F.softplus(logits).sum(-1)
        for _, value in self._log_normalisers(logits):
            total = total - value.sum(-1)
        return total

    def draw(self, logits: Tensor) -> Tensor:
        """One group's bits from its own logits, (n, size) -> (n, size)."""
        if logits.shape[-1] == 1:
            return torch.bernoulli(torch.sigmoid(logits))
        levels = torch.multinomial(logits.softmax(-1), 1)
        return torch.zeros_like(logits).scatter_(-1, levels, 1.0)

    def starting_logits(self, means: Tensor) -> Tensor:
        """(bits,): those of variables that are independent, with such means."""
        single = torch.tensor(self.sizes)[self.group_of_bit] == 1
        return torch.where(
            single.to(means.device),
            torch.logit(means.clamp(0.01, 0.99)),
            means.clamp(min=1e-4).log(),
        )


def log_normaliser_of(logits: Tensor) -> Tensor:
    """log Z of one group by its own logits, (..., size) -> (...)."""
    return F.softplus(logits[..., 0]) if logits.shape[-1] == 1 else logits.logsumexp(-1)


def check_bits(x: Tensor, groups: Groups) -> None:
    """Raise `ShapeError` where rows are no rows of these groups."""
    if x.dim() != 2 or x.shape[1] != groups.bits:
        raise ShapeError(f"x has shape {tuple(x.shape)}: give (rows, {groups.bits})")
    wrong = (x != 0) & (x != 1)
    if bool(wrong.any()):
        row, bit = (int(i) for i in wrong.nonzero()[0])
        raise ShapeError(f"x[{row}, {bit}] is {float(x[row, bit]):g}: every bit is 0 or 1")
    if groups.single:
        return
    counts = x.new_zeros(len(x), len(groups)).index_add(1, groups.group_of_bit.to(x.device), x)
    several = torch.tensor(groups.sizes, device=x.device) > 1
    bad = (counts != 1) & several
    if bool(bad.any()):
        row, group = (int(i) for i in bad.nonzero()[0])
        raise ShapeError(
            f"x[{row}] has {int(counts[row, group])} bits set in group {group}, a category of "
            f"{groups.sizes[group]} levels: exactly one is 1"
        )


def reordered(sizes: Sequence[int], order: Sequence[int]) -> tuple[Groups, Tensor]:
    """Groups in another order, and for each bit there the bit that it was."""
    groups = Groups(tuple(sizes))
    bits = [torch.arange(groups.bits)[groups.slice(group)] for group in order]
    return Groups(tuple(groups.sizes[group] for group in order)), torch.cat(bits)
