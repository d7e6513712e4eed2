"""Does a network that has learned nineteen tasks still learn the twentieth?

Labels of the same images are dealt out anew for each task, so that all tasks are equally hard and
nothing can be carried over; what falls from task to task is the network's ability to learn. One
network goes through all tasks with one optimizer. The article has no such test; linked ReLUs are
known as a cure for this loss. Both modes are the same.

Source: Abbas et al. 2023 (arXiv 2303.07507), concatenated ReLUs against the loss of plasticity;
Lyle et al. 2023 (arXiv 2303.01486), random labels as the test. The settings are ours.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import mean

import torch
from torch import Tensor, nn
from torch.optim import Adam

from morphogen.edit.apply import count_parameters
from morphogen.experiments.linked.nets import LINKED, NORMED, SINGLE, STARTED, Kind, started
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.images import Images, images, objective, scores
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.linked import LKSine
from morphogen.measures.dead import dead_units
from morphogen.record import Claim, Curve, Reproduction, Trace
from morphogen.training.train import Batches, State, generator, train

PAPER = Paper(
    "linked-plasticity",
    "tasks of labels dealt out anew",
    "Loss of plasticity (arXiv 2303.07507), concatenated ReLUs",
    {"accuracy": ("task", "accuracy on its rows"), "dead": ("task", "share of dead units")},
)


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    seeds: int = 1
    size: int = 16
    rows: int = 1_600
    tasks: int = 20
    layers: int = 3
    # of a linked layer; plain layers have sqrt(2) times as many units, for equal parameters
    width: int = 64
    epochs: int = 30
    batch: int = 32
    rate: float = 1e-3


SMOKE = {"data": "digits", "size": 8, "rows": 64, "tasks": 3, "width": 8, "epochs": 2}
KINDS = {
    **{
        name: replace(kind, factor=math.sqrt(2), init="he")
        for name, kind in (SINGLE | NORMED).items()
    },
    "Leaky ReLU": Kind(lambda units: nn.LeakyReLU(0.1), factor=math.sqrt(2), init="he"),
    **{
        name: STARTED[f"{name}, {init}"]
        for name, init in {
            "LK-ReLU": "looks linear",
            "LK-SELU": "variance",
            "LK-Swish": "looks linear",
        }.items()
    },
    "LK-ReLU, Glorot": LINKED["LK-ReLU"],
    "sine and cosine": Kind(lambda units: nn.Identity(), lambda units: LKSine(), init="variance"),
}


@dataclass(frozen=True)
class Fit:
    """One network through all tasks: the accuracy on each task's own rows at its end, and the share
    of dead units then.
    """

    accuracy: tuple[float, ...]
    dead: tuple[float, ...]
    parameters: int

    @property
    def lost(self) -> float:
        """Mean accuracy of the first quarter of the tasks, less that of the last."""
        part = max(1, len(self.accuracy) // 4)
        return mean(self.accuracy[:part]) - mean(self.accuracy[-part:])


def network(kind: Kind, config: Config, features: int, classes: int) -> nn.Sequential:
    """Rows (batch, features) -> logits (batch, classes)."""
    layers: list[nn.Module] = []
    before = features
    units = kind.units(config.width)
    for number in range(config.layers):
        layers.append(started(nn.Linear(before, units), kind, reads=number > 0))
        layers += [nn.BatchNorm1d(units)] if kind.norm else []
        layers.append(kind.build(units))
        before = kind.widen * units
    return nn.Sequential(*layers, started(nn.Linear(before, classes), kind, True))


def one(kind: Kind, config: Config, x: Tensor, y: Tensor, classes: int, seed: int) -> Fit:
    """All tasks, one after the other. x: rows (n, features); y: labels that are dealt out anew."""
    torch.manual_seed(seed)
    model = network(kind, config, x.shape[1], classes)
    state = State(model, Adam(model.parameters(), config.rate, fused=True), seed)
    accuracy = []
    dead = []
    for task in range(config.tasks):
        dealt = y[torch.randperm(len(y), generator=generator(seed, task))]
        batches = Batches(x, dealt, config.batch, seed)
        train(
            state,
            batches,
            objective,
            lambda step: config.rate,
            steps=batches.per_epoch,
            rounds=config.epochs * (task + 1),
        )
        accuracy.append(scores(model, (x, dealt))[1])
        dead.append(mean(dead_units(model, x).values()))
    return Fit(tuple(accuracy), tuple(dead), count_parameters(model))


# of one activation
EACH = (
    Row("accuracy on the last task", lambda fit: fit.accuracy[-1]),
    Row("lost from the first quarter of the tasks to the last", lambda fit: fit.lost),
)


def beside(name: str) -> tuple[Row, Row]:
    """Whether a linked activation loses less than the plain one that it is made of."""
    linked = f"LK-{name}"
    return (
        Row(
            f"{name} loses more than {linked} by",
            lambda run: run[name].lost - run[linked].lost,
            low=0.0,
        ),
        Row(
            f"{linked} is ahead of {name} on the last task by",
            lambda run: run[linked].accuracy[-1] - run[name].accuracy[-1],
            low=0.0,
        ),
    )


PAIRED = tuple(chain.from_iterable(map(beside, ("ReLU", "SELU", "Swish"))))


def claims(runs: Sequence[dict[str, Fit]]) -> list[Claim]:
    """Of each activation, then over paired seeds."""
    judged: list[Claim] = []
    for key in runs[0]:
        judged += claimed(EACH, [run[key] for run in runs], f"{key}: ")
    return judged + claimed(PAIRED, runs)


def compared(config: Config, data: Images, seed: int) -> dict[str, Fit]:
    """All activations through the same tasks, on grey rows."""
    images, labels = (part[: config.rows] for part in data.train)
    x = images.mean(1).flatten(1)
    return {name: one(kind, config, x, labels, data.classes, seed) for name, kind in KINDS.items()}


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """All activations through the same tasks. smoke: digits."""
    config = replace(Config(seeds=seeds), **SMOKE) if smoke else Config(seeds=seeds)  # type: ignore[arg-type]
    began = time.perf_counter()
    tasks = tuple(range(1, config.tasks + 1))
    runs = []
    traces = []
    for seed in range(seeds):
        data = images(config.data, seed, config.size)
        run = compared(config, data, seed)
        runs.append(run)
        traces += [
            Trace(f"{name}-{seed}", "accuracy", tasks, fit.accuracy) for name, fit in run.items()
        ]
    curves = [Curve("accuracy", name, tasks, fit.accuracy) for name, fit in runs[0].items()]
    curves += [Curve("dead", name, tasks, fit.dead) for name, fit in runs[0].items()]
    notes = [
        f"{name}: {fit.parameters} parameters, {100 * fit.dead[-1]:.0f} % of units dead at the end"
        for name, fit in runs[0].items()
    ]
    paper = replace(PAPER, title=f"{data.title}: {config.tasks} {PAPER.title}")
    notes = [*data.notes, *notes]
    return page(paper, config, began, claims(runs), curves, notes, traces=tuple(traces))
