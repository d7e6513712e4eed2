"""Train a `ShaDow` on the scopes of nodes until others no longer gain: `learn(model, task, ...)`.

Adam with a bound on the gradient's norm. After each round (an epoch, at least ten steps) the nodes
of the valid part are predicted; where their metric no longer gains the learning rate falls to a
third, from the best round on, and training ends once that does not help either. What comes out is
the network of the best round. A learned depth gets and loses blocks between rounds.

Source: settings of shaDow's published code (see `gnn`). Differs: the learning rate falls.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn
from torch.optim import AdamW, Optimizer

from morphogen.edit.adapt import adapt
from morphogen.edit.checkpoint import load, save
from morphogen.errors import DataError
from morphogen.fitting.metrics import Metric, metric_for, scores
from morphogen.gnn.batches import Extraction, ScopeBatches, outputs_of
from morphogen.gnn.extractors import Extractor
from morphogen.gnn.network import ShaDow
from morphogen.gnn.task import NodeTask
from morphogen.layers.protocol import size_parameters
from morphogen.random_state import own_draws
from morphogen.record import revive, write_atomic
from morphogen.training.train import State, train

_FEWEST = 10  # steps of a round


@dataclass(frozen=True)
class Training:
    """rate: of Adam; each time the valid nodes have not gained for `patience` rounds it falls to a
    third, `falls` times. batch: targets a step. depth_rate: times the rate, of a learned depth.
    clip: of the gradient's norm. seconds: of training, after which the best round is kept. metric:
    a name of METRICS; None for the AUC of two classes, the accuracy of more, the RMSE of values.
    """

    rate: float = 2e-3
    batch: int = 64
    patience: int = 10
    falls: int = 2
    rounds: int = 1000
    decay: float = 0.0
    depth_rate: float = 10.0
    clip: float = 5.0
    seconds: float | None = None
    seed: int = 0
    metric: str | None = None


@dataclass(frozen=True)
class Round:
    """One measurement. loss: of the training steps. valid_loss, valid: of the valid nodes, valid in
    the metric. merit: the same, so that more is better. layers: a real number where it is learned.
    """

    number: int
    seconds: float
    loss: float
    valid_loss: float
    valid: float
    merit: float
    layers: float


@dataclass(frozen=True)
class Learned:
    """model: of the best round. rounds: all that there were."""

    model: ShaDow
    rounds: tuple[Round, ...]

    @property
    def best(self) -> int:
        """The number of the best round."""
        return max(self.rounds, key=lambda one: one.merit).number


Show = Callable[[Round], None]


def learn(
    model: ShaDow,
    task: NodeTask,
    extractors: Sequence[Extractor],
    how: Training | None = None,
    show: Show = lambda one: None,
    stopping: Callable[[], bool] = lambda: False,
    kept: Path | None = None,
) -> Learned:
    """Train a copy. stopping: asked at each round's end, whether that was the last. kept: a folder
    that each round is written to; a training that is there goes on, and ends as it would have.

    Raises `DataError` where a part has no nodes, and `RunError` where `kept` holds a training of
    another network.
    """
    how = how or Training()
    for part in ("train", "valid"):
        if not len(getattr(task, part)):
            raise DataError(f"{part}: has no nodes; give at least one")
    with own_draws(how.seed, model):
        now = _first(model, how) if kept is None else _found(model, how, kept)
        return _learn(now, task, extractors, how, show, stopping, kept)


def metric_of(task: NodeTask, name: str | None) -> Metric:
    """The metric of that name, or the default."""
    default = "auc" if task.kind == "classification" and task.outputs == 2 else None
    return metric_for(name or default, task.kind)


def measured(
    model: ShaDow, task: NodeTask, extraction: Extraction, nodes: np.ndarray, metric: Metric
) -> tuple[float, float]:
    """(loss, metric) of the nodes. A metric that the nodes do not define is minus the loss."""
    answers = task.answers(outputs_of(model, extraction, nodes))
    loss, value = scores(metric, task.y[nodes].numpy(), answers)
    return loss, -loss if value is None else value


@dataclass
class _Now:
    """A training between two rounds."""

    state: State
    best: ShaDow
    rounds: list[Round]
    falls: int = 0
    waited: int = 0


def _first(model: ShaDow, how: Training) -> _Now:
    own = copy.deepcopy(model)
    return _Now(State(own, optimizer_for(own, how), how.seed), copy.deepcopy(model), [])


def _learn(
    now: _Now,
    task: NodeTask,
    extractors: Sequence[Extractor],
    how: Training,
    show: Show,
    stopping: Callable[[], bool],
    kept: Path | None,
) -> Learned:
    metric = metric_of(task, how.metric)
    extraction = Extraction(task, extractors, np.concatenate([task.train, task.valid]), how.seed)
    batches = ScopeBatches(extraction, how.batch, how.seed)
    before = now.rounds[-1].seconds if now.rounds else 0.0
    began = time.perf_counter()

    def after(state: State) -> None:
        model = state.model
        assert isinstance(model, ShaDow)
        adapt(model, optimizers=[state.optimizer])
        loss, value = measured(model, task, extraction, task.valid, metric)
        seconds = before + time.perf_counter() - began
        merit = value if metric.higher else -value
        one = Round(state.round, seconds, state.train_loss, loss, value, merit, model.layers)
        now.waited += 1
        if not now.rounds or merit > max(past.merit for past in now.rounds):
            now.best = copy.deepcopy(model)
            now.waited = 0
        now.rounds.append(one)
        show(one)
        late = how.seconds is not None and seconds > how.seconds
        state.stop = now.waited >= how.patience or late or stopping() or state.round >= how.rounds
        if kept is not None and not state.stop:
            _keep(now, kept)

    while now.falls <= how.falls:
        train(
            now.state,
            batches,
            lambda model, given, y: task.loss(model(*given), y),
            lambda step: how.rate / 3**now.falls,
            steps=max(_FEWEST, batches.per_epoch),
            hooks=[after],
            clip=how.clip,
        )
        if now.waited < how.patience:
            break  # late, or asked to stop
        now.falls += 1
        now.waited = 0
        own = copy.deepcopy(now.best)
        now.state = replace(now.state, model=own, optimizer=optimizer_for(own, how), stop=False)
    return Learned(now.best.eval(), tuple(now.rounds))


def optimizer_for(model: nn.Module, how: Training) -> Optimizer:
    """Adam in three groups: matrices, which decay where asked, vectors, and learned depths."""
    depths = size_parameters(model)
    others = [p for p in model.parameters() if not any(p is w for w in depths)]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": how.decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
        {"params": depths, "weight_decay": 0.0, "scale": how.depth_rate},
    ]
    return AdamW([group for group in groups if group["params"]], lr=how.rate)


_PROGRESS = "progress.json"


def _keep(now: _Now, folder: Path) -> None:
    """Models first, then what names them: a crash leaves the round before."""
    folder.mkdir(parents=True, exist_ok=True)
    live, best = f"live-{now.state.round}", f"best-{now.rounds[-1 - now.waited].number}"
    save(now.state.model, folder / live, optimizers=[now.state.optimizer])
    if not (folder / f"{best}.safetensors").exists():
        save(now.best, folder / best)
    about = {
        "live": live,
        "best": best,
        "rounds": [asdict(one) for one in now.rounds],
        "step": now.state.step,
        "falls": now.falls,
        "waited": now.waited,
    }
    write_atomic(folder / _PROGRESS, json.dumps(about).encode())
    for path in folder.glob("*.safetensors"):
        if path.stem not in (live, best):
            path.unlink()


def _found(model: ShaDow, how: Training, folder: Path) -> _Now:
    """What `_keep` wrote, or the beginning."""
    if not (folder / _PROGRESS).exists():
        return _first(model, how)
    about = json.loads((folder / _PROGRESS).read_text())

    def built() -> tuple[nn.Module, Optimizer]:
        own = copy.deepcopy(model)
        return own, optimizer_for(own, how)

    live, (optimizer,) = load(folder / f"{about['live']}.safetensors", built)
    best, _ = load(folder / f"{about['best']}.safetensors", lambda: copy.deepcopy(model))
    assert isinstance(best, ShaDow)
    rounds = [revive(Round, one) for one in about["rounds"]]
    state = State(live, optimizer, how.seed, rounds[-1].number, about["step"])
    return _Now(state, best, rounds, about["falls"], about["waited"])
