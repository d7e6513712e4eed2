"""How many neurons train at fixed settings? A DAG, and plain perceptrons of as many neurons that
are as deep.

In a DAG the gradient falls as a power of the place, (d + n) / (d + i) for node i of n over d
inputs, in a deep perceptron exponentially; the profile of both is measured at the start.

Source: "I can train far bigger fully connected networks than before" (DagNN, post of 2017), without
figures. The power law: mean field, `layers/dag.py`. The settings are ours; both modes are the same.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch
from torch import Tensor, nn

from morphogen.experiments.dagnn.nets import Data, data, fitted, perceptron
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.dag.module import Dag
from morphogen.models import dagnet
from morphogen.record import Claim, Curve, Reproduction
from morphogen.training.train import generator

PAPER = Paper(
    "dagnn-bigger",
    "How many neurons train",
    "DagNN, post of 2017",
    {
        "size": ("nodes", "test accuracy"),
        "gradient": ("node", "gradient energy / mean"),
        "gradient in a perceptron": ("first node of the layer", "gradient energy / last layer's"),
    },
)


@dataclass(frozen=True)
class Config:
    data: str = "curves"
    seeds: int = 3
    sizes: tuple[int, ...] = (64, 256, 1024, 4096)
    widths: tuple[int, ...] = (16, 64)  # of the perceptrons' layers
    rate: float = 0.02
    epochs: int = 20
    batch: int = 128
    trains: float = 0.3  # the test accuracy from which a network counts as trained; chance is 0.1
    profile: tuple[int, int] = (1024, 784)  # nodes and inputs where gradients are measured
    samples: int = 128
    rows: int | None = None


SMOKE = {
    "sizes": (32, 64),
    "widths": (8,),
    "epochs": 2,
    "profile": (96, 64),
    "samples": 32,
    "rows": 400,
    "trains": 0.12,
}


def profile(
    model: nn.Module, inputs: int, samples: int, biases: list[str], draw: torch.Generator
) -> list[Tensor]:
    """For each bias, the mean over samples, each with a random direction of the output, of the
    squared gradient at its sums.
    """
    energies = [torch.zeros(())] * len(biases)
    held = [model.get_parameter(name) for name in biases]
    for row in torch.randn(samples, 1, inputs, generator=draw):
        gradients = torch.autograd.grad((model(row) @ torch.randn(10, generator=draw)).sum(), held)
        energies = [
            energy + gradient.square() / samples
            for energy, gradient in zip(energies, gradients, strict=True)
        ]
    return energies


def power_law(
    config: Config, seed: int, parts: int = 8
) -> tuple[list[float], list[float], list[float]]:
    """(the first node of each part, gradient energy there over the mean, and what the power law
    says).
    """
    nodes, inputs = config.profile
    draw = generator(seed, 5)
    dag = Dag(inputs, nodes, 10, generator=draw)
    (second_moment,) = profile(dag, inputs, config.samples, ["bias"], draw)
    expected = (inputs + nodes) / (inputs + torch.arange(nodes))
    places = list(range(0, nodes, nodes // parts))
    seen, said = (
        [float(part.mean()) for part in values.split(nodes // parts)]
        for values in (second_moment, expected)
    )
    return (
        [float(p) for p in places],
        [value / mean(seen) for value in seen],
        [value / mean(said) for value in said],
    )


def layers_profile(config: Config, width: int, seed: int) -> list[float]:
    """Of a perceptron of as many nodes: the gradient energy of each hidden layer over the last
    one's.
    """
    nodes, inputs = config.profile
    draw = generator(seed, 5)
    model = perceptron(inputs, (width,) * (nodes // width), 10, draw)
    biases = [f"{2 * i}.bias" for i in range(nodes // width)]
    second_moment = [
        float(value.mean()) for value in profile(model, inputs, config.samples, biases, draw)
    ]
    return [value / second_moment[-1] if second_moment[-1] else 0.0 for value in second_moment]


Law = tuple[list[float], list[float], list[float]]
"""What `power_law` returns."""


def farthest(law: Law) -> float:
    """The gradient that is farthest from the power law, as a share of it."""
    _, seen, said = law
    return max(abs(a / b - 1) for a, b in zip(seen, said, strict=True))


CLAIMS = (
    Row(
        "gradient by node: farthest from the power law, as a share of it",
        farthest,
        high=0.2,
        source="mean field",
    ),
)


def built(parts: Data, nodes: int, config: Config, seed: int) -> dict[str, nn.Module]:
    """A DAG, and perceptrons of as many nodes."""
    dag = dagnet(parts.features, parts.classes, nodes, generator=generator(seed, 3))
    models: dict[str, nn.Module] = {"DAG": dag}
    for width in config.widths:
        layers = (width,) * max(1, nodes // width)
        models[f"perceptron of width {width}"] = perceptron(
            parts.features, layers, parts.classes, generator(seed, 3)
        )
    return models


Accuracy = Mapping[int, Sequence[float]]
"""Test accuracies over the seeds, by the number of nodes."""


def accuracies(config: Config) -> Mapping[str, Accuracy]:
    """By kind of network."""
    accuracy: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(config.seeds):
        parts = data(config.data, seed, config.rows)
        for nodes in config.sizes:
            for kind, model in built(parts, nodes, config, seed).items():
                run = fitted(model, parts, "SGD", config.rate, config.epochs, config.batch, seed)
                accuracy[kind][nodes].append(run.test[-1])
    return accuracy


def size_claims(kind: str, accuracy: Accuracy, config: Config) -> list[Claim]:
    """The accuracies of one kind, and how many of its nodes train."""
    trained = [nodes for nodes, values in accuracy.items() if mean(values) >= config.trains]
    most = Claim(
        f"{kind}: most nodes that train",
        None,
        float(max(trained, default=0)),
        low=float(config.sizes[-1]) if kind == "DAG" else None,
        source="the post",
    )
    each = [
        over_seeds(f"{kind}, {nodes} nodes: test accuracy", values)
        for nodes, values in accuracy.items()
    ]
    return [*each, most]


def falling(config: Config, width: int) -> tuple[Claim, Curve]:
    """How the gradient falls in a perceptron of this width."""
    energy = layers_profile(config, width, 0)
    firsts = tuple(float(width * i) for i in range(len(energy)))
    name = f"perceptron of width {width}: gradient energy, first layer / last"
    return (
        Claim(name, None, energy[0]),
        Curve("gradient in a perceptron", f"width {width}", firsts, tuple(energy)),
    )


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """All sizes, and the profiles."""
    config = replace(Config(seeds=seeds), **SMOKE) if smoke else Config(seeds=seeds)  # type: ignore[arg-type]
    began = time.perf_counter()
    accuracy = accuracies(config)
    claims = []
    curves = []
    for kind, by_size in accuracy.items():
        claims += size_claims(kind, by_size, config)
        path = tuple(map(mean, by_size.values()))
        curves.append(Curve("size", kind, tuple(map(float, by_size)), path))
    laws = [power_law(config, seed) for seed in range(seeds)]
    claims += claimed(CLAIMS, laws)
    places, seen, said = map(tuple, laws[-1])
    curves += [Curve("gradient", "DAG", places, seen), Curve("gradient", "power law", places, said)]
    for width in config.widths:
        claim, curve = falling(config, width)
        claims.append(claim)
        curves.append(curve)
    return page(PAPER, config, began, claims, curves)
