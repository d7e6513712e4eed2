"""How few sources may a neuron have? Random wirings of N sources a node, with their distances
beside accuracy and time.

Distances are of a wiring without inputs, from a reader of N sources; accuracy is of a network over
the data. Beside the drawn wirings one that is rewired after each epoch: the smallest weights go to
where the gradient is largest.

Source: DagNN, post of 2017: "a random N of the prior connections", two to three hops. Distances:
half of the nodes within two hops for N = sqrt(n), 2.5 hops in the mean (specification, derived and
simulated). Rewiring: RigL, Evci et al. 2020 (arXiv 1911.11134). The settings are ours; both modes
are the same.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F

from morphogen.edit.dag import full_gradient, rewire
from morphogen.experiments.dagnn.nets import Data, Fit, data, fitted
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.dag.module import Dag
from morphogen.layers.dag.stats import Stats
from morphogen.models import dagnet
from morphogen.record import Curve, Grid, Reproduction
from morphogen.training.train import State, generator

# Mean hops at 1,024 nodes of the specification's simulation.
KNOWN = {16: 2.98, 32: 2.45}


PAPER = Paper(
    "dagnn-hops",
    "Few sources a neuron",
    "DagNN, post of 2017",
    {
        "accuracy": ("sources a node", "test accuracy"),
        "hops": ("sources a node", "mean hops to the reader"),
        "histogram": ("hops", "share of nodes"),
    },
)


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    seeds: int = 3
    nodes: int = 1024
    fans: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    rate: float = 1e-3
    epochs: int = 5
    batch: int = 128
    rewired: int = 32  # sources a node of the network that is rewired
    share: float = 0.3  # of its weights, after each epoch but the last
    rows: int | None = None


SMOKE = {"data": "digits", "nodes": 64, "fans": (4, 8), "epochs": 2, "rewired": 8}


def distances(nodes: int, fan_in: int, seed: int) -> Stats:
    """Of a random wiring over one input, which is nearly none."""
    return Dag(1, nodes, wiring="random", fan_in=fan_in, generator=generator(seed, 7)).stats()


def moved(state: State, parts: Data, config: Config, seed: int) -> None:
    """Rewire after an epoch by the gradient on a thousand rows."""
    dag = state.model.dag
    assert isinstance(dag, Dag)
    rows = torch.randperm(len(parts.train[0]), generator=generator(seed, 8, state.round))[:1000]
    x = parts.train[0][rows]
    y = parts.train[1][rows]
    gradient = full_gradient(dag, x, lambda out: F.cross_entropy(out, y))
    rewire(
        dag,
        config.share,
        gradient,
        optimizers=[state.optimizer],
        generator=generator(seed, 9, state.round),
    )


def wired(dag: Dag, parts: int = 32) -> tuple[tuple[float, ...], ...]:
    """The share of all possible connections that there are, by parts of the nodes (rows) and of
    what can be read (columns).
    """
    node, source = dag.entries()
    rows = node * parts // dag.nodes
    columns = source * parts // dag.layout.values
    there = torch.bincount(rows * parts + columns, minlength=parts**2).view(parts, parts)
    able = (
        torch.arange(dag.layout.values)[None] < dag.in_features + torch.arange(dag.nodes)[:, None]
    )
    node, source = able.nonzero(as_tuple=True)
    cells = node * parts // dag.nodes * parts + source * parts // dag.layout.values
    possible = torch.bincount(cells, minlength=parts**2).view(parts, parts)
    return tuple(tuple(row) for row in (there / possible.clamp_min(1)).tolist())


def trained(config: Config, seed: int, seen: dict[str, Dag] | None = None) -> dict[str, Fit]:
    """A network for each number of sources, the full wiring, and the wiring that moves. seen:
    receives two of the networks.
    """
    parts = data(config.data, seed, config.rows)
    last = config.epochs * max(1, len(parts.train[0]) // config.batch)

    def one(hook: Callable[[State], None] | None = None, **how: Any) -> Fit:
        model = dagnet(
            parts.features, parts.classes, config.nodes, generator=generator(seed, 3), **how
        )
        run = fitted(model, parts, "Adam", config.rate, config.epochs, config.batch, seed, hook)
        if seen is not None and how.get("fan_in") == config.rewired:
            seen[REWIRED if hook else "drawn"] = model.dag  # type: ignore[assignment]
        return run

    def move(state: State) -> None:
        if state.step < last:
            moved(state, parts, config, seed)

    drawn = {_name(n): one(wiring="random", fan_in=n) for n in config.fans}
    return {**drawn, "full": one(), REWIRED: one(move, wiring="random", fan_in=config.rewired)}


REWIRED = "rewired"


def _name(sources: int) -> str:
    return f"{sources} sources"


Run = Mapping[str, Fit]
"""One seed's networks, by name."""


