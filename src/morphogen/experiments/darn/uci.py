"""DARN on binary sets: the table of the paper, with our figures over seeds and a MADE beside.

Faithful: one deterministic tanh layer and one stochastic layer with an autoregressive prior,
visibles that see those before them, RMSprop with batches of 100, early stopping on the valid part,
of the paper's grid one size (100 tanh units, 16 bits). Default: the search of `density.search`,
which decides on the valid part too. RCV1 and Web are not among our sets.

Source: Gregor et al. 2014 (arXiv 1310.8499), table 1 and section 5.1. Differs: likelihoods by
importance sampling have 500 samples a row in the place of 100,000, and test parts at most 10,000
rows.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from morphogen.data.binary_sets import BinarySet, binary_set
from morphogen.density.darn import DarnShape
from morphogen.density.groups import Groups
from morphogen.density.learn import Epoch, Training, learn
from morphogen.density.likelihood import Likelihood, log_likelihood
from morphogen.density.search import first, search
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.experiments.shared.page import Paper, page
from morphogen.record import Claim, Curve, Reproduction

PAPER = Paper(
    "darn-uci",
    "Deep AutoRegressive Networks on binary sets",
    "Gregor, Danihelka, Mnih, Blundell, Wierstra, ICML 2014 (arXiv 1310.8499), table 1",
    {"held out rows": ("epoch", "nats a row")},
)
# nats a row as published, and the most that is accepted of ours
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "adult-binary": (13.19, 13.25),
    "connect4": (11.91, 12.0),
    "dna-nade": (81.04, 82.3),
    "mushrooms": (9.55, 9.6),
    "nips": (274.68, 275.5),
    "ocr-letters": (28.17, 28.5),
}
FAITHFUL = DarnShape((16,), 100)
BESIDE = DarnShape((), 0, "made", visible_hidden=(500,), dropout=0.2)


@dataclass(frozen=True)
class Config:
    """sets: names. seconds: of each training at most. samples: of h for each test row. tested: rows
    at most.
    """

    sets: tuple[str, ...] = tuple(PUBLISHED)
    seconds: float | None = 300.0
    samples: int = 500
    tested: int = 10_000
    rate: float = 5e-4
    patience: int = 15
    falls: int = 2


FAITHFULLY = Config(seconds=None, rate=2.5e-4, patience=30, falls=0)
SMOKE = Config(("digits",), seconds=0.5, samples=20, tested=100, rate=3e-3, patience=2, falls=0)


@dataclass(frozen=True)
class Run:
    """One set and seed."""

    ours: Likelihood
    made: Likelihood
    units: int
    epochs: tuple[Epoch, ...]


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Every set with so many seeds."""
    began = time.perf_counter()
    config = SMOKE if smoke else FAITHFULLY if faithful else Config()
    claims: list[Claim] = []
    curves: list[Curve] = []
    for name in config.sets:
        runs = [run(name, config, faithful, seed) for seed in range(seeds)]
        claims += _claims(name, runs)
        epochs = runs[0].epochs
        x = tuple(float(epoch.epoch) for epoch in epochs)
        y = tuple(epoch.valid for epoch in epochs)
        curves.append(Curve("held out rows", name, x, y))
    notes = (
        "± beside a figure is over seeds; the standard error over test rows is a row of its own",
    )
    return page(PAPER, config, began, claims, curves, notes, faithful)


def run(name: str, config: Config, faithful: bool, seed: int) -> Run:
    """Train both on one set."""
    train, valid, test = rows_of(name, config.tested)
    groups = Groups.of_bits(train.shape[1])
    how = Training(
        rate=config.rate,
        patience=config.patience,
        falls=config.falls,
        seconds=config.seconds,
        seed=seed,
    )
    if faithful:
        model = first(groups, FAITHFUL, train, seed)
        epochs = tuple(learn(model, train, valid, how))
    else:
        found = search(train, valid, groups, how)
        model, epochs = found.model, found.epochs
    made = first(groups, BESIDE, train, seed)
    learn(made, train, valid, how)
    ours = log_likelihood(model, test, config.samples)
    return Run(ours, log_likelihood(made, test), sum(model.units), epochs)


def rows_of(name: str, tested: int) -> tuple[Tensor, Tensor, Tensor]:
    """Train, valid and test rows; "digits" are scikit-learn's, black where a point is over 7."""
    parts = _digits() if name == "digits" else binary_set(name)  # type: ignore[arg-type]
    some = parts.test[np.random.default_rng(0).permutation(len(parts.test))[:tested]]
    train, valid, test = (
        torch.as_tensor(part.astype(np.float32)) for part in (parts.train, parts.valid, some)
    )
    return train, valid, test


def _digits() -> BinarySet:
    bits = (load_digits().data > 7).astype(np.uint8)
    return BinarySet(bits[:1200], bits[1200:1400], bits[1400:])


def _claims(name: str, runs: list[Run]) -> list[Claim]:
    published, most = PUBLISHED.get(name, (None, None))
    source = "table 1" if published else ""
    return [
        over_seeds(
            f"{name}: nats a test row",
            [-run.ours.mean for run in runs],
            published,
            None,
            most,
            source,
        ),
        over_seeds(f"{name}: standard error over rows", [run.ours.data_error for run in runs]),
        over_seeds(f"{name}: stochastic units", [float(run.units) for run in runs]),
        over_seeds(f"{name}: MADE, 500 units, dropout .2", [-run.made.mean for run in runs]),
    ]
