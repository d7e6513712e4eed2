"""Find a `Darn` of the right shape for rows: `search(rows, valid, groups)`.

First the visible part alone, by logistic regressions and by a masked perceptron, with and without
dropout; where the perceptron is best, wider and deeper ones while that pays. Then with bits behind
logistic regressions, and with bits alone: once the held out rows no longer gain, bits that say
nothing (KL(q || p) below DEAD) leave; where nearly all say something as many new ones come, until
that no longer pays. Where bits pay, a second layer of them comes above the first, and stays if it
pays. All that at the first rate; the best network without bits and the best with them, where both
may still be the best, then learn on while the rate falls. Held out rows decide everything.

A search that is stopped goes on from the trainings that it has kept, and ends where it would have
ended: each draws from a generator of its own.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from morphogen.density.darn import Darn, DarnShape
from morphogen.density.groups import Groups
from morphogen.density.learn import Epoch, Training, learn
from morphogen.density.likelihood import divergence_of_units, log_likelihood
from morphogen.edit.apply import count_parameters, resize
from morphogen.edit.edit import Edit, Grow, Shrink
from morphogen.edit.inits.constant import INITS, normal
from morphogen.errors import RunError
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.random_state import own_draws
from morphogen.record import revive

DEAD = 0.01  # nats below which a bit says nothing
FIRST = 32  # bits to begin with
ENOUGH = 0.75  # share of the bits that say something, from which more are tried
MOST = 256
ABOVE = 16  # bits of a second layer, to begin with
PAYS = 0.002  # share of the description length that more bits must save
SAMPLES = 100  # of q for each held out row, where candidates are compared
LOOKED_AT = 1000  # of those rows
BEHIND = 1.02  # times the least loss: a network from there on is not grown
FAR = 1.05  # the same for the bound of a network with bits while it learns: its likelihood is
# better than that, and gains more than others while the rate falls

VISIBLE = (
    DarnShape((), 0),
    DarnShape((), 0, dropout=0.3),
    DarnShape((), 0, visible="made", visible_hidden=(200,)),
    DarnShape((), 0, visible="made", visible_hidden=(200,), dropout=0.3),
)
WIDEST, DEEPEST = 800, 2  # of a masked perceptron
HIDDEN = (
    DarnShape((FIRST,), 200),
    DarnShape((2 * FIRST,), 200, visible="independent"),
)


@dataclass(frozen=True)
class Step:
    """One network of the search. what: in words. loss: of the held out rows in nats a row. bits: of
    all its stochastic layers.
    """

    what: str
    loss: float
    bits: int
    parameters: int
    seconds: float
    layers: int = 0


@dataclass(frozen=True)
class Found:
    """model: the best network. loss: of the held out rows in nats a row. ledger: the edits that
    made it from its first shape. epochs: of its last training. steps: all that were trained.
    """

    model: Darn
    loss: float
    ledger: tuple[Edit, ...] = ()
    steps: tuple[Step, ...] = ()
    epochs: tuple[Epoch, ...] = ()


Say = Callable[[Step], None]


@dataclass
class _Trials:
    """What every training of a search shares, and all that were made."""

    rows: Tensor
    valid: Tensor
    how: Training
    say: Say
    stopping: Callable[[], bool]
    kept: Path | None = None
    steps: list[Step] = field(default_factory=list)

    def grow(self, model: Darn) -> Found:
        """The best of the networks with bits that this one leads to."""
        now = self.train(model)
        most = (0,) * model.stochastic  # bits of each layer that were not enough
        least = min(step.loss for step in self.steps)
        while now.loss < BEHIND * least and not self.stopping():
            edits = _edits(now.model, self.valid, most)
            shrinks = all(isinstance(edit, Shrink) for edit in edits)
            if not edits or (shrinks and now.loss > least * (1 + PAYS)):
                break  # fewer bits make a network smaller, seldom better
            most = tuple(map(max, most, now.model.units))
            other = copy.deepcopy(now.model)
            change(other, edits, self.rows, self.how.seed)
            after = self.train(other)
            larger = sum(other.units) > sum(now.model.units)
            # fewer bits may cost next to nothing, more must bring something
            if after.loss > now.loss * (1 - PAYS if larger else 1 + PAYS):
                break
            now = replace(after, ledger=(*now.ledger, *edits))
        return now

    def train(self, model: Darn, how: Training | None = None) -> Found:
        """Train in place, and say what held out rows cost. how: None for the first rate alone."""
        number = len(self.steps)
        with own_draws(self.how.seed + number, model):
            found = self._kept(model, number)
            if found is None:
                found = self._trained(model, how)
                self._keep(found, number)
        (step,) = found.steps
        self.steps.append(step)
        self.say(step)
        return replace(found, steps=())

    def _trained(self, model: Darn, how: Training | None) -> Found:
        how = how or replace(self.how, falls=0)
        past: list[Epoch] = []
        least = min((step.loss for step in self.steps), default=math.inf)
        least *= FAR if model.stochastic else BEHIND
        stopping = lambda: self.stopping() or _hopeless(past, least)  # noqa: E731
        learn(model, self.rows, self.valid, how, past.append, stopping)
        loss = -log_likelihood(model, self.valid[:LOOKED_AT], SAMPLES).mean
        parameters = count_parameters(model)
        step = Step(
            _words(model.shape),
            loss,
            sum(model.units),
            parameters,
            past[-1].seconds,
            model.stochastic,
        )
        return Found(model, loss, steps=(step,), epochs=tuple(past))

    @cached_property
    def _of(self) -> str:
        """What the trainings depend on, as a digest. How long each may take is not among it."""
        digest = hashlib.sha256(json.dumps(asdict(replace(self.how, seconds=None))).encode())
        for part in (self.rows, self.valid):
            digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _keep(self, found: Found, number: int) -> None:
        """Write what a training ended with, where it was not stopped."""
        if self.kept is None or self.stopping():
            return
        about = {
            "of": self._of,
            "step": asdict(found.steps[0]),
            "epochs": [asdict(epoch) for epoch in found.epochs],
        }
        self.kept.mkdir(parents=True, exist_ok=True)
        save_tensors(self.kept / f"{number:03}", dict(found.model.state_dict()), about)

    def _kept(self, model: Darn, number: int) -> Found | None:
        """What a training of this number ended with, its weights now in `model`; None where there
        was none.
        """
        path = self.kept / f"{number:03}" if self.kept else None
        if path is None or not path.exists():
            return None
        tensors, about = load_tensors(path)
        if about["of"] != self._of:
            raise RunError(
                f"{path} was kept by a search of other rows or settings: give the same, or another "
                "folder"
            )
        model.load_state_dict(tensors)
        step = revive(Step, about["step"])
        epochs = tuple(revive(Epoch, epoch) for epoch in about["epochs"])
        return Found(model.eval(), step.loss, steps=(step,), epochs=epochs)


def _words(shape: DarnShape) -> str:
    """The visible part."""
    widths = "".join(f" {width}" for width in shape.visible_hidden)
    return shape.visible + widths + (f", dropout {shape.dropout:g}" if shape.dropout else "")


def _hopeless(past: Sequence[Epoch], most: float) -> bool:
    """Whether a network hardly gains any more long before it is where it must come: with the gain
    of its last ten epochs it would need a hundred more.
    """
    if len(past) < 20:
        return False
    now = min(epoch.valid for epoch in past)
    before = min(epoch.valid for epoch in past[:-10])
    return now - 10 * (before - now) > most


def search(
    rows: Tensor,
    valid: Tensor,
    groups: Groups,
    how: Training | None = None,
    say: Say = lambda step: None,
    stopping: Callable[[], bool] = lambda: False,
    kept: Path | None = None,
) -> Found:
    """rows, valid: (n, groups.bits), of zeros and ones. how: of every training; its seconds are for
    each. stopping: asked after each epoch; then the best network so far is returned. kept: a folder
    that each training is written to as it ends; those that are there are not done again.

    RunError: `kept` holds a search of other rows or settings.
    """
    trials = _Trials(rows, valid, how or Training(), say, stopping, kept)
    with own_draws(trials.how.seed, rows.device):
        return _search(trials, groups)


def _search(trials: _Trials, groups: Groups) -> Found:
    def tried(shapes: Iterable[DarnShape], best: Found | None = None) -> Found | None:
        for shape in shapes:
            if trials.steps and trials.stopping():
                break
            model = first(groups, shape, trials.rows, trials.how.seed)
            best = _better(best, trials.grow(model) if shape.units else trials.train(model))
        return best

    plain = tried(VISIBLE)
    assert plain is not None
    before = math.inf
    while plain.loss < before * (1 - PAYS) and not trials.stopping():
        before = plain.loss
        shape = plain.model.shape
        larger = (replace(shape, visible_hidden=h) for h in _larger(shape.visible_hidden))
        plain = tried(larger, plain) or plain
    behind, alone = HIDDEN
    bits = tried((replace(behind, dropout=plain.model.shape.dropout), alone))
    if bits is not None and bits.loss < plain.loss and not trials.stopping():
        above = trials.grow(with_layer(bits.model, ABOVE, trials.how.seed))
        if above.loss < bits.loss * (1 - PAYS):
            bits = above
    # all so far at the first rate; those that may still be the best while it falls
    ends = [end for end in (plain, bits) if end is not None]
    least = min(end.loss for end in ends)
    now = min(ends, key=lambda end: end.loss)
    for end in sorted(ends, key=lambda end: end.loss):
        if end.loss < BEHIND * least and (end is now or not trials.stopping()):
            last = trials.train(copy.deepcopy(end.model), trials.how)
            now = _better(now, replace(last, ledger=end.ledger))
    return replace(now, steps=tuple(trials.steps))


def _larger(hidden: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A wider and a deeper masked perceptron; none where there is none."""
    wider = tuple(2 * width for width in hidden)
    deeper = (*hidden, *hidden[-1:])
    return [h for h in (wider, deeper) if h and max(h) <= WIDEST and len(h) <= DEEPEST]


