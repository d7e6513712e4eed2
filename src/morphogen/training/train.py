"""One training loop with hooks. Without hooks it is an ordinary training script; the controller is
a hook.

A round is a fixed number of steps. Batches, augmentation and dropout of a round depend on (seed,
round, step) only, so a run that is stopped and resumed at a round's end does what it would have
done.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.plan import tensors_of
from morphogen.errors import MorphogenError
from morphogen.random_state import own_draws
from morphogen.tracing.trace import eval_mode


class Diverged(MorphogenError):
    """The loss became NaN or infinite. The model is as it was at the start of the round."""


@dataclass(frozen=True)
class Batches:
    """Mini-batches of (x, y) in a seeded order, without an incomplete last one; augmented where
    asked.

    x: (n, ...) and y: (n,). shift: images are moved by up to so many pixels. flip: and mirrored
    with probability 1/2. shuffled: anew each epoch; otherwise all epochs have the order of the
    rows. weight: (n,), how often a row is drawn beside others; None for an equal chance, without
    replacement.
    """

    x: Tensor
    y: Tensor
    size: int
    seed: int = 0
    shift: int = 0
    flip: bool = False
    shuffled: bool = True
    weight: Tensor | None = None

    @property
    def per_epoch(self) -> int:
        return max(1, len(self.x) // self.size)

    def range(self, start: int, stop: int) -> Iterable[tuple[Tensor, Tensor]]:
        """The batches of steps start .. stop-1."""
        epoch = -1
        order = torch.empty(0, dtype=torch.long)
        for step in range(start, stop):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = self._order(epoch).to(self.x.device)
            at = (step % self.per_epoch) * self.size
            chosen = order[at : at + self.size]
            x = self.x[chosen]
            y = self.y[chosen]
            if self.shift or self.flip:
                x = augment(x, self.shift, self.flip, generator(self.seed, 2, step))
            yield channels_last(x), y

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffled:
            return torch.arange(len(self.x))
        draw = generator(self.seed, 1, epoch)
        if self.weight is None:
            return torch.randperm(len(self.x), generator=draw)
        return torch.multinomial(self.weight, len(self.x), replacement=True, generator=draw)


def augment(x: Tensor, shift: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Images (n, c, h, w), each moved by up to `shift` pixels in both directions (zeros come in)
    and mirrored at random.
    """
    n = len(x)
    if flip:
        mirrored = torch.rand(n, generator=draw) < 0.5
        x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(3), x)
    if shift:
        dy, dx = torch.randint(2 * shift + 1, (2, n, 1), generator=draw).to(x.device)
        x = _moved(x, dy, dx, shift)
    return x


def _moved(x: Tensor, dy: Tensor, dx: Tensor, shift: int) -> Tensor:
    """Each image's window of its own in the padded image. dy, dx: (n, 1), where it begins."""
    n, channels, height, width = x.shape
    # moved[i, c, h, w] = padded[i, c, h + dy_i, w + dx_i]
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    row = (dy + torch.arange(height, device=x.device))[:, None, :, None]
    column = (dx + torch.arange(width, device=x.device))[:, None, None, :]
    return F.pad(x, (shift,) * 4)[image, channel, row, column]


def channels_last(x: Tensor) -> Tensor:
    """Images (n, c, h, w) on a CPU with the channels of a pixel side by side in memory; everything
    else as it is.

    A small convolutional network takes 0.5 to 0.7 of the time so. What comes out of a convolution
    has the order of its input.
    """
    if x.dim() != 4 or x.device.type != "cpu":
        return x
    n, c, h, w = x.shape
    # one channel is in both orders at once, and PyTorch then takes the other
    return x.new_empty(n, h, w, c).copy_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def generator(*key: int) -> torch.Generator:
    """A generator whose stream depends on the whole key, and is unrelated between keys."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = (state ^ (part + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)


class Steps(Protocol):
    """What `train` draws from: (inputs, targets) of steps start .. stop-1, such as `Batches`."""

    def range(self, start: int, stop: int) -> Iterable[tuple[Any, Tensor]]: ...


@dataclass
class State:
    """What training must remember. Hooks may change the model and set `stop`."""

    model: nn.Module
    optimizer: Optimizer
    seed: int = 0
    round: int = 0
    step: int = 0
    train_loss: float = math.nan
    stop: bool = False
    halvings: int = 0  # how often the learning rate was halved after a NaN


Objective = Callable[[nn.Module, Any, Tensor], Tensor]
Hook = Callable[[State], None]


def train(
    state: State,
    batches: Steps,
    objective: Objective,
    rate: Callable[[int], float],
    *,
    steps: int,
    rounds: int | None = None,
    hooks: Sequence[Hook] = (),
    clip: float = 0.0,
) -> State:
    """Run rounds of `steps` optimizer steps until a hook sets `state.stop`, or `state.round`
    reaches `rounds`.

    objective: (model, x, y) -> scalar loss. rate: step -> learning rate of every group (times the
    group's "scale", if it has one). hooks: called in order after each round. clip: largest gradient
    norm, 0 for none. A loss that is not finite puts the model back to the round's start and raises
    `Diverged`.
    """
    while not state.stop and (rounds is None or state.round < rounds):
        with own_draws(generator(state.seed, 3, state.round).initial_seed() % 2**63, state.model):
            _round(state, batches, objective, rate, steps, clip)
            for hook in hooks:
                hook(state)
    return state


def _round(
    state: State,
    batches: Steps,
    objective: Objective,
    rate: Callable[[int], float],
    steps: int,
    clip: float,
) -> None:
    restore = snapshot(state.model, state.optimizer)
    state.model.train()
    total = 0.0
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for number, (x, y) in enumerate(batches.range(state.step, state.step + steps)):
        _set_rate(state, rate(state.step + number))
        state.optimizer.zero_grad()
        loss = objective(state.model, x, y)
        if not math.isfinite(value := float(loss.detach())):
            restore()
            raise Diverged(f"the loss became {value} in round {state.round}")
        total += value
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        state.optimizer.step()
    if not all(bool(p.isfinite().all()) for p in parameters):
        restore()
        raise Diverged(f"a weight became NaN or infinite in round {state.round}")
    state.step += steps
    state.round += 1
    state.train_loss = total / steps


def _set_rate(state: State, rate: float) -> None:
    lr = rate * 0.5**state.halvings
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)


def snapshot(model: nn.Module, optimizer: Optimizer) -> Callable[[], None]:
    """A function that puts every tensor of model and optimizer back to what it is now, if the
    structure is still the same.
    """
    values = [(t, t.detach().clone()) for t in tensors_of(model).values()]
    states = [
        (p, {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()})
        for p, state in optimizer.state.items()
    ]

    @torch.no_grad()
    def restore() -> None:
        for tensor, value in values:
            tensor.copy_(value)
        optimizer.state.clear()
        for parameter, state in states:
            optimizer.state[parameter] = state

    return restore


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, size: int | None = None) -> Tensor:
    """The model's output on all of x in evaluation mode, which it leaves again, in batches of
    `size`; shape (n, outputs).
    """
    kinds = [p.dtype for p in model.parameters()]
    if kinds and x.is_floating_point():
        x = x.to(kinds[0])
    # 64 thousand numbers at a time: what 48 channels make of more does not fit into a cache, and
    # takes twice as long
    size = size or max(64, 2**16 // max(1, x[:1].numel()))
    with eval_mode(model):
        return torch.cat([model(channels_last(part)) for part in x.split(size)])
