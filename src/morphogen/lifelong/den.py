"""Lifelong learning by a network that expands: tasks come one after the other, and old ones are
kept.

A new task gets a head of its own. It first reads the units that are there, then retrains those that
it reads; where that is not enough, every hidden layer grows, and new units that are not needed
leave again. Units that drifted too far for the old tasks are split: the original goes back to what
it was, a copy serves the new task. Each unit carries the task at which it came, and an old task is
answered by the units of its time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from morphogen.edit.apply import apply_
from morphogen.edit.edit import Edit, Grow, Shrink, Split
from morphogen.edit.plan import plan
from morphogen.errors import ShapeError
from morphogen.lifelong.network import Lifelong
from morphogen.tracing.trace import trace
from morphogen.tracing.widths import Width, widths
from morphogen.training.proximal import group_soft, soft, sparse_head

Rows = tuple[Tensor, Tensor]
"""Inputs (n, features) and targets (n, outputs), each 0 or 1: as many yes-or-no questions as there
are outputs.
"""

Trained = Mapping[Tensor, Tensor]
"""Which entries of which parameters a phase may change: masks that broadcast to the parameter. All
others stay, bit for bit.
"""


@dataclass(frozen=True)
class DEN:
    """Constant settings of `learn`: dynamically expandable networks, for tasks that arrive one by
    one.

    No member of `POLICIES`: those watch one training run and propose edits; this one is given a
    task at a time and does its own training, since what is trained at all is half of the method.

    sparsity: l1 price of the new head's weights while it alone is trained, in units of the loss.
    l1: how much every trained weight shrinks in a step, as a fraction of `rate`; group: likewise
    the length of a new unit's incoming weights, which brings whole units to zero. l2, drift:
    factors of half the squared length of the trained weights, and of their way from what they were
    before the task. units: that each hidden layer gains, where the held-out loss stays above
    `loss`. limit: the drift above which a unit is split.

    Training: Adam with `rate`, times `decay` each epoch; a phase ends after `iterations` steps, or
    when the held-out loss, looked at every `check` steps, is on average of `window` looks less than
    `tolerance` lower than on those before.

    Source: Yoon, Yang, Lee & Hwang 2018 (arXiv 1708.01547), algorithms 1-4; the numbers are those
    of the official code. Differs: the proximal steps are scaled by the rate, so l1 and group are
    1000 times the official code's; the head-only phase is solved as the convex problem that it is;
    l1 acts in every phase, on weights alone; units that read a split one are split with it, since
    one weight cannot serve both. As in the paper, unlike its code: all outputs of the head select,
    the held-out loss decides on growth, every unit above the limit is split, after every task, and
    copies are copies.
    """

    sparsity: float = 1e-5
    l1: float = 0.01
    group: float = 1.0
    l2: float = 1e-4
    drift: float = 0.5
    units: int = 10
    loss: float = 0.01
    limit: float = 0.05
    rate: float = 1e-3
    decay: float = 0.95
    batch: int = 256
    iterations: int = 4300
    check: int = 100
    window: int = 10
    tolerance: float = 1e-6


def drift(before: Tensor, after: Tensor) -> Tensor:
    """How far the incoming weights of each unit moved, (units,): rows (units, inputs) before and
    after.

    Source: Yoon et al., algorithm 4. Differs: a bias, where the rows have one, is an incoming
    weight too.
    """
    moved: Tensor = (after - before).norm(dim=1)
    return moved


def batches(rows: int, size: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Row numbers, in a new order each epoch, for ever."""
    while True:
        yield from torch.randperm(rows, generator=draw).split(size)