def first(groups: Groups, shape: DarnShape, rows: Tensor, seed: int) -> Darn:
    """New weights, which depend on the seed alone."""
    with own_draws(seed, "cpu"):
        return Darn(groups, shape, rows.mean(0))


def with_layer(model: Darn, units: int, seed: int) -> Darn:
    """The same network with a layer of so many new bits above, which say next to nothing yet."""
    shape = replace(model.present_shape, units=(*model.units, units))
    with own_draws(seed, model):
        new = Darn(model.groups, shape, model.means)
        top = new.decoder(model.stochastic)
        if top.from_context is not None:
            top.from_context.weight.detach().mul_(0.05)
    # what is new has names that were not there
    new.load_state_dict(model.state_dict(), strict=False)
    return new


def _edits(model: Darn, valid: Tensor, most: Sequence[int]) -> tuple[Edit, ...]:
    """Of every layer: bits that say nothing leave; where nearly all say something as many come,
    unless no more are left than there were before: `most`, from which some came already. A layer is
    never without bits.
    """
    with own_draws(0, model):
        each = divergence_of_units(model, valid)
    edits: list[Edit] = []
    for level, costs in enumerate(each):
        dead = np.flatnonzero(costs < DEAD)
        alive = len(costs) - len(dead)
        if alive == 0:
            return ()
        if len(dead):
            edits.append(Shrink(width_of(level), dead.tolist()))
        if alive >= max(ENOUGH * len(costs), most[level]) and 2 * alive <= MOST:
            edits.append(Grow(width_of(level), alive))
    return tuple(edits)


def width_of(level: int) -> str:
    """What the bits of a stochastic layer are called in edits."""
    return f"encoders.{level}.from_context"


def change(model: Darn, edits: tuple[Edit, ...], rows: Tensor, seed: int) -> None:
    """Resize in place. New bits are nearly even and say next to nothing, in both p and q."""
    inits = {**INITS, "out": normal(0.05)}
    draw = torch.Generator().manual_seed(seed)
    for edit in edits:
        resize(model, [edit], example=rows[:8], inits=inits, generator=draw)


def _better(one: Found | None, other: Found) -> Found:
    return other if one is None or other.loss < one.loss else one
