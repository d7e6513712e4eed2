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
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.depth import LearnedDepth
from morphogen.layers.penalty import penalty, quadratic
from morphogen.layers.posterior import DepthPosterior
from morphogen.record import Claim, Curve, Reproduction
from morphogen.transforms.freeze import freeze

NEIGHBOUR = {0.5: 2.8, 1.0: 6.0, 2.0: 8.1}


PAPER = Paper(
    "depth-spirals",
    "Learned depth on two spirals",
    "Nazaret & Blei 2022 (task and neighbour)",
    {"depth": ("step", "w"), "posterior": ("step", "posterior mean depth")},
)


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
    """A step. Not of `training.train`: depths are adapted and seen within a period, after its first
    step, not at its end.
    """
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate(step, config) * group.get("scale", 1.0)
    optimizer.step()


def adam(config: Config, *groups: dict[str, Any]) -> Adam:
    """Of what is trained, alike for all networks."""
    return Adam(list(groups), lr=config.rate, betas=(0.9, config.beta), fused=True)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def learned(parts: Data, config: Config, seed: int) -> Fit:
    """Learn the depth, fix it, freeze the network into plain layers, and score that."""
    torch.manual_seed(seed)
    layer = LearnedDepth(
        partial(block, config.width),
        penalty=partial(quadratic, factor=config.penalty),
        floor=0.1,
        lookahead=True,
    )
    model = network(config.width, layer)
    weights = [p for p in trained(model) if p is not layer.w]
    optimizer = adam(config, {"params": weights}, {"params": [layer.w], "scale": config.scale})
    steps = []
    path = []
    began = time.perf_counter()
    for step in range(config.steps):
        if step == int(config.search * config.steps):
            layer.fix_depth()
        loss = F.cross_entropy(model(parts.train[0]), parts.train[1])
        searching = layer.w.requires_grad
        descend(model, optimizer, config, loss + penalty(model) if searching else loss, step)
        if step % config.every:
            continue
        if searching:
            adapt(model, optimizers=[optimizer])
        steps.append(step)
        path.append(layer.depth)
    seconds = time.perf_counter() - began
    model.eval()
    plain, certificate = freeze(model, parts.validation[0])
    note = (
        f"{layer.active_blocks} blocks open, w = {layer.depth:.2f}; frozen within "
        f"{certificate.max_error:.1e}"
    )
    scores = accuracy(plain, parts.validation), accuracy(plain, parts.test)
    return Fit(layer.depth, *scores, seconds, tuple(steps), tuple(path), note)


def fixed(parts: Data, config: Config, seed: int, depth: int) -> Fit:
    """Train a plain stack of `depth` blocks."""
    torch.manual_seed(seed)
    model = network(config.width, Fixed(partial(block, config.width), depth))
    optimizer = adam(config, {"params": trained(model)})
    began = time.perf_counter()
    for step in range(config.steps):
        loss = F.cross_entropy(model(parts.train[0]), parts.train[1])
        descend(model, optimizer, config, loss, step)
    seconds = time.perf_counter() - began
    return Fit(depth, accuracy(model, parts.validation), accuracy(model, parts.test), seconds)


def picked(fits: Sequence[Fit]) -> Fit:
    """The grid's choice: the least depth whose validation accuracy is within 0.002 of the best."""
    best = max(fit.validation for fit in fits)
    return next(fit for fit in fits if fit.validation >= best - 0.002)


