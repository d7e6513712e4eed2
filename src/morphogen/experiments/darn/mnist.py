"""DARN on binarised digits: one stochastic layer of 500 bits, with and without weight noise, 16
bits, sparse bits (fDARN), twelve layers of 80, and a MADE and a mixture of Bernoullis beside.

Faithful: the paper's sizes and rate 3e-5, early stopping, no limit of time. Default: the same
sizes, a rate that falls by the clock, an hour for the first and five minutes for each other.

Source: Gregor et al. 2014 (arXiv 1310.8499), table 2 and sections 5.2, 3.4. Differs: each pixel is
1 with its grey value as probability, drawn once with seed 0, as the published binarisation is not
at hand: figures compare to about a nat. Likelihoods are of at most 1000 test rows with 500 samples
each, bounds of all.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from morphogen.data.load import load_data
from morphogen.density.autoregressive import HeadName
from morphogen.density.darn import Darn, DarnShape
from morphogen.density.groups import Groups
from morphogen.density.learn import Epoch, Training, learn
from morphogen.density.likelihood import bound, log_likelihood
from morphogen.density.search import first
from morphogen.density.sparse import multiplications_of_nade, sample_sparse
from morphogen.experiments.darn.bernoullis import bernoullis
from morphogen.experiments.darn.held_out import held_out
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.experiments.shared.page import Paper, page
from morphogen.random_state import own_draws
from morphogen.record import Claim, Curve, Reproduction

PAPER = Paper(
    "darn-mnist",
    "Deep AutoRegressive Networks on binarised digits",
    "Gregor, Danihelka, Mnih, Blundell, Wierstra, ICML 2014 (arXiv 1310.8499), table 2",
    {"held out rows": ("epoch", "bound, nats a row")},
)


@dataclass(frozen=True)
class Net:
    """published: (nats a row, bound), where the paper has them. most: a bound that is asked for.
    times: of the seconds.
    """

    name: str
    shape: DarnShape
    published: tuple[float | None, float | None] = (None, None)
    most: float | None = None
    weight_noise: bool = False
    active: float | None = None
    times: int = 1


ALONE: HeadName = "independent"  # visibles that see the bits alone
NETS = (
    Net("500 bits", DarnShape((500,), 500, ALONE), (84.71, 90.31), 92.0, times=12),
    Net("500 bits, weight noise", DarnShape((500,), 500, ALONE), (84.13, 88.30), None, True),
    Net("16 bits, weight noise", DarnShape((16,), 100, ALONE), (122.80, 130.94), None, True),
    Net(
        "400 sparse bits",
        DarnShape((400,), 500, ALONE, decoder_hidden=0),
        (None, 96.1),
        active=0.05,
    ),
    Net("12 layers of 80 bits", DarnShape((80,) * 12, 400, ALONE, skips=True), (None, 87.72)),
    Net("MADE, 500 units", DarnShape((), 0, "made", visible_hidden=(500,)), (88.40, None)),
)
# shares of the time, and of the first rate
# at 3e-4 the bound of 500 bits stays 6 nats above what it falls to at once at 1e-4
STAGES = ((0.5, 1.0), (0.25, 0.3), (0.15, 0.1), (0.1, 0.03))


@dataclass(frozen=True)
class Config:
    """data: a name. nets: names, none for all. seconds: of each, times what the net says; None for
    early stopping alone. scale: divides the sizes of every net. components: of the mixture of
    Bernoullis.
    """

    data: str = "mnist"
    nets: tuple[str, ...] = ()
    seconds: float | None = 300.0
    rate: float = 1e-4
    patience: int = 30
    scale: int = 1
    components: int = 500
    tested: int = 1000
    samples: int = 500


FAITHFULLY = Config(seconds=None, rate=3e-5)
SMOKE = Config("digits", (), 0.3, 3e-3, 3, 25, 10, 50, 20)


@dataclass(frozen=True)
class Run:
    """One net and seed, in nats a test row."""

    loss: float
    error: float
    bound: float
    epochs: tuple[Epoch, ...]
    additions: float | None = None
    active: float | None = None


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Every net with so many seeds."""
    config = SMOKE if smoke else FAITHFULLY if faithful else Config()
    return reproduced(config, faithful, seeds)


