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
from statistics import mean

import torch

from morphogen.experiments.dagnn.nets import Fit, chosen, data, fitted, networks
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.record import Claim, Curve, Reproduction, Trace
from morphogen.training.train import generator


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
    found = {}
    best = {}
    tuning = data(task.data, 100, task.rows)
    for name, build in networks(task.nodes, task.fan_in, task.block).items():
        scored = chosen(build, tuning, optimizer, rates, task.epochs, config.batch, 100)
        best[name] = max(scored, key=lambda rate: scored[rate])
        found[name] = [
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
    return found, best


def claims(where: str, found: Mapping[str, Sequence[Fit]]) -> list[Claim]:
    """Accuracies, then DAGs beside perceptrons over paired seeds; what is above zero is a win of
    the DAG.
    """
    accuracy = {name: [fit.test[-1] for fit in fits] for name, fits in found.items()}
    result = [
        over_seeds(f"{where}: {name}, test accuracy", values) for name, values in accuracy.items()
    ]

    def ahead(one: str, other: str) -> Claim:
        values = [a - b for a, b in zip(accuracy[one], accuracy[other], strict=True)]
        return over_seeds(
            f"{where}: {one} ahead of {other}", values, low=0.0, source="the post: node for node"
        )

    result += [ahead(name, "perceptron, nodes of DAG") for name in DAGS]
    result += [ahead(name, f"perceptron, parameters of {name}") for name in ("DAG", "DAG, random")]
    path = [
        mean(one.test) - mean(other.test)
        for one, other in zip(found["DAG"], found["perceptron, nodes of DAG"], strict=True)
    ]
    result.append(
        over_seeds(
            f"{where}: DAG ahead of perceptron, nodes of DAG, mean of the epochs",
            path,
            low=0.0,
            source="the post",
        )
    )
    for name in DAGS:
        time_ = [
            one.seconds[-1] / other.seconds[-1]
            for one, other in zip(found[name], found["perceptron, parameters of DAG"], strict=True)
        ]
        result.append(
            over_seeds(f"{where}: seconds of {name} / perceptron, parameters of DAG", time_)
        )
    return result


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Both tasks; the posts give no settings, so both modes are the same."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    began = time.perf_counter()
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for task in config.tasks:
            for optimizer, rates in config.rates:
                found[f"{task.data}, {optimizer}"] = (
                    task,
                    *compared(task, optimizer, rates, config),
                )
    finally:
        torch.set_num_threads(threads)
    axes: dict[str, tuple[str, str]] = {}
    curves = []
    notes = []
    traces = []
    for where, (task, fits, best) in found.items():
        axes |= {
            where: ("epoch", "test accuracy"),
            f"{where}, by time": ("seconds", "test accuracy"),
        }
        epochs = tuple(range(1, task.epochs + 1))
        for name, runs in fits.items():
            curves += [
                Curve(where, name, epochs, runs[0].test),
                Curve(f"{where}, by time", name, runs[0].seconds, runs[0].test),
            ]
            traces += [
                Trace(f"{where}/{name}-{seed}", "test accuracy", epochs, run.test, run.seconds)
                for seed, run in enumerate(runs)
            ]
            notes.append(
                f"{where}: {name} has {runs[0].parameters:,} parameters, rate {best[name]:g}"
            )
    made = [claim for where, (_, fits, _) in found.items() for claim in claims(where, fits)]
    notes += [
        f"the DAG does not win: {claim.name} by {claim.measured:+.4f}"
        for claim in made
        if claim.verdict == "missed"
    ]
    return Reproduction(
        "dagnn-mnist",
        "Networks without layers beside perceptrons",
        "DagNN, posts of 2017",
        "default",
        {key: str(value) for key, value in vars(config).items()},
        tuple(made),
        tuple(curves),
        axes,
        tuple(notes),
        time.perf_counter() - began,
        traces=tuple(traces),
    )
