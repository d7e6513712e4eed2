"""DARN on binary sets: the table of the paper, with our figures over seeds, and beside them a MADE,
a NADE, four orders of the network that was found, and a mixture of Bernoullis.

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
from morphogen.density.mixture import learn_orders, log_likelihood_of
from morphogen.density.search import first, search
from morphogen.experiments.darn.bernoullis import bernoullis
from morphogen.experiments.darn.held_out import held_out
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.experiments.shared.page import Paper, page
from morphogen.random_state import own_draws
from morphogen.record import Claim, Curve, Reproduction

PAPER = Paper(
    "darn-uci",
    "Deep AutoRegressive Networks on binary sets",
    "Gregor, Danihelka, Mnih, Blundell, Wierstra, ICML 2014 (arXiv 1310.8499), table 1",
    {"held out rows": ("epoch", "nats a row")},
)
FAITHFUL = DarnShape((16,), 100)
MADE = DarnShape((), 0, "made", visible_hidden=(500,), dropout=0.2)
NADE = DarnShape((), 0, "nade", visible_hidden=(100,))
ORDERS = 4
BESIDE = {
    "made": "MADE, 500 units, dropout .2",
    "nade": "NADE, 100 units",
    "orders": "our network in four orders, averaged",
    "bernoullis": "mixture of Bernoullis",
}
COMPONENTS = (32, 128, 512)  # of the mixture of Bernoullis, of which the valid part chooses


@dataclass(frozen=True)
class Published:
    """Nats a row of one set. most: what is accepted of our DARN."""

    darn: float
    most: float
    made: float
    nade: float
    orders: float
    bernoullis: float


# MADE: with one mask (Germain et al. 2015, table 2). NADE, and EoNADE with 16 orders: Uria et al.
PUBLISHED: Mapping[str, Published] = {
    "adult-binary": Published(13.19, 13.25, 13.12, 13.19, 13.19, 20.44),
    "connect4": Published(11.91, 12.0, 11.90, 11.99, 12.58, 23.41),
    "dna-nade": Published(81.04, 82.3, 83.63, 84.81, 82.31, 98.19),
    "mushrooms": Published(9.55, 9.6, 9.68, 9.81, 9.68, 14.46),
    "nips": Published(274.68, 275.5, 280.25, 273.08, 272.38, 290.02),
    "ocr-letters": Published(28.17, 28.5, 28.34, 27.22, 27.31, 40.56),
}


@dataclass(frozen=True)
class Config:
    """sets: names. seconds: of each training at most. samples: of h for each test row. tested: rows
    at most.
    """

    sets: tuple[str, ...] = tuple(PUBLISHED)
    seconds: float | None = 60.0
    samples: int = 500
    tested: int = 10_000
    rate: float = 5e-4
    patience: int = 15
    falls: int = 2


FAITHFULLY = Config(seconds=None, rate=2.5e-4, patience=30, falls=0)
SMOKE = Config(("digits",), seconds=0.5, samples=20, tested=100, rate=3e-3, patience=2, falls=0)


@dataclass(frozen=True)
class Run:
    """One set and seed. beside: nats a test row of each other model."""

    ours: Likelihood
    beside: Mapping[str, float]
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
        curves.append(held_out("held out rows", name, runs[0].epochs))
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
    beside = {}
    for other, shape in (("made", MADE), ("nade", NADE)):
        one = first(groups, shape, train, seed)
        learn(one, train, valid, how)
        beside[other] = -log_likelihood(one, test).mean
    several = learn_orders(model, train, valid, how, ORDERS)
    mixed = [bernoullis(train, valid, count, seed) for count in COMPONENTS if count <= len(train)]
    best = max(mixed, key=lambda one: float(one.log_prob(valid).mean()))
    beside["bernoullis"] = -float(best.log_prob(test).mean())
    with own_draws(seed, model):
        beside["orders"] = -log_likelihood_of(several, test, config.samples).mean
        ours = log_likelihood(model, test, config.samples)
    return Run(ours, beside, sum(model.units), epochs)


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
    known = PUBLISHED.get(name)
    source = "table 1" if known else ""
    ours = [-run.ours.mean for run in runs]
    darn, most = (known.darn, known.most) if known else (None, None)
    return [
        over_seeds(f"{name}: nats a test row", ours, darn, None, most, source),
        over_seeds(f"{name}: standard error over rows", [run.ours.data_error for run in runs]),
        over_seeds(f"{name}: stochastic units", [float(run.units) for run in runs]),
        *(
            over_seeds(
                f"{name}: {title}",
                [run.beside[key] for run in runs],
                getattr(known, key, None),
                source=source,
            )
            for key, title in BESIDE.items()
        ),
    ]
