"""Train a `Darn` on rows until others no longer get shorter: `learn(model, rows, valid)`.

RMSprop as Graves had it (centred, momentum .9), on the description length. After each epoch the
description length of the held out rows is measured; where it no longer falls the learning rate
does, and training ends once that does not help either. The best epoch's weights are kept.

With weight noise nothing is held out: what falls or does not is what the rows and the weights cost
together, see `weight_noise`.

Source: Gregor et al. 2014, section 5.1. Differs: the learning rate falls.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from morphogen.density.darn import Darn
from morphogen.density.gradient_estimators import EstimatorName, Step, step_of
from morphogen.density.likelihood import bound
from morphogen.density.rmsprop import RMSprop
from morphogen.density.sparse import Sparse
from morphogen.density.weight_noise import WeightNoise
from morphogen.errors import DataError
from morphogen.random_state import own_draws
from morphogen.training.train import Batches, Diverged, State, train

_MOST_HALVINGS = 8  # of the learning rate, after a loss that was not finite
_FEWEST = 10  # steps between two measurements, for fewer an epoch is none


@dataclass(frozen=True)
class Training:
    """rate: of RMSprop; each time the held out rows have not gained for `patience` epochs it falls
    to a quarter, from the best epoch on, `falls` times. batch: rows a step. estimator: a name of
    ESTIMATORS. decay: weight decay of matrices. repeats: how often held out rows are encoded for
    one measurement. seconds: of training, after which the best epoch is kept. weight_noise: end
    where rows and weights together no longer get shorter, whatever the held out rows say; they are
    only measured. active: the share of stochastic bits that are to be 1, see `sparse`, or None.
    """

    rate: float = 5e-4
    batch: int = 100
    estimator: EstimatorName = "half"
    patience: int = 15
    falls: int = 2
    epochs: int = 10_000
    decay: float = 0.0
    repeats: int = 2
    seconds: float | None = None
    seed: int = 0
    weight_noise: bool = False
    active: float | None = None


@dataclass(frozen=True)
class Epoch:
    """One measurement. loss, valid: description length of a row in nats. With weight noise the loss
    has the row's part of what the weights cost in it; valid is NaN where no rows are held out.
    """

    epoch: int
    seconds: float
    loss: float
    valid: float


Show = Callable[[Epoch], None]


def learn(
    model: Darn,
    rows: Tensor,
    valid: Tensor,
    how: Training | None = None,
    show: Show = lambda epoch: None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Epoch]:
    """Train in place. rows, valid: (n, bits); with weight noise, and only then, valid may have no
    rows. Returns an entry an epoch. stopping: asked at each epoch's end, whether that was the last.

    Raises `Diverged` where the loss becomes infinite however small the rate, and `Unsupported` for
    an estimator that the model cannot be used with.
    """
    how = how or Training()
    if not len(valid) and not how.weight_noise:
        raise DataError("valid has no rows: only weight_noise=True can do without")
    with own_draws(how.seed, model):
        return _learn(model, rows, valid, how, show, stopping)


def _learn(
    model: Darn,
    rows: Tensor,
    valid: Tensor,
    how: Training,
    show: Show,
    stopping: Callable[[], bool],
) -> list[Epoch]:
    began = time.perf_counter()
    step = _step(model, how, len(rows))
    # what is trained: the model, and the estimator where it learns too
    whole = nn.ModuleList([model, *([step] if isinstance(step, nn.Module) else [])])
    batches = Batches(rows, rows, min(how.batch, len(rows)), how.seed)
    state = State(whole, optimizer_for(whole, how), how.seed)
    past: list[Epoch] = []
    best = (math.inf, copy.deepcopy(model.state_dict()))
    waited = falls = 0

    def after(state: State) -> None:
        nonlocal best, waited, falls
        model.eval()
        of_valid = bound(model, valid, how.repeats) if len(valid) else math.nan
        loss = state.train_loss if how.weight_noise else of_valid
        seconds = time.perf_counter() - began
        past.append(Epoch(state.round, seconds, state.train_loss, of_valid))
        show(past[-1])
        waited += 1
        if loss < best[0]:
            best = (loss, copy.deepcopy(model.state_dict()))
            waited = 0
        if waited >= how.patience:
            falls += 1
            waited = 0
            model.load_state_dict(best[1])
        late = how.seconds is not None and seconds > how.seconds
        state.stop = falls > how.falls or late or stopping() or state.round >= how.epochs

    while not state.stop:
        try:
            train(
                state,
                batches,
                lambda whole, x, y: step(model, x),
                lambda number: how.rate * 0.25**falls,
                steps=max(_FEWEST, batches.per_epoch),
                hooks=[after],
            )
        except Diverged:
            state.halvings += 1
            if state.halvings > _MOST_HALVINGS:
                raise
    model.load_state_dict(best[1])
    model.eval()
    return past


def _step(model: Darn, how: Training, rows: int) -> Step:
    """The estimator, with what the training asks for around it."""
    step = step_of(how.estimator, model)
    if how.active is not None and model.stochastic:
        step = Sparse(step, how.active)
    return WeightNoise(model, step, rows) if how.weight_noise else step


def optimizer_for(module: nn.Module, how: Training) -> torch.optim.Optimizer:
    """RMSprop in two groups: matrices, which decay where asked, and vectors."""
    matrices = [p for p in module.parameters() if p.dim() > 1]
    vectors = [p for p in module.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": how.decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return RMSprop(groups, lr=how.rate)
