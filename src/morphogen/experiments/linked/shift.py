"""Inputs that are shifted and scaled: which units are left without a gradient?

The experiment that the article promises and its code lacks. A small convolutional network learns
images whose pixels are moved by 0, 1, 10 or 100, or multiplied by 10 or 100, for one epoch; then
the share of units is counted that are flat wherever the data takes them, before and after training,
with every activation, and with batch norm. Both modes are the same.

Source: the question of Riera Molina & Pujol 2017 (arXiv 1712.02609), section on covariate shift;
the network that its code keeps for it (32, 64, pooling, 128). The settings are ours.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import nn
from torch.optim import Adam

from morphogen.experiments.linked.nets import (
    LINKED,
    NORMED,
    SINGLE,
    STARTED,
    Fit,
    Kind,
    fit,
    started,
)
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.images import Images, images
from morphogen.experiments.shared.page import Paper, page
from morphogen.measures.dead import dead_units
from morphogen.record import Claim, Curve, Reproduction
from morphogen.training.train import Batches

PAPER = Paper(
    "linked-shift",
    "inputs shifted and scaled",
    "Linked neurons (arXiv 1712.02609), covariate shift",
)


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    seeds: int = 1
    width: int = 8
    size: int = 16
    rows: int = 6_000
    epochs: int = 1
    batch: int = 32
    rate: float = 1e-3


SMOKE = {"data": "digits", "width": 4, "size": 8, "rows": 96}
# (pixels are moved by, and multiplied by)
CHANGES = {
    "as they are": (0.0, 1.0),
    "moved by 1": (1.0, 1.0),
    "moved by 10": (10.0, 1.0),
    "moved by 100": (100.0, 1.0),
    "times 10": (0.0, 10.0),
    "times 100": (0.0, 100.0),
}
KINDS = (
    SINGLE
    | LINKED
    | NORMED
    | {name: STARTED[name] for name in ("LK-ReLU, looks linear", "LK-Swish, looks linear")}
)


def network(kind: Kind, config: Config, classes: int) -> nn.Sequential:
    """Images (batch, 3, size, size) -> logits (batch, classes)."""
    sizes = [kind.units(factor * config.width) for factor in (1, 2, 4)]
    layers: list[nn.Module] = []
    before = 3
    for number, units in enumerate(sizes):
        dense = number == 2
        fresh = (
            nn.Linear(before * (config.size // 2) ** 2, units)
            if dense
            else nn.Conv2d(before, units, 3, padding=1)
        )
        layers += [nn.MaxPool2d(2), nn.Flatten()] if dense else []
        layers.append(started(fresh, kind, reads=number > 0))
        if kind.norm:
            layers.append(nn.BatchNorm1d(units) if dense else nn.BatchNorm2d(units))
        layers.append(kind.build(units))
        before = kind.widen * units
    return nn.Sequential(*layers, started(nn.Linear(before, classes), kind, True))


def changed(data: Images, move: float, times: float) -> Images:
    """The images with other pixels."""
    train, validation, test = (
        ((x * times + move), y) for x, y in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def one(kind: Kind, config: Config, data: Images, seed: int) -> tuple[Fit, float]:
    """The run, and the share of dead units before it."""
    torch.manual_seed(seed)
    model = network(kind, config, data.classes)
    at_first = list(dead_units(model, data.validation[0][:500]).values())
    x, y = (part[: config.rows] for part in data.train)
    optimizer = Adam(model.parameters(), config.rate, fused=True)
    result = fit(
        model,
        optimizer,
        Batches(x, y, config.batch, seed),
        data,
        lambda step: config.rate,
        config.epochs,
    )
    return result, sum(at_first) / len(at_first)


Run = dict[str, dict[str, tuple[Fit, float]]]
"""One seed's fits, and dead units before, by change and activation."""


def rows(key: str) -> tuple[Row, Row]:
    """Dead units and accuracy of an activation; linked units should never be dead."""
    bound = 0.0 if key.startswith("LK") else None
    return (
        Row("share of dead units", lambda fit: sum(fit.dead) / len(fit.dead), high=bound),
        Row("test accuracy", lambda fit: fit.last),
    )


def claims(runs: Sequence[Run]) -> list[Claim]:
    """For every change and activation."""
    judged: list[Claim] = []
    for change, key in product(runs[0], KINDS):
        fits = [run[change][key][0] for run in runs]
        judged += claimed(rows(key), fits, f"{change}, {key}: ")
    return judged


def compared(config: Config, data: Images, seed: int) -> Run:
    """All changes and activations."""
    run: Run = {}
    for change, how in CHANGES.items():
        run[change] = {
            name: one(kind, config, changed(data, *how), seed) for name, kind in KINDS.items()
        }
    return run


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """All changes and activations. smoke: digits."""
    config = replace(Config(seeds=seeds), **SMOKE) if smoke else Config(seeds=seeds)  # type: ignore[arg-type]
    began = time.perf_counter()
    runs = []
    for seed in range(seeds):
        data = images(config.data, seed, config.size)
        runs.append(compared(config, data, seed))
    curves = []
    notes = [*data.notes]
    for change, name in product(CHANGES, KINDS):
        result, first = runs[0][change][name]
        layers = tuple(range(1, len(result.dead) + 1))
        curves.append(Curve(change, name, layers, result.dead))
        notes.append(
            f"{change}, {name}: {100 * first:.0f} % of units dead at first, "
            f"{100 * sum(result.dead) / len(result.dead):.0f} % after"
        )
    axes = dict.fromkeys(CHANGES, ("layer", "share of dead units at the end"))
    paper = replace(PAPER, title=f"{data.title}: {PAPER.title}", axes=axes)
    return page(paper, config, began, claims(runs), curves, notes)
