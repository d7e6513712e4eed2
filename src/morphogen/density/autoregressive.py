"""One layer of variables, each given those before it: `AutoregressiveBernoulli`.

    p(x | c) = prod_j p(x_j | x_<j, c),    logits of x_j = head(x_<j, c)

    linear        W_j x_<j + V_j c + b_j
    made          a perceptron whose weights are masked so that x_j's logits depend on x_<j alone
    nade          v_j sigmoid(U x_<j + c' + d) + V_j c + b_j, the hidden sum growing with j
    local         of images: w_j . (the pixels of a window before j) + V_j c + b_j
    independent   V_j c + b_j

Source: Gregor et al. 2014, sections 2.1 (linear) and 3.3 (local); Germain et al. 2015 (arXiv
1502.03509), eq. 8 and section 4.2 (MADE); Larochelle and Murray 2011, eq. 5 (NADE). Differs: a
variable may be a category, whose bits have a softmax; degrees of MADE's hidden units are spread
evenly, not drawn; MADE and NADE have the direct linear weights too, which begin at 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.density.groups import Groups
from morphogen.density.local import Window, seen_before
from morphogen.errors import ShapeError

HeadName = Literal["linear", "made", "nade", "local", "independent"]


@dataclass(frozen=True)
class Extent:
    """How large a head is. hidden: units of the layers of "made" and "nade". window: of "local"."""

    hidden: tuple[int, ...] = ()
    window: Window | None = None


class Grouped(nn.Module):
    """A layer whose bits are those of groups."""

    groups: Groups

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the groups, which follow when single bits come or go."""
        return self.groups.sizes

    @sizes.setter
    def sizes(self, sizes: tuple[int, ...]) -> None:
        # made here: what is made while a model is traced has no numbers in it
        self.groups = Groups(tuple(sizes))

    def sizes_by(self, bits: int) -> dict[str, tuple[int, ...]]:
        """What `tensor_sizes` says, by how many bits there are now."""
        return {"sizes": (1,) * bits if self.groups.single else self.sizes}


