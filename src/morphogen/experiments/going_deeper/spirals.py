"""Two spiral arms of 1/2, 1, 2 and 3 turns: the more they wind, the deeper a learned depth gets.

Beside it, on the same data: the best of a grid of fixed depths, and a distribution over depth that
ends in one.

Source of the task and of the neighbour's figures (posterior mean depths 2.8, 6.0, 8.1 at 1/2, 1 and
2 turns, 1,500 points, width 16): unbounded-depth networks, Nazaret & Blei 2022, as measured for the
specification.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from morphogen.edit.adapt import adapt
from morphogen.experiments.going_deeper.gates import gate_curves
from morphogen.layers.depth import LearnedDepth
from morphogen.layers.penalty import penalty, quadratic
from morphogen.layers.posterior import DepthPosterior
from morphogen.record import Claim, Curve, Reproduction
from morphogen.transforms.freeze import freeze

NEIGHBOUR = {0.5: 2.8, 1.0: 6.0, 2.0: 8.1}


@dataclass(frozen=True)
class Config:
    """Full batches. The learning rate falls to zero over the last third; the depth is fixed well
    before, see `search`.
    """

    turns: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    seeds: int = 1
    points: int = 1_500
    noise: float = 0.02
    width: int = 16
    steps: int = 8_000
    # the part of the steps in which the depth is learned; then those that are open by a tenth stay
    search: float = 0.5
    every: int = 50
    rate: float = 1e-2
    # of Adam's second moment, for all networks: at 0.999 it forgets too slowly for a loss that has
    # become tiny, and a spike of the gradient throws the network back (w fell from 2.6 to 0.7 at
    # once); 0.95 has no spikes on seeds 10 and 11
    beta: float = 0.95
    # of the depth's learning rate: at 1 depths differ by 1.3 between seeds, at 5 accuracy is lower
    scale: float = 2.0
    # of w^2: the largest of 3e-4, 1e-3, 3e-3 whose mean validation accuracy, over seeds 10 and 11,
    # is at least 0.997 everywhere
    penalty: float = 3e-3
    depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)  # of the grid
    posterior: bool = True


SMOKE = Config(turns=(0.5, 1.0), points=300, steps=150, depths=(1, 2))


def spirals(
    turns: float, points: int, noise: float, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points (n, 2) on two arms, radius 0.1 to 1, with normal noise; and the arm of each."""
    arm = torch.arange(points) % 2
    radius = 0.1 + 0.9 * torch.rand(points, generator=draw)
    angle = 2 * math.pi * turns * radius + math.pi * arm
    place = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return place + noise * torch.randn(points, 2, generator=draw), arm


@dataclass(frozen=True)
class Data:
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def data(turns: float, config: Config, seed: int) -> Data:
    """Three parts, drawn apart."""
    draw = torch.Generator().manual_seed(seed)
    return Data(*(spirals(turns, config.points, config.noise, draw) for _ in range(3)))


def block(width: int, _: int = 0) -> nn.Module:
    """What every network here repeats."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))


class Fixed(nn.Module):
    """The plain twin: a residual stack of a given depth."""

    def __init__(self, block: Callable[[int], nn.Module], depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(i) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks:
            x = F.relu(x + part(x))
        return x


def network(width: int, middle: nn.Module) -> nn.Sequential:
    """Frozen random layers around `middle`, as in Going Deeper: trained ones would do the work of
    one more block.
    """
    stem = nn.Linear(2, width).requires_grad_(False)
    out = nn.Linear(width, 2).requires_grad_(False)
    return nn.Sequential(stem, nn.ReLU(), middle, out)


def rate(step: int, config: Config) -> float:
    """Constant for two thirds, then falling to zero."""
    left = (config.steps - step) / (config.steps / 3)
    return config.rate * min(1.0, left)


def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        score = float((model(part[0]).argmax(1) == part[1]).double().mean())
    model.train()
    return score


@dataclass(frozen=True)
class Fit:
    """One trained network: its depth, test and validation accuracy, seconds, and its depth over
    time.
    """

    depth: float
    validation: float
    test: float
    seconds: float
    steps: tuple[int, ...] = ()
    path: tuple[float, ...] = ()
    note: str = ""


def descend(
    model: nn.Module, optimizer: Optimizer, config: Config, loss: Tensor, step: int
) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate(step, config) * group.get("scale", 1.0)
    optimizer.step()


def learned(found: Data, config: Config, seed: int) -> Fit:
    """Learn the depth, fix it, freeze the network into plain layers, and score that."""
    torch.manual_seed(seed)
    layer = LearnedDepth(
        partial(block, config.width),
        penalty=partial(quadratic, factor=config.penalty),
        floor=0.1,
        lookahead=True,
    )
    model = network(config.width, layer)
    weights = [p for p in model.parameters() if p.requires_grad and p is not layer.w]
    groups: list[dict[str, Any]] = [
        {"params": weights},
        {"params": [layer.w], "scale": config.scale},
    ]
    optimizer = Adam(groups, lr=config.rate, betas=(0.9, config.beta), fused=True)
    steps = []
    path = []
    began = time.perf_counter()
    for step in range(config.steps):
        if step == int(config.search * config.steps):
            layer.fix_depth()
        loss = F.cross_entropy(model(found.train[0]), found.train[1])
        descend(
            model, optimizer, config, loss + penalty(model) if layer.w.requires_grad else loss, step
        )
        if step % config.every == 0 and layer.w.requires_grad:
            adapt(model, optimizers=[optimizer])
        if step % config.every == 0:
            steps.append(step)
            path.append(layer.depth)
    seconds = time.perf_counter() - began
    model.eval()
    plain, certificate = freeze(model, found.validation[0])
    note = (
        f"{layer.active_blocks} blocks open, w = {layer.depth:.2f}; frozen within "
        f"{certificate.max_error:.1e}"
    )
    return Fit(
        layer.depth,
        accuracy(plain, found.validation),
        accuracy(plain, found.test),
        seconds,
        tuple(steps),
        tuple(path),
        note,
    )


def fixed(found: Data, config: Config, seed: int, depth: int) -> Fit:
    """Train a plain stack of `depth` blocks."""
    torch.manual_seed(seed)
    model = network(config.width, Fixed(partial(block, config.width), depth))
    optimizer = Adam(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.rate,
        betas=(0.9, config.beta),
        fused=True,
    )
    began = time.perf_counter()
    for step in range(config.steps):
        descend(
            model, optimizer, config, F.cross_entropy(model(found.train[0]), found.train[1]), step
        )
    seconds = time.perf_counter() - began
    return Fit(depth, accuracy(model, found.validation), accuracy(model, found.test), seconds)


def picked(fits: Sequence[Fit]) -> Fit:
    """The grid's choice: the least depth whose validation accuracy is within 0.002 of the best."""
    best = max(fit.validation for fit in fits)
    return next(fit for fit in fits if fit.validation >= best - 0.002)