def reproduced(config: Config, faithful: bool, seeds: int) -> Reproduction:
    """With other settings than those of the command."""
    began = time.perf_counter()
    parts = rows_of(config.data)
    claims: list[Claim] = []
    curves: list[Curve] = []
    for net in NETS:
        if config.nets and net.name not in config.nets:
            continue
        runs = [run(net, parts, config, seed) for seed in range(seeds)]
        claims += _claims(known(net, config.data), runs, parts[0].shape[1])
        curves.append(held_out("held out rows", net.name, runs[0].epochs))
    mixed = [
        -float(bernoullis(*parts[:2], config.components, seed).log_prob(parts[2]).mean())
        for seed in range(seeds)
    ]
    claims.append(
        over_seeds(
            f"mixture of {config.components} Bernoullis: nats a test row",
            mixed,
            137.64 if config.data == "mnist" else None,
        )
    )
    notes = ("pixels were drawn once, with seed 0; the published binarisation is another",)
    return page(PAPER, config, began, claims, curves, notes, faithful)


def rows_of(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Train, valid and test rows of pixels; "digits" are scikit-learn's."""
    if name == "digits":
        grey = load_digits().data / 16
        parts = [grey[:1200], grey[1200:1400], grey[1400:]]
    else:
        dataset = load_data(name)
        train = np.asarray(dataset.x_train).reshape(len(dataset.x_train), -1)
        held = len(train) // 6
        parts = [train[:-held], train[-held:], np.asarray(dataset.x_test)]
    draw = np.random.default_rng(0)
    rows = [part.reshape(len(part), -1) for part in parts]
    one, two, three = (
        torch.as_tensor((draw.random(part.shape) < part).astype(np.float32)) for part in rows
    )
    return one, two, three


def run(net: Net, parts: Sequence[Tensor], config: Config, seed: int) -> Run:
    """Train and measure."""
    train, valid, test = parts
    how = Training(
        rate=config.rate,
        patience=config.patience,
        falls=0,
        seed=seed,
        repeats=1,
        weight_noise=net.weight_noise,
        active=net.active,
    )
    model = first(Groups.of_bits(train.shape[1]), scaled(net.shape, config.scale), train, seed)
    seconds = None if config.seconds is None else net.times * config.seconds
    epochs = _trained(model, train, valid, how, seconds)
    with own_draws(seed, model):
        likelihood = log_likelihood(model, test[: config.tested], config.samples)
        whole = bound(model, test)
        drawn = sample_sparse(model, 100) if net.active is not None else None
    return Run(
        -likelihood.mean,
        likelihood.data_error,
        whole,
        epochs,
        drawn.additions if drawn else None,
        drawn.active if drawn else None,
    )


def _trained(
    model: Darn, train: Tensor, valid: Tensor, how: Training, seconds: float | None
) -> tuple[Epoch, ...]:
    if seconds is None:
        return tuple(learn(model, train, valid, how))
    epochs: list[Epoch] = []
    for share, factor in STAGES:
        stage = replace(how, rate=how.rate * factor, seconds=share * seconds)
        before = len(epochs)
        epochs += [replace(e, epoch=before + e.epoch) for e in learn(model, train, valid, stage)]
    return tuple(epochs)


def known(net: Net, data: str) -> Net:
    """Without the published figures where the data are others."""
    return net if data == "mnist" else replace(net, published=(None, None), most=None)


def scaled(shape: DarnShape, scale: int) -> DarnShape:
    """With sizes divided, at least 1 of each, and no more than three layers where it is divided."""
    if scale == 1:
        return shape

    def small(size: int) -> int:
        return max(1, size // scale)

    return replace(
        shape,
        units=tuple(map(small, shape.units[:3])),
        hidden=small(shape.hidden) if shape.hidden else 0,
        visible_hidden=tuple(map(small, shape.visible_hidden)),
    )


def _claims(net: Net, runs: list[Run], bits: int) -> list[Claim]:
    loss, most = net.published
    source = "table 2"
    claims = [
        over_seeds(
            f"{net.name}: nats a test row", [run.loss for run in runs], loss, None, None, source
        ),
        over_seeds(f"{net.name}: standard error over rows", [run.error for run in runs]),
    ]
    if net.shape.units:
        claims.append(
            over_seeds(
                f"{net.name}: bound", [run.bound for run in runs], most, None, net.most, source
            )
        )
    if net.active is not None:
        additions = [run.additions for run in runs if run.additions is not None]
        active = [run.active / sum(net.shape.units) for run in runs if run.active is not None]
        nade = multiplications_of_nade(bits, 500)
        claims += [
            over_seeds(f"{net.name}: share that is 1", active, net.active),
            over_seeds(f"{net.name}: additions a sample", additions, 2.4e4, None, None, "3.4"),
            over_seeds(
                f"{net.name}: of the multiplications of a NADE of 500 units",
                [each / nade for each in additions],
            ),
        ]
    return claims