class AutoregressiveBernoulli(Grouped):
    """groups: the variables. context: size of c, 0 for none. head: a name of HEADS. hidden: units
    of its hidden layers, of "nade" only one. dropout: share of x_<j that a training step does not
    see (never of what it should predict). window: of "local".

    x: (n, groups.bits). context: (n, context).
    """

    def __init__(
        self,
        groups: Groups,
        context: int = 0,
        head: HeadName = "linear",
        hidden: tuple[int, ...] = (),
        dropout: float = 0.0,
        window: Window | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ShapeError(f"head={head!r}: unknown; choose one of {', '.join(HEADS)}")
        if (head in ("made", "nade")) != bool(hidden):
            raise ShapeError(f"head={head!r}, hidden={hidden}: hidden units are of made and nade")
        if head == "local" and window is None:
            raise ShapeError('head="local": give window=Window(height, width)')
        self.groups = groups
        self.dropout = dropout
        self.bias = nn.Parameter(torch.zeros(groups.bits))
        # a linear map without a bias of its own
        self.from_context = nn.Linear(context, groups.bits, bias=False) if context else None
        self.head = HEADS[head](groups, context, Extent(hidden, window))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits of every group given those before it, (n, bits)."""
        seen = F.dropout(x, self.dropout, self.training) if self.dropout else x
        logits: Tensor = self.head(seen, context)
        return logits + self.base(context)

    def base(self, context: Tensor | None) -> Tensor:
        """What does not depend on x, (n, bits) or (bits,)."""
        if self.from_context is None:
            return self.bias
        return F.linear(_given(context), self.from_context.weight, self.bias)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(x | c), (n,). The gradient reaches x, as context and as target."""
        return self.groups.log_prob(self(x, context), x)

    def tensor_sizes(self) -> dict[str, tuple[int, ...]]:
        return self.sizes_by(len(self.bias))

    def walk(self, rows: int, context: Tensor | None = None) -> "Walk":
        """Group by group, for sampling and coding."""
        base = self.base(context)
        logits = base.expand(rows, -1).clone()
        return Walk(self.groups, logits, self.head.steps(rows, context, logits))

    @torch.no_grad()
    def sample(self, rows: int, context: Tensor | None = None) -> Tensor:
        """(rows, bits), exactly from p(. | c)."""
        walk = self.walk(rows, context)
        parts = []
        for group in range(len(self.groups)):
            drawn = self.groups.draw(walk.logits_of(group))
            walk.observe(group, drawn)
            parts.append(drawn)
        return torch.cat(parts, 1)


class Walk:
    """Where a walk over the groups is: logits that are complete up to the group that is next.

    What an observed group adds is added once, so all groups together cost as much as one forward
    pass.
    """

    def __init__(self, groups: Groups, logits: Tensor, step: "Step") -> None:
        self.groups = groups
        self.logits = logits
        self.step = step

    def logits_of(self, group: int) -> Tensor:
        """(n, size), given all groups before, which must have been observed."""
        return self.logits[:, self.groups.slice(group)]

    def observe(self, group: int, value: Tensor) -> None:
        """Add what a group's bits (n, size) say of the groups after it."""
        self.step(group, value)


Step = Callable[[int, Tensor], None]
"""(group, its bits) -> what later logits gain is added to them in place."""


class Independent(nn.Module):
    """No variable sees another."""

    def __init__(self, groups: Groups, context: int, extent: Extent) -> None:
        super().__init__()

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return x.new_zeros(len(x), 1)

    def steps(self, rows: int, context: Tensor | None, logits: Tensor) -> Step:
        return lambda group, value: None


class Linear(Grouped):
    """Weights (bits, bits), of which those from earlier groups count."""

    mask: Tensor | None

    def __init__(self, groups: Groups, context: int, extent: Extent) -> None:
        super().__init__()
        self.groups = groups
        group = groups.group_of_bit
        self.weight = nn.Parameter(torch.zeros(groups.bits, groups.bits))
        # of single bits the lower triangle, whichever come and go
        mask = None if groups.single else (group[None, :] < group[:, None]).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        weight = self.weight.tril(-1) if self.mask is None else self.weight * self.mask
        return F.linear(x, weight)

    def tensor_sizes(self) -> dict[str, tuple[int, ...]]:
        return self.sizes_by(len(self.weight))

    def steps(self, rows: int, context: Tensor | None, logits: Tensor) -> Step:
        def step(group: int, value: Tensor) -> None:
            bits = self.groups.slice(group)
            logits[:, bits.stop :] += value @ self.weight[bits.stop :, bits].T

        return step


class Made(nn.Module):
    """A masked perceptron beside direct weights. Hidden unit k of degree m_k sees the groups before
    m_k, and is seen by the groups from m_k on.
    """

    def __init__(self, groups: Groups, context: int, extent: Extent) -> None:
        super().__init__()
        self.groups = groups
        self.direct = Linear(groups, context, Extent())
        self.context = nn.ModuleList(
            nn.Linear(context, n, bias=False) for n in extent.hidden * (context > 0)
        )
        self.layers = nn.ModuleList()
        self.degrees = []
        degree = groups.group_of_bit + 1  # a bit is seen by units of its group's number and more
        for width in extent.hidden:
            own = _degrees(width, len(groups))
            self.layers.append(_Masked(degree, own))
            self.degrees.append(own)
            degree = own
        self.out = _Masked(degree, groups.group_of_bit)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = x
        for number, layer in enumerate(self.layers):
            h = layer(h)
            if self.context:
                h = h + self.context[number](_given(context))
            h = F.relu(h)
        logits: Tensor = self.direct(x, context) + self.out(h)
        return logits

    def steps(self, rows: int, context: Tensor | None, logits: Tensor) -> Step:
        direct = self.direct.steps(rows, context, logits)
        chain = [layer for layer in (*self.layers, self.out) if isinstance(layer, _Masked)]
        weights = [layer.masked() for layer in chain]
        sums = [layer.bias.expand(rows, -1).clone() for layer in chain[:-1]]
        for own, read in zip(sums, self.context, strict=False):
            own += read(_given(context))
        logits += chain[-1].bias
        targets = [*sums[1:], logits]

        def complete(degree: int) -> None:
            """Units of this degree have seen all they see: pass them on."""
            for number, own in enumerate(self.degrees):
                units = (own == degree).nonzero()[:, 0].to(logits.device)
                value = F.relu(sums[number][:, units])
                targets[number].add_(value @ weights[number + 1][:, units].T)

        def step(group: int, value: Tensor) -> None:
            direct(group, value)
            sums[0].add_(value @ weights[0][:, self.groups.slice(group)].T)
            complete(group + 1)

        complete(0)
        return step


class _Masked(nn.Linear):
    """A linear layer from units of some degrees to units of others: each sees at most its own."""

    mask: Tensor

    def __init__(self, source: Tensor, target: Tensor) -> None:
        super().__init__(len(source), len(target))
        mask = source[None, :] <= target[:, None]
        self.register_buffer("mask", mask.float(), persistent=False)

    def masked(self) -> Tensor:
        masked: Tensor = self.weight * self.mask
        return masked

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.masked(), self.bias)


