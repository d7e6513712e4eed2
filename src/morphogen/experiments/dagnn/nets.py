"""Perceptrons and DAGs of neurons side by side: data as rows, networks of equal size, and one way
to train them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from morphogen.data.load import load_data
from morphogen.data.split import split
from morphogen.edit.apply import count_parameters
from morphogen.experiments.shared.images import objective, scores
from morphogen.models import dagnet
from morphogen.training.train import Batches, Diverged, State, generator, train

Part = tuple[Tensor, Tensor]
"""Rows (n, features) and labels (n,)."""


@dataclass(frozen=True)
class Data:
    """Three parts, inputs of unit second moment."""

    train: Part
    validation: Part
    test: Part
    classes: int

    @property
    def features(self) -> int:
        return self.train[0].shape[1]


def data(name: str, seed: int, rows: int | None = None) -> Data:
    """The data set "curves", or images as rows; a tenth of the training part is for validation.

    rows: at most so many are trained on.
    """
    if name == "curves":
        x, y = curves(5000, 0)
        x_test = x[4000:]
        y_test = y[4000:]
        x = x[:4000]
        y = y[:4000]
        classes = 10
    else:
        dataset = load_data(name)
        x = torch.as_tensor(dataset.x_train).flatten(1)
        y = torch.as_tensor(dataset.y_train)
        x_test = torch.as_tensor(dataset.x_test).flatten(1)
        y_test = torch.as_tensor(dataset.y_test)
        classes = len(dataset.classes)
    inside, held = (torch.as_tensor(part) for part in split(y.numpy(), 0.1, seed, stratify=True))
    inside = inside[:rows]
    scale = x[inside].square().mean().rsqrt()
    return Data(
        (scale * x[inside], y[inside]),
        (scale * x[held], y[held]),
        (scale * x_test, y_test),
        classes,
    )


# The height of each digit's pen stroke at twelve points.
_STROKES = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)


def curves(count: int, seed: int) -> Part:
    """Digits as curves of 40 numbers: strokes stretched, moved around, scaled, sheared, and noise
    where they are not.

    Source: MNIST-1D, Greydanus 2020 (arXiv 2011.14439): its strokes and amounts. Differs: another
    generator, so other samples.
    """
    draw = np.random.default_rng(seed)
    shapes = (_STROKES - _STROKES.mean(1, keepdims=True)) / _STROKES.std(1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6
    labels = draw.permutation(np.arange(count) % 10)
    length = 72
    # where each of the 72 places lies on its stroke of 12 points and 36 to 60 zeros, turned around
    # by up to 48 places
    turned = (np.arange(length) - draw.integers(48, size=(count, 1))) % length
    at = turned * (11 + draw.integers(36, 61, size=(count, 1))) / (length - 1)
    stroke = np.stack(
        [
            np.interp(place, np.arange(12), shapes[label])
            for place, label in zip(at, labels, strict=True)
        ]
    )
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    noise = 0.25 * draw.normal(size=(count, length))
    smooth = np.stack([np.convolve(row, kernel / kernel.sum(), "same") for row in noise])
    signal = np.where(at <= 11, stroke * (1 + 0.4 * (draw.random((count, 1)) - 0.5)), smooth)
    signal += 0.02 * draw.normal(size=signal.shape) - 0.75 * (
        draw.random((count, 1)) - 0.5
    ) * np.linspace(-0.5, 0.5, length)
    places = np.linspace(0, length - 1, 40)
    x = np.stack([np.interp(places, np.arange(length), row) for row in signal])
    return torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(labels)


def perceptron(
    features: int, widths: Sequence[int], classes: int, draw: torch.Generator
) -> nn.Sequential:
    """ReLU layers as He starts them, which is how a DAG's nodes start."""
    layers: list[nn.Module] = []
    for reads, makes in zip((features, *widths[:-1]), widths, strict=True):
        layer = nn.Linear(reads, makes)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(makes, reads, generator=draw) * math.sqrt(2 / reads))
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    last = nn.Linear(widths[-1], classes)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(
                (torch.rand(parameter.shape, generator=draw) * 2 - 1) / math.sqrt(widths[-1])
            )
    return nn.Sequential(*layers, last)


def twin(features: int, classes: int, parameters: int) -> int:
    """The width of two equal hidden layers with about so many parameters."""
    b = features + classes + 2
    return max(1, round((-b + math.sqrt(b * b + 4 * (parameters - classes))) / 2))


Build = Callable[[Data, torch.Generator], nn.Module]


def networks(nodes: int, fan_in: int, block: int) -> dict[str, Build]:
    """What is compared, by name; perceptrons have two hidden layers. Multiplications are weights
    here, so that equal parameters are equal multiplications up to the biases.
    """

    def dag(data: Data, draw: torch.Generator, nodes: int = nodes, **how: object) -> nn.Module:
        return dagnet(data.features, data.classes, nodes, generator=draw, **how)

    def alike(data: Data, draw: torch.Generator, of: Build) -> nn.Module:
        width = twin(data.features, data.classes, count_parameters(of(data, torch.Generator())))
        return perceptron(data.features, (width, width), data.classes, draw)

    dags: dict[str, Build] = {
        "DAG": dag,
        "DAG, random": partial(dag, wiring="random", fan_in=fan_in),
        "DAG, blocks": partial(dag, wiring="block", block_size=block),
        "DAG, linked": partial(dag, linked=True, nodes=nodes // 2),
        "dense-connected, 4 layers": partial(dag, wiring="block", block_size=-(-nodes // 4)),
    }
    half = nodes // 2
    return {
        **dags,
        "perceptron, nodes of DAG": lambda data, draw: perceptron(
            data.features, (half, half), data.classes, draw
        ),
        **{
            f"perceptron, parameters of {key}": partial(alike, of=dags[key])
            for key in ("DAG", "DAG, random")
        },
    }


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"SGD": SGD, "Adam": partial(Adam, fused=True)}


@dataclass(frozen=True)
class Fit:
    """One training: after each epoch the test accuracy and the seconds so far; the last one's
    validation accuracy.
    """

    test: tuple[float, ...]
    seconds: tuple[float, ...]
    validation: float
    parameters: int


def fitted(
    model: nn.Module,
    data: Data,
    optimizer: str,
    rate: float,
    epochs: int,
    batch: int,
    seed: int,
    hook: Callable[[State], None] | None = None,
) -> Fit:
    """Train at a constant rate. hook: after each epoch."""
    state = State(model, OPTIMIZERS[optimizer](model.parameters(), lr=rate), seed)
    batches = Batches(*data.train, batch, seed)
    test = []
    seconds = []
    spent = 0.0
    for epoch in range(epochs):
        began = time.perf_counter()
        train(
            state, batches, objective, lambda step: rate, steps=batches.per_epoch, rounds=epoch + 1
        )
        if hook:
            hook(state)
        spent += time.perf_counter() - began
        seconds.append(spent)
        test.append(scores(model, data.test)[1])
    return Fit(
        tuple(test), tuple(seconds), scores(model, data.validation)[1], count_parameters(model)
    )


def chosen(
    build: Build,
    data: Data,
    optimizer: str,
    rates: Sequence[float],
    epochs: int,
    batch: int,
    seed: int,
) -> Mapping[float, float]:
    """Validation accuracy at each learning rate, 0 where training diverges."""

    def score(rate: float) -> float:
        try:
            return fitted(
                build(data, generator(seed, 3)), data, optimizer, rate, epochs, batch, seed
            ).validation
        except Diverged:
            return 0.0

    return {rate: score(rate) for rate in rates}