def posterior(found: Data, config: Config, seed: int) -> Fit:
    """Train a distribution over depth, collapse it on the validation part, and score the one
    depth.
    """

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = block(config.width)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.inner(x))

    torch.manual_seed(seed)
    layer = DepthPosterior(lambda i: Residual(), lambda: nn.Linear(config.width, 2), max_blocks=20)
    stem = nn.Sequential(nn.Linear(2, config.width).requires_grad_(False), nn.ReLU())
    model = nn.Sequential(stem, layer)
    optimizer = Adam(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.rate,
        betas=(0.9, config.beta),
        fused=True,
    )
    each = partial(F.cross_entropy, reduction="none")
    steps = []
    path = []
    began = time.perf_counter()
    for step in range(config.steps):
        if step % config.every == 0:
            if step < config.search * config.steps:
                adapt(model, optimizers=[optimizer])
            steps.append(step)
            path.append(layer.depth)
        loss = layer.losses(stem(found.train[0]), found.train[1], each, config.points)
        descend(model, optimizer, config, loss, step)
    seconds = time.perf_counter() - began
    model.eval()
    chosen = layer.collapse(stem(found.validation[0]), found.validation[1], each, within=1e-3)
    plain = nn.Sequential(stem, layer.fixed(chosen.depth))
    scores = accuracy(plain, found.validation), accuracy(plain, found.test)
    return Fit(layer.depth, *scores, seconds, tuple(steps), tuple(path), str(chosen))


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Every number of turns; the task has no original of its own, so both modes are the same."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    began = time.perf_counter()
    claims = []
    curves = []
    notes = []
    depths = []
    for turns in config.turns:
        fits = []
        grids = []
        variational = []
        for seed in range(seeds):
            found = data(turns, config, seed)
            fits.append(learned(found, config, seed))
            grids.append(picked([fixed(found, config, seed, depth) for depth in config.depths]))
            variational += [posterior(found, config, seed)] if config.posterior else []
        name = f"{turns:g} turns"
        depths.append(mean(fit.depth for fit in fits))
        spread = stdev([fit.depth for fit in fits]) if seeds > 1 else None
        ratio = mean(fit.seconds / grid.seconds for fit, grid in zip(fits, grids, strict=True))
        neighbour = NEIGHBOUR.get(turns)
        claims += [
            Claim(
                f"{name}: learned depth w",
                neighbour,
                depths[-1],
                spread=spread,
                source="neighbour's posterior mean",
            ),
            Claim(
                f"{name}: test accuracy",
                0.997,
                mean(fit.test for fit in fits),
                low=0.997,
                source="neighbour",
            ),
            Claim(
                f"{name}: time / that of the fixed depth that the grid picks",
                2.0,
                ratio,
                high=2.0,
                source="promised",
            ),
        ]
        curves.append(Curve("depth", name, fits[0].steps, fits[0].path))
        curves += [Curve("posterior", name, fit.steps, fit.path) for fit in variational[:1]]
        notes.append(
            f"{name}: {fits[0].note}; the grid's depth {grids[0].depth:g} has test accuracy "
            f"{grids[0].test:.4f}"
        )
        notes += [
            f"{name}, distribution over depth: mean {fit.depth:.2f}, test accuracy {fit.test:.4f} "
            f"in {fit.seconds:.0f} s; collapsed to {fit.note}"
            for fit in variational[:1]
        ]
    curves += gate_curves(fits[0].steps, fits[0].path)
    rising = min(after - before for before, after in pairwise(depths))
    claims.append(
        Claim(
            "least rise of depth from one task to the next",
            None,
            rising,
            low=0.05,
            source="neighbour: it rises",
        )
    )
    axes = {
        "depth": ("step", "w"),
        "posterior": ("step", "posterior mean depth"),
        "gates": ("step", f"gate, {config.turns[-1]:g} turns"),
    }
    return Reproduction(
        "depth-spirals",
        "Learned depth on two spirals",
        "Nazaret & Blei 2022 (task and neighbour)",
        "default",
        {key: str(value) for key, value in vars(config).items()},
        tuple(claims),
        tuple(curves),
        axes,
        tuple(notes),
        time.perf_counter() - began,
    )