def _degrees(width: int, groups: int) -> Tensor:
    """Of hidden units: 1 .. groups - 1 in turn, 0 (the context alone) where there is one group."""
    most = groups - 1
    return 1 + torch.arange(width) % most if most else torch.zeros(width, dtype=torch.long)


class Nade(nn.Module):
    """One hidden sum that grows as the variables are seen."""

    def __init__(self, groups: Groups, context: int, extent: Extent) -> None:
        super().__init__()
        if len(extent.hidden) != 1:
            raise ShapeError(f"hidden={extent.hidden}: nade has one hidden layer, such as (100,)")
        (width,) = extent.hidden
        self.groups = groups
        self.direct = Linear(groups, context, Extent())
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.encode = nn.Linear(groups.bits, width)
        self.decode = nn.Parameter(torch.randn(groups.bits, width) * width**-0.5)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        sums = self._first(len(x), context)
        # what each bit adds, and what all before its group have added: (n, bits, width)
        each = x[:, :, None] * self.encode.weight.T
        before = each.cumsum(1) - each
        if len(self.groups) < self.groups.bits:
            before = before[:, self.groups.start_of_bit.to(x.device)]
        hidden = torch.sigmoid(sums[:, None, :] + before)
        direct: Tensor = self.direct(x, context)
        return direct + (hidden * self.decode).sum(-1)

    def _first(self, rows: int, context: Tensor | None) -> Tensor:
        sums = self.encode.bias.expand(rows, -1)
        return sums if self.context is None else sums + self.context(_given(context))

    def steps(self, rows: int, context: Tensor | None, logits: Tensor) -> Step:
        direct = self.direct.steps(rows, context, logits)
        sums = self._first(rows, context).clone()

        def show(group: int) -> None:
            """The hidden units' part in the logits of the group that is next."""
            if group < len(self.groups):
                bits = self.groups.slice(group)
                logits[:, bits] += torch.sigmoid(sums) @ self.decode[bits].T

        def step(group: int, value: Tensor) -> None:
            direct(group, value)
            sums.add_(value @ self.encode.weight[:, self.groups.slice(group)].T)
            show(group + 1)

        show(0)
        return step


class LocalWindow(nn.Module):
    """Of images: a pixel sees those of a window that come before it, row by row. Pixels a period
    apart have the same weights.
    """

    def __init__(self, groups: Groups, context: int, extent: Extent) -> None:
        super().__init__()
        window = extent.window
        assert window is not None
        if not groups.single or groups.bits != window.height * window.width:
            raise ShapeError(
                f"head='local': a window of {window.height} x {window.width} pixels needs as many "
                f"single bits; there are {groups.bits} in {len(groups)} groups"
            )
        self.window = window
        # of the last row only the pixels to the left are read
        shape = (window.period, window.period, window.rows, window.kernel)
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        image = x.view(-1, self.window.height, self.window.width)
        return seen_before(image, self.weight, self.window).flatten(1)

    def steps(self, rows: int, context: Tensor | None, logits: Tensor) -> Step:
        window = self.window
        side, top = window.kernel // 2, window.rows - 1
        weight = self.weight.clone()
        weight[:, :, -1, side:] = 0
        image = logits.view(rows, window.height, window.width)

        def step(group: int, value: Tensor) -> None:
            """Every pixel whose window this one is in."""
            i, j = divmod(group, window.width)
            below = torch.arange(i, min(i + top + 1, window.height))
            beside = torch.arange(max(j - side, 0), min(j + side + 1, window.width))
            own = weight[
                below[:, None] % window.period,
                beside[None, :] % window.period,
                (top + i - below)[:, None],
                (side + j - beside)[None, :],
            ]
            image[:, below[:, None], beside[None, :]] += value[:, :, None] * own

        return step


HEADS: Mapping[HeadName, Callable[[Groups, int, Extent], Any]] = {
    "linear": Linear,
    "made": Made,
    "nade": Nade,
    "local": LocalWindow,
    "independent": Independent,
}


def _given(context: Tensor | None) -> Tensor:
    if context is None:
        raise ShapeError("context is None: this layer was built to read one")
    return context