def accuracy(name: str) -> Row:
    return Row(f"{name}: test accuracy", lambda run: run[name].test[-1])


def seconds(name: str, epochs: int) -> Row:
    return Row(f"{name}: seconds an epoch", lambda run: run[name].seconds[-1] / epochs)


def gain(drawn: str) -> Row:
    """What rewiring gains over a wiring that stays as it was drawn."""
    return Row(
        f"rewiring {drawn} gains",
        lambda run: run[REWIRED].test[-1] - run[drawn].test[-1],
        low=0.0,
        source="RigL",
    )


def distance_rows(nodes: int, sources: int) -> list[Row]:
    """Hops, reach within two of them, levels and sinks, beside what is known of them."""
    known = KNOWN.get(sources) if nodes == 1024 else None
    low, high = (known - 0.1, known + 0.1) if known else (None, None)
    a = sources**2 / nodes
    return [
        Row("mean hops", lambda shape: shape.mean_hops, known, low, high, "specification"),
        Row(
            "nodes within two hops",
            lambda shape: shape.within(2),
            a / (1 + a),
            source="a / (1 + a)",
        ),
        Row("levels", lambda shape: shape.levels),
        Row(
            "nodes that no node reads",
            lambda shape: shape.sinks,
            1 / (sources + 1),
            source="1 / (N + 1)",
        ),
    ]


def drawn(
    config: Config, runs: Sequence[Run], shapes: Mapping[int, Sequence[Stats]]
) -> list[Curve]:
    """Accuracy and hops by the number of sources; how many nodes are how far."""
    counts = tuple(map(float, config.fans))
    random = tuple(mean(run[_name(n)].test[-1] for run in runs) for n in config.fans)
    full = mean(run["full"].test[-1] for run in runs)
    hops = tuple(mean(shape.mean_hops for shape in of) for of in shapes.values())
    curves = [
        Curve("accuracy", "random", counts, random),
        Curve("accuracy", "full", counts, (full,) * len(counts)),
        Curve("hops", "mean", counts, hops),
    ]
    for n, (shape, *_) in shapes.items():
        far = tuple(range(1, len(shape.hops) + 1))
        share = tuple(count / config.nodes for count in shape.hops)
        curves.append(Curve("histogram", _name(n), far, share))
    return curves


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """All numbers of sources, the full wiring, and a wiring that moves."""
    config = replace(Config(seeds=seeds), **SMOKE) if smoke else Config(seeds=seeds)  # type: ignore[arg-type]
    began = time.perf_counter()
    seen: dict[str, Dag] = {}
    runs = [trained(config, seed, None if seed else seen) for seed in range(seeds)]
    shapes = {n: [distances(config.nodes, n, seed) for seed in range(seeds)] for n in config.fans}
    rows = [*map(accuracy, runs[0]), *(seconds(name, config.epochs) for name in runs[0])]
    claims = claimed([*rows, gain(_name(config.rewired))], runs)
    for n, of in shapes.items():
        claims += claimed(distance_rows(config.nodes, n), of, f"{_name(n)}: ")
    grids = tuple(
        Grid(f"wiring of {_name(config.rewired)}, {name}", wired(dag)) for name, dag in seen.items()
    )
    labels = ("source (32 parts; inputs first)", "node (32 parts)")
    axes = {**PAPER.axes, **dict.fromkeys((grid.panel for grid in grids), labels)}
    paper = replace(PAPER, axes=axes)
    return page(paper, config, began, claims, drawn(config, runs, shapes), grids=grids)
