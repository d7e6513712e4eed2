"""Is a network without layers better, node for node, weight for weight, second for second?

A DAG of neurons (full, random and block wirings, linked nodes) beside perceptrons of equal nodes
and of equal parameters, which are equal multiplications, and a dense-connected one; SGD without
momentum and Adam, each network at the learning rate that is best for it on validation rows.

Source: the posts that propose to connect every node with every prior node (DagNN, 2017): "better
node for node per epoch", without figures. Pilot figures of the specification: under SGD a DAG of
512 nodes is 5 points ahead on 40 inputs, under Adam and with equal parameters it is behind.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import mean

from morphogen.experiments.dagnn.nets import Fit, chosen, data, fitted, networks
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.page import Paper, page
from morphogen.record import Claim, Curve, Reproduction, Trace
from morphogen.threads import threads
from morphogen.training.train import generator

PAPER = Paper("dagnn-mnist", "Networks without layers beside perceptrons", "DagNN, posts of 2017")


@dataclass(frozen=True)
class Task:
    """One data set: nodes of a DAG, sources of each of a random one, nodes of a block, epochs, and
    rows to train on.
    """

    data: str
    nodes: int
    fan_in: int
    block: int
    epochs: int
    rows: int | None = None


@dataclass(frozen=True)
class Config:
    tasks: tuple[Task, ...] = (Task("curves", 512, 32, 64, 30), Task("mnist", 256, 32, 32, 10))
    seeds: int = 5
    batch: int = 128
    rates: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("SGD", (0.01, 0.03, 0.1, 0.3)),
        ("Adam", (3e-4, 1e-3, 3e-3)),
    )


SMOKE = Config(
    (Task("curves", 16, 8, 8, 1, 200), Task("digits", 16, 8, 8, 1, 400)),
    rates=(("SGD", (0.03,)), ("Adam", (1e-3,))),
)
DAGS = ("DAG", "DAG, random", "DAG, blocks", "DAG, linked", "dense-connected, 4 layers")


def compared(
    task: Task, optimizer: str, rates: Sequence[float], config: Config
) -> tuple[dict[str, list[Fit]], dict[str, float]]:
    """(all networks over the seeds, their learning rates). The rate is chosen on seed 100, which no
    result uses.
    """
    fits = {}
    best = {}
    tuning = data(task.data, 100, task.rows)
    for name, build in networks(task.nodes, task.fan_in, task.block).items():
        scored = chosen(build, tuning, optimizer, rates, task.epochs, config.batch, 100)
        best[name] = max(scored, key=lambda rate: scored[rate])
        fits[name] = [
            fitted(
                build(parts := data(task.data, seed, task.rows), generator(seed, 3)),
                parts,
                optimizer,
                best[name],
                task.epochs,
                config.batch,
                seed,
            )
            for seed in range(config.seeds)
        ]
    return fits, best


Run = Mapping[str, Fit]
"""One seed's networks, by name."""


def ahead(one: str, other: str) -> Row:
    """By how much a DAG is better; what is above zero is its win."""
    return Row(
        f"{one} ahead of {other}",
        lambda run: run[one].test[-1] - run[other].test[-1],
        low=0.0,
        source="the post: node for node",
    )


def accuracy(name: str) -> Row:
    return Row(f"{name}, test accuracy", lambda run: run[name].test[-1])


def slower(name: str) -> Row:
    peer = "perceptron, parameters of DAG"
    return Row(
        f"seconds of {name} / {peer}", lambda run: run[name].seconds[-1] / run[peer].seconds[-1]
    )


def early(run: Run) -> float:
    """By how much a DAG is better in the mean of the epochs."""
    return mean(run["DAG"].test) - mean(run["perceptron, nodes of DAG"].test)


# over paired seeds
CLAIMS = (
    *(ahead(name, "perceptron, nodes of DAG") for name in DAGS),
    *(ahead(name, f"perceptron, parameters of {name}") for name in ("DAG", "DAG, random")),
    Row(
        "DAG ahead of perceptron, nodes of DAG, mean of the epochs",
        early,
        low=0.0,
        source="the post",
    ),
    *(slower(name) for name in DAGS),
)


def drawn(
    where: str, task: Task, fits: Mapping[str, Sequence[Fit]]
) -> tuple[list[Curve], list[Trace]]:
    """Accuracy by epoch and by time of the first seed, and the traces of all."""
    epochs = tuple(range(1, task.epochs + 1))
    curves = []
    traces = []
    for name, runs in fits.items():
        curves.append(Curve(where, name, epochs, runs[0].test))
        curves.append(Curve(f"{where}, by time", name, runs[0].seconds, runs[0].test))
        traces += [
            Trace(f"{where}/{name}-{seed}", "test accuracy", epochs, run.test, run.seconds)
            for seed, run in enumerate(runs)
        ]
    return curves, traces


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Both tasks; the posts give no settings, so both modes are the same."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    began = time.perf_counter()
    claims: list[Claim] = []
    curves: list[Curve] = []
    notes = []
    traces: list[Trace] = []
    axes = {}
    for task, (optimizer, rates) in product(config.tasks, config.rates):
        where = f"{task.data}, {optimizer}"
        with threads(1):
            fits, best = compared(task, optimizer, rates, config)
        runs = [dict(zip(fits, each, strict=True)) for each in zip(*fits.values(), strict=True)]
        claims += claimed([*map(accuracy, fits), *CLAIMS], runs, f"{where}: ")
        lines, paths = drawn(where, task, fits)
        curves += lines
        traces += paths
        axes[where] = ("epoch", "test accuracy")
        axes[f"{where}, by time"] = ("seconds", "test accuracy")
        notes += [
            f"{where}: {name} has {fit.parameters:,} parameters, rate {best[name]:g}"
            for name, fit in runs[0].items()
        ]
    notes += [
        f"the DAG does not win: {claim.name} by {claim.measured:+.4f}"
        for claim in claims
        if claim.verdict == "missed"
    ]
    paper = replace(PAPER, axes=axes)
    return page(paper, config, began, claims, curves, notes, traces=tuple(traces))
