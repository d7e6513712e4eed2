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
from statistics import mean

import torch
from torch import Tensor, nn
from torch.optim import Adam

from morphogen.edit.apply import count_parameters
from morphogen.experiments.linked.nets import LINKED, NORMED, SINGLE, STARTED, Kind, started
from morphogen.experiments.shared.images import images, objective, scores
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.layers.linked import LKSine
from morphogen.measures.dead import dead_units
from morphogen.record import Claim, Curve, Reproduction, Trace
from morphogen.training.train import Batches, State, generator, train


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


def claims(runs: Sequence[dict[str, Fit]]) -> list[Claim]:
    """What each loses, and whether the linked ones lose less than the plain one that they are made
    of.
    """
    found = []
    for key in runs[0]:
        fits = [run[key] for run in runs]
        found.append(
            over_seeds(f"{key}: accuracy on the last task", [f.accuracy[-1] for f in fits])
        )
        found.append(
            over_seeds(
                f"{key}: lost from the first quarter of the tasks to the last",
                [f.lost for f in fits],
            )
        )
    for name in ("ReLU", "SELU", "Swish"):
        saved = [run[name].lost - run[f"LK-{name}"].lost for run in runs]
        found.append(over_seeds(f"{name} loses more than LK-{name} by", saved, low=0.0))
        ahead = [run[f"LK-{name}"].accuracy[-1] - run[name].accuracy[-1] for run in runs]
        found.append(
            over_seeds(f"LK-{name} is ahead of {name} on the last task by", ahead, low=0.0)
        )
    return found


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """All activations through the same tasks. smoke: digits."""
    config = replace(Config(seeds=seeds), **SMOKE) if smoke else Config(seeds=seeds)  # type: ignore[arg-type]
    began = time.perf_counter()
    runs = []
    for seed in range(seeds):
        data = images(config.data, seed, config.size)
        x = data.train[0][: config.rows].mean(1).flatten(1)
        y = data.train[1][: config.rows]
        runs.append(
            {name: one(kind, config, x, y, data.classes, seed) for name, kind in KINDS.items()}
        )
    tasks = tuple(range(1, config.tasks + 1))
    curves = [
        Curve(panel, name, tasks, getattr(found, panel))
        for panel in ("accuracy", "dead")
        for name, found in runs[0].items()
    ]
    traces = [
        Trace(f"{name}-{seed}", "accuracy", tasks, found.accuracy)
        for seed, run in enumerate(runs)
        for name, found in run.items()
    ]
    notes = [
        f"{name}: {found.parameters} parameters, {100 * found.dead[-1]:.0f} % of units dead at the "
        "end"
        for name, found in runs[0].items()
    ]
    return Reproduction(
        "linked-plasticity",
        f"{data.title}: {config.tasks} tasks of labels dealt out anew",
        "Loss of plasticity (arXiv 2303.07507), concatenated ReLUs",
        "default",
        {key: str(value) for key, value in vars(config).items()},
        tuple(claims(runs)),
        tuple(curves),
        {"accuracy": ("task", "accuracy on its rows"), "dead": ("task", "share of dead units")},
        (*data.notes, *notes),
        time.perf_counter() - began,
        traces=tuple(traces),
    )