def descend(
    settings: DEN,
    optimizer: Optimizer,
    trained: Trained,
    loss: Callable[[Tensor], Tensor],
    held: Callable[[], float],
    rows: int,
    draw: torch.Generator,
    pull: Callable[[], None] = lambda: None,
    shrink: Callable[[float], None] = lambda rate: None,
) -> float:
    """One phase of training: the masked entries of `trained` follow `loss` of batches of row
    numbers below `rows`.

    pull: adds the gradients of penalties. shrink: takes the proximal steps, at a learning rate.
    held: the loss on held-out rows, which ends the phase; its last value is returned.
    """
    parameters = list(trained)
    looks = [held()]
    for step, chosen in enumerate(islice(batches(rows, settings.batch, draw), settings.iterations)):
        rate = settings.rate * settings.decay ** (step * settings.batch // rows)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        gradients = torch.autograd.grad(loss(chosen), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad(), only(trained):
            pull()
            optimizer.step()
            shrink(rate)
        if (step + 1) % settings.check == 0:
            looks.append(held())
            if stalled(looks, settings):
                break
    optimizer.zero_grad()
    return held()


@contextmanager
def only(trained: Trained) -> Iterator[None]:
    """Entries outside the masks are afterwards what they were, bit for bit."""
    kept = [parameter.clone() for parameter in trained]
    yield
    for (parameter, mask), old in zip(trained.items(), kept, strict=True):
        parameter.copy_(torch.where(mask, parameter, old))


def stalled(looks: Sequence[float], settings: DEN) -> bool:
    """Whether the last looks are on average hardly lower than as many before them."""
    recent = looks[-settings.window :]
    earlier = looks[-2 * settings.window : -settings.window]
    if len(earlier) < settings.window:
        return False
    return sum(earlier) - sum(recent) < settings.tolerance * settings.window


@dataclass(frozen=True)
class Learned:
    """What one task did. losses: on held-out rows, after each phase. The others count units of each
    hidden layer: that the new head was found to depend on, that came and stayed, that were split,
    and all.
    """

    task: int
    losses: dict[str, float]
    selected: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    split: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """One task while it is learned. before: weight and bias of each hidden layer when it came;
    units that were there stay.

    The optimizer lives as long as the lesson: its moments go from phase to phase, and edits of the
    structure carry them along. (What gradients another task had says nothing here.)
    """

    net: Lifelong
    settings: DEN
    task: int
    train: Rows
    held: Rows
    draw: torch.Generator
    optimizer: Optimizer
    ties: Mapping[str, Width]
    before: tuple[tuple[Tensor, Tensor], ...]
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def head(self) -> nn.Linear:
        return self.net.head(self.task)

    @property
    def new(self) -> list[Tensor]:
        """For each hidden layer, a mask of the units that came with this task."""
        return [layer.born == self.task for layer in self.net.layers]

    def edit(self, kind: Callable[[str, Any], Edit], amounts: Sequence[Any]) -> None:
        """`kind(width, amount)` for every hidden layer whose amount is not nothing. New units get
        the stamp of this task.
        """
        sizes = self.net.sizes
        edits = [kind(f"hidden.{i}.linear", amount) for i, amount in enumerate(amounts) if amount]
        if edits:
            apply_(
                self.net,
                plan(self.net, self.ties, edits),
                optimizers=[self.optimizer],
                generator=self.draw,
            )
        for layer, size in zip(self.net.layers, sizes, strict=True):
            layer.born[size:] = self.task

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.head(self.net.features(x)), y)

    def held_loss(self) -> float:
        with torch.no_grad():
            return float(self.loss(*self.held))

    def phase(
        self, name: str, trained: Trained, *, drifting: bool = False, grouped: bool = False
    ) -> None:
        """Train the masked entries. drifting: with the penalty of eq. 6; grouped: with that of eq.
        5, on new units.
        """

        def pull() -> None:
            for p in trained:
                p.grad.add_(p, alpha=self.settings.l2)  # type: ignore[union-attr]
            if drifting:
                self.hold_back()

        def shrink(rate: float) -> None:
            for p in trained:
                if p.dim() == 2:
                    p.copy_(soft(p, rate * self.settings.l1))
            if grouped:
                self.shrink_units(rate)

        def loss(rows: Tensor) -> Tensor:
            x, y = self.train
            return self.loss(x[rows], y[rows])

        count = len(self.train[0])
        self.losses[name] = descend(
            self.settings,
            self.optimizer,
            trained,
            loss,
            self.held_loss,
            count,
            self.draw,
            pull,
            shrink,
        )

    def hold_back(self) -> None:
        """Adds the gradient of drift / 2 * |p - before|^2 for what was there before the task."""
        for layer, (weight, bias) in zip(self.net.layers, self.before, strict=True):
            for p, old in ((layer.linear.weight, weight), (layer.linear.bias, bias)):
                there = tuple(slice(size) for size in old.shape)
                p.grad[there].add_(p[there] - old, alpha=self.settings.drift)  # type: ignore[index]

    def shrink_units(self, rate: float) -> None:
        """The proximal step of the lengths of new units' incoming weights."""
        for layer, new in zip(self.net.layers, self.new, strict=True):
            rows = group_soft(incoming(layer.linear)[new], rate * self.settings.group)
            layer.linear.weight[new] = rows[:, :-1]
            layer.linear.bias[new] = rows[:, -1]


