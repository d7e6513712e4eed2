"""DARN on frames that look like a game's: local layers with a period, and visibles that see a
window of those before them.

The published frames are not at hand. Ours are drawn: lanes of cars whose places are random, and a
player; edges alone are 1. So the least that a frame can cost is known, and every model is beside
it. Faithful: frames of 159 x 209, the paper's layers. Default: frames of 40 x 52, layers of a
quarter of the filters.

Source: Gregor et al. 2014 (arXiv 1310.8499), sections 3.3 and 5.3. Differs: the frames; p(x | h) is
linear in the bits, beside the window (the paper does not say what stands between).
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from morphogen.density.darn import DarnShape
from morphogen.density.groups import Groups
from morphogen.density.learn import Epoch, Training, learn
from morphogen.density.likelihood import bound
from morphogen.density.local import Local, Window
from morphogen.density.search import first
from morphogen.experiments.darn.held_out import held_out
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.experiments.shared.page import Paper, page
from morphogen.random_state import own_draws
from morphogen.record import Claim, Curve, Reproduction

PAPER = Paper(
    "darn-atari-like",
    "Deep AutoRegressive Networks on frames of a game",
    "Gregor, Danihelka, Mnih, Blundell, Wierstra, ICML 2014 (arXiv 1310.8499), section 5.3",
    {"held out frames": ("epoch", "bound, nats a frame")},
)


@dataclass(frozen=True)
class Config:
    """height, width: of a frame. rows: to learn from. lanes: of cars, `car` pixels long. units:
    stochastic bits. local: layers of the encoder. kernel, period: of the window.
    """

    height: int = 40
    width: int = 52
    rows: int = 4000
    lanes: int = 5
    car: int = 6
    units: int = 60
    hidden: int = 200
    local: tuple[Local, ...] = (Local(8, 8, 4, 4), Local(8, 4, 2, 2))
    kernel: int = 15
    period: int = 14
    rate: float = 1e-3
    patience: int = 20
    seconds: float | None = 300.0


FAITHFULLY = Config(
    159,
    209,
    100_000,
    10,
    12,
    300,
    300,
    (Local(32, 8, 4, 8), Local(32, 4, 2, 8)),
    rate=2.5e-4,
    seconds=None,
)
SMOKE = Config(12, 14, 80, 2, 3, 4, 5, (Local(2, 4, 2, 2),), 5, 3, 2e-3, 2, 1.0)


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Local layers and window, window alone with periods, and bits alone."""
    began = time.perf_counter()
    config = SMOKE if smoke else FAITHFULLY if faithful else Config()
    least = entropy(config)
    shapes = shapes_of(config)
    claims: list[Claim] = [over_seeds("least that a frame can cost", [least])]
    curves: list[Curve] = []
    for name, shape in shapes.items():
        runs = [run(shape, config, seed) for seed in range(seeds)]
        claims.append(over_seeds(f"{name}: bound, nats a frame", [loss for loss, _ in runs]))
        curves.append(held_out("held out frames", name, runs[0][1]))
    notes = (
        "frames are drawn by us: the published 19.9 nats of Freeway are of others",
        "a frame's cars and player are independent and uniform, so its least cost is exact",
    )
    return page(PAPER, config, began, claims, curves, notes, faithful)


def shapes_of(config: Config) -> dict[str, DarnShape]:
    """What is compared."""
    window = Window(config.height, config.width, config.kernel, config.period)
    shared = Window(config.height, config.width, config.kernel, 1)
    units = (config.units,)
    return {
        "local encoder, window": DarnShape(
            units, config.hidden, "local", decoder_hidden=0, local=config.local, window=window
        ),
        "dense encoder, window": DarnShape(
            units, config.hidden, "local", decoder_hidden=0, window=window
        ),
        "dense encoder, no window": DarnShape(
            units, config.hidden, "independent", decoder_hidden=0
        ),
        f"no bits, window of period {config.period}": DarnShape((), 0, "local", window=window),
        "no bits, window of period 1": DarnShape((), 0, "local", window=shared),
    }


def run(shape: DarnShape, config: Config, seed: int) -> tuple[float, tuple[Epoch, ...]]:
    """The bound of test frames, and the training."""
    train, valid, test = (
        frames(config, count, 3 * seed + part)
        for part, count in enumerate((config.rows, config.rows // 8, config.rows // 4))
    )
    how = Training(
        rate=config.rate, patience=config.patience, falls=1, seconds=config.seconds, seed=seed
    )
    model = first(Groups.of_bits(train.shape[1]), shape, train, seed)
    epochs = tuple(learn(model, train, valid, how))
    with own_draws(seed, model):
        return bound(model, test, 2), epochs


def frames(config: Config, count: int, seed: int) -> Tensor:
    """(count, height * width): edges of cars, one a lane, and of a player between two lanes."""
    draw = np.random.default_rng(seed)
    out = np.zeros((count, config.height, config.width), np.float32)
    each = np.arange(count)
    for lane, (top, bottom) in enumerate(_lanes(config)):
        # lines between the lanes: the same in every frame
        out[:, top, :: 2 + lane % 2] = 1
        left = draw.integers(0, config.width, count)
        for column in range(config.car):
            place = (left + column) % config.width
            out[each, top + 1, place] = out[each, bottom, place] = 1
        for edge in (0, config.car - 1):
            for row in range(top + 1, bottom + 1):
                out[each, row, (left + edge) % config.width] = 1
    player = draw.integers(0, config.lanes, count)
    tops = np.array([top for top, _ in _lanes(config)])
    column = config.width // 2
    for side in (-1, 0, 1):
        out[each, tops[player], column + side] = 1
    return torch.as_tensor(out.reshape(count, -1))


def entropy(config: Config) -> float:
    """Of a frame in nats: a place for each car and one for the player, all seen in the frame."""
    return config.lanes * math.log(config.width) + math.log(config.lanes)


def _lanes(config: Config) -> list[tuple[int, int]]:
    """(its line, the last row of its cars) of each."""
    size = config.height // config.lanes
    return [(lane * size, lane * size + size - 2) for lane in range(config.lanes)]