class Residual(nn.Module):
    """One block, with what it reads added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = block(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


def posterior(parts: Data, config: Config, seed: int) -> Fit:
    """Train a distribution over depth, collapse it on the validation part, and score the one
    depth.
    """
    torch.manual_seed(seed)
    width = config.width
    layer = DepthPosterior(lambda i: Residual(width), lambda: nn.Linear(width, 2), max_blocks=20)
    stem = nn.Sequential(nn.Linear(2, config.width).requires_grad_(False), nn.ReLU())
    model = nn.Sequential(stem, layer)
    optimizer = adam(config, {"params": trained(model)})
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
        loss = layer.losses(stem(parts.train[0]), parts.train[1], each, config.points)
        descend(model, optimizer, config, loss, step)
    seconds = time.perf_counter() - began
    model.eval()
    chosen = layer.collapse(stem(parts.validation[0]), parts.validation[1], each, within=1e-3)
    plain = nn.Sequential(stem, layer.fixed(chosen.depth))
    scores = accuracy(plain, parts.validation), accuracy(plain, parts.test)
    return Fit(layer.depth, *scores, seconds, tuple(steps), tuple(path), str(chosen))


@dataclass(frozen=True)
class Task:
    """One number of turns, a fit a seed: with a learned depth, the grid's choice, and with a
    distribution over depth.
    """

    turns: float
    learned: tuple[Fit, ...]
    grid: tuple[Fit, ...]
    posterior: tuple[Fit, ...]

    @property
    def name(self) -> str:
        return f"{self.turns:g} turns"

    @property
    def depth(self) -> float:
        return mean(fit.depth for fit in self.learned)


def solved(turns: float, config: Config) -> Task:
    """All networks on one task."""
    fits = []
    grids = []
    variational = []
    for seed in range(config.seeds):
        parts = data(turns, config, seed)
        fits.append(learned(parts, config, seed))
        grids.append(picked([fixed(parts, config, seed, depth) for depth in config.depths]))
        if config.posterior:
            variational.append(posterior(parts, config, seed))
    return Task(turns, tuple(fits), tuple(grids), tuple(variational))


def claims(task: Task) -> list[Claim]:
    """Depth, accuracy and time beside the neighbour's and the promised ones."""
    depths = [fit.depth for fit in task.learned]
    pairs = zip(task.learned, task.grid, strict=True)
    return [
        Claim(
            f"{task.name}: learned depth w",
            NEIGHBOUR.get(task.turns),
            task.depth,
            spread=stdev(depths) if len(depths) > 1 else None,
            source="neighbour's posterior mean",
        ),
        Claim(
            f"{task.name}: test accuracy",
            0.997,
            mean(fit.test for fit in task.learned),
            low=0.997,
            source="neighbour",
        ),
        Claim(
            f"{task.name}: time / that of the fixed depth that the grid picks",
            2.0,
            mean(fit.seconds / grid.seconds for fit, grid in pairs),
            high=2.0,
            source="promised",
        ),
    ]


def rising(tasks: Sequence[Task]) -> Claim:
    """The more the arms wind, the deeper."""
    least = min(after.depth - before.depth for before, after in pairwise(tasks))
    name = "least rise of depth from one task to the next"
    return Claim(name, None, least, low=0.05, source="neighbour: it rises")


def drawn(task: Task) -> list[Curve]:
    """The depths of the first seed over time."""
    first = task.learned[0]
    curves = [Curve("depth", task.name, first.steps, first.path)]
    for fit in task.posterior[:1]:
        curves.append(Curve("posterior", task.name, fit.steps, fit.path))
    return curves


def notes_on(task: Task) -> list[str]:
    """What a reader must know of the first seed."""
    grid = task.grid[0]
    notes = [
        f"{task.name}: {task.learned[0].note}; the grid's depth {grid.depth:g} has test accuracy "
        f"{grid.test:.4f}"
    ]
    for fit in task.posterior[:1]:
        notes.append(
            f"{task.name}, distribution over depth: mean {fit.depth:.2f}, test accuracy "
            f"{fit.test:.4f} in {fit.seconds:.0f} s; collapsed to {fit.note}"
        )
    return notes


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Every number of turns; the task has no original of its own, so both modes are the same."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    began = time.perf_counter()
    tasks = [solved(turns, config) for turns in config.turns]
    judged: list[Claim] = []
    curves: list[Curve] = []
    notes: list[str] = []
    for task in tasks:
        judged += claims(task)
        curves += drawn(task)
        notes += notes_on(task)
    deepest = tasks[-1].learned[0]
    curves += gate_curves(deepest.steps, deepest.path)
    axes = {**PAPER.axes, "gates": ("step", f"gate, {tasks[-1].name}")}
    paper = replace(PAPER, axes=axes)
    return page(paper, config, began, [*judged, rising(tasks)], curves, notes)