def incoming(layer: nn.Linear) -> Tensor:
    """Weights and bias of each unit, (units, inputs + 1)."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()


def learn(net: Lifelong, settings: DEN, train: Rows, held: Rows, draw: torch.Generator) -> Learned:
    """Learn one more task, and change `net` as it takes; no rows of earlier tasks are needed.

    held: rows that are not trained on; they decide whether the network grows, and when a phase
    ends. draw: of new units and of the order of rows. Raises `ShapeError` where rows do not fit the
    network or each other; nothing was changed then.
    """
    for name, part in {"train": train, "held": held}.items():
        check_rows(net, part, name, train[1].shape[1:])
    lesson = enrol(net, settings, train, held, draw)
    if lesson.task == 0:
        lesson.phase("first", inside(lesson, [torch.ones_like(new) for new in lesson.new]))
        return Learned(0, lesson.losses, sizes=net.sizes)
    solve_head(lesson)
    chosen = net.reads(lesson.task)
    selected = tuple(int(mask.sum()) for mask in chosen)
    lesson.phase("selective", inside(lesson, chosen))
    if lesson.losses["selective"] > settings.loss:
        chosen = expand(lesson, chosen)
    added = tuple(int(new.sum()) for new in lesson.new)
    lesson.phase("drift", inside(lesson, chosen), drifting=True)
    size = net.sizes
    chosen = split(lesson, chosen)
    copies = tuple(now - then for now, then in zip(net.sizes, size, strict=True))
    if any(copies):
        lesson.phase("split", inside(lesson, chosen), drifting=True)
    return Learned(lesson.task, lesson.losses, selected, added, copies, net.sizes)


def check_rows(net: Lifelong, part: Rows, name: str, outputs: torch.Size) -> None:
    """Raises `ShapeError` where rows do not fit the network, or answers the outputs."""
    x, y = part
    features = net.layers[0].linear.in_features
    fits = (x.dim(), y.dim()) == (2, 2) and len(x) == len(y) > 0
    if not fits or x.shape[1] != features or y.shape[1:] != outputs:
        raise ShapeError(
            f"{name}: x {tuple(x.shape)}, y {tuple(y.shape)}; give rows (n, {features}), flattened "
            "if images, and answers (n, outputs), both parts with as many outputs, n > 0"
        )


@torch.no_grad()
def solve_head(lesson: Lesson) -> None:
    """The new head alone, as the convex problem that it is."""
    x, y = lesson.train
    settings = lesson.settings
    features = lesson.net.features(x)
    weight, bias = sparse_head(features, y, settings.sparsity, settings.iterations)
    lesson.head.weight.copy_(weight)
    lesson.head.bias.copy_(bias)
    lesson.losses["head"] = lesson.held_loss()


def enrol(net: Lifelong, settings: DEN, train: Rows, held: Rows, draw: torch.Generator) -> Lesson:
    """A new head, and what must be remembered of the network as it is now."""
    task = net.add_head(train[1].mean(0))
    ties = widths(trace(net, train[0][:2])) if task else {}  # the first task changes no width
    before = tuple(
        (layer.linear.weight.detach().clone(), layer.linear.bias.detach().clone())
        for layer in net.layers
    )
    return Lesson(
        net,
        settings,
        task,
        train,
        held,
        draw,
        Adam(net.parameters(), settings.rate, fused=True),
        ties,
        before,
    )


def inside(lesson: Lesson, chosen: Sequence[Tensor]) -> Trained:
    """The sub-network of the chosen units: weights between them, their biases, and what the head
    reads of them.
    """
    trained: dict[Tensor, Tensor] = {}
    below = torch.ones_like(lesson.net.layers[0].linear.weight[0], dtype=torch.bool)
    for layer, mask in zip(lesson.net.layers, chosen, strict=True):
        trained |= {layer.linear.weight: mask[:, None] & below, layer.linear.bias: mask}
        below = mask
    return trained | {
        lesson.head.weight: below,
        lesson.head.bias: torch.ones_like(lesson.head.bias, dtype=torch.bool),
    }


def expand(lesson: Lesson, chosen: Sequence[Tensor]) -> list[Tensor]:
    """Every hidden layer grows, only new weights are trained, and new units that became zero, or
    that only such units read, leave again. Returns the chosen units and those that stay.

    Old units that are chosen may read new ones: earlier tasks do not hear those. Source: Yoon et
    al., algorithm 3, eq. 5.
    """
    lesson.edit(Grow, [lesson.settings.units] * len(chosen))
    new = lesson.new
    wide = [
        grown | F.pad(mask, (0, len(grown) - len(mask)))
        for grown, mask in zip(new, chosen, strict=True)
    ]
    trained = dict(inside(lesson, wide))
    below = torch.zeros_like(lesson.net.layers[0].linear.weight[0], dtype=torch.bool)
    for layer, grown, mask in zip(lesson.net.layers, new, wide, strict=True):
        trained |= {
            layer.linear.weight: grown[:, None] | mask[:, None] & below,
            layer.linear.bias: grown,
        }
        below = grown
    lesson.phase("expand", trained | {lesson.head.weight: below}, grouped=True)
    live = [
        read & (incoming(layer.linear) != 0).any(1)
        for layer, read in zip(lesson.net.layers, lesson.net.reads(lesson.task), strict=True)
    ]
    stays = [mask | ~grown for mask, grown in zip(live, new, strict=True)]
    lesson.edit(Shrink, [(~mask).nonzero()[:, 0].tolist() for mask in stays])
    return [mask[kept] for mask, kept in zip(wide, stays, strict=True)]


@torch.no_grad()
def split(lesson: Lesson, chosen: Sequence[Tensor]) -> list[Tensor]:
    """Every chosen old unit that drifted by more than the limit, or that reads one, gets a copy for
    this task, and is itself what it was before. The new task's function stays, and what drifted
    little is all that old tasks feel of it. Returns the chosen units, copies in the place of
    originals.

    Source: Yoon et al., algorithm 4.
    """
    states = [
        (layer.linear.weight.clone(), layer.linear.bias.clone()) for layer in lesson.net.layers
    ]
    heads = [lesson.net.head(task).weight.clone() for task in range(len(lesson.net.heads))]
    originals = drifted(lesson, chosen)
    if not any(map(len, originals)):
        return list(chosen)
    lesson.edit(Split, [tuple(units.tolist()) for units in originals])
    rewire_layers(lesson, states, originals)
    rewire_heads(lesson, heads, originals[-1])
    return [
        torch.cat([mask.index_fill(0, units, False), mask.new_ones(len(units))])
        for mask, units in zip(chosen, originals, strict=True)
    ]


def drifted(lesson: Lesson, chosen: Sequence[Tensor]) -> list[Tensor]:
    """For each layer, the chosen old units that drifted by more than the limit, or read one."""
    originals: list[Tensor] = []
    for layer, (old, shift), mask, new in zip(
        lesson.net.layers, lesson.before, chosen, lesson.new, strict=True
    ):
        # what old tasks read: units that came with this one are not heard there
        rows, columns = old.shape
        weight = layer.linear.weight
        before = torch.cat([old, shift[:, None]], 1)
        after = torch.cat([weight[:rows, :columns], layer.linear.bias[:rows, None]], 1)
        moved = drift(before, after) > lesson.settings.limit
        goes = F.pad(moved, (0, len(weight) - rows))
        if originals:
            goes |= (weight[:, originals[-1]] != 0).any(1)
        originals.append((goes & mask & ~new).nonzero()[:, 0])
    return originals


def rewire_layers(
    lesson: Lesson, states: Sequence[tuple[Tensor, Tensor]], originals: Sequence[Tensor]
) -> None:
    """Copies take over what the originals had come to be, originals are what they were before.
    New units read the copies; states: weights and biases before the split.
    """
    below = originals[0][:0]
    for layer, new, units, state, (old, shift) in zip(
        lesson.net.layers, lesson.new, originals, states, lesson.before, strict=True
    ):
        weight, bias = (torch.cat([values, values[units]]) for values in state)
        read_copies = _handed(weight, below)
        read_originals = F.pad(weight, (0, len(below)))
        weight = torch.where(new[:, None], read_copies, read_originals)
        weight[units] = F.pad(old[units], (0, weight.shape[1] - old.shape[1]))
        bias[units] = shift[units]
        layer.linear.weight.copy_(weight)
        layer.linear.bias.copy_(bias)
        below = units


def rewire_heads(lesson: Lesson, heads: Sequence[Tensor], units: Tensor) -> None:
    """This task's head reads the copies, the others' the originals. heads: weights before the
    split.
    """
    for task, weight in enumerate(heads):
        read_originals = F.pad(weight, (0, len(units)))
        of_this = task == lesson.task
        head = lesson.net.head(task)
        head.weight.copy_(_handed(weight, units) if of_this else read_originals)


def _handed(weight: Tensor, units: Tensor) -> Tensor:
    """What read `units` reads their copies, which stand at the end, in their place."""
    return torch.cat([weight.index_fill(1, units, 0.0), weight[:, units]], 1)
