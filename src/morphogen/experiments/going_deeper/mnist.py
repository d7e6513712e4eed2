"""MNIST with three learned depths: which layer wants to be deep?

Source: "Going Deeper: Infinite Deep Neural Networks", experiment B; settings and figures of the
released run (5,000 epochs on a GPU, one run, no validation part: its curves are on the test part,
and so are these in faithful mode).
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adadelta, AdamW, Optimizer

from morphogen.data.load import load_data
from morphogen.edit.adapt import adapt
from morphogen.experiments.going_deeper.gates import gate_curves
from morphogen.experiments.shared.page import Paper, page
from morphogen.layers.depth import LearnedDepth
from morphogen.layers.penalty import penalty, quadratic, scale_penalty
from morphogen.layers.protocol import size_parameters
from morphogen.record import Claim, Curve, Reproduction
from morphogen.training.train import Batches
from morphogen.transforms.freeze import freeze

NAMES = ("conv 1", "conv 2", "dense")

# Of the released run: w of the three layers at some epochs, and the epochs at which a test accuracy
# was first reached.
EPOCHS = (0, 10, 25, 50, 100)
DEPTHS = (
    (0.987, 1.037, 1.020),
    (0.880, 1.324, 1.405),
    (0.805, 1.473, 1.691),
    (0.756, 1.613, 1.725),
    (0.715, 1.779, 1.617),
)
REACHED = {9: 0.990, 19: 0.992, 25: 0.994, 87: 0.995}


PAPER = Paper(
    "going-deeper-mnist",
    "Learned depths on MNIST",
    "Going Deeper: Infinite Deep Neural Networks, experiment B",
    {
        "depth": ("epoch", "w"),
        "accuracy": ("epoch", "test accuracy"),
        "gates": ("epoch", f"gate, {NAMES[1]}"),
    },
)
NOTES = (
    "only open blocks run, which is exact; the original ran all five, so that closed batch norms "
    "saw data",
    "an epoch leaves out the last, incomplete batch",
)


@dataclass(frozen=True)
class Config:
    """faithful: frozen random layers between the learned depths, Adadelta, no augmentation.
    Otherwise every layer is trained, by AdamW with a rate that falls to zero, on images moved by up
    to two pixels; depths have a floor and look ahead.
    """

    data: str = "mnist"
    seeds: int = 1
    epochs: int = 30
    minutes: float = 60.0  # no epoch begins later; the original's are minutes long on a CPU
    batch: int = 512
    channels: tuple[int, int] = (30, 60)
    hidden: int = 256
    dropout: float = 0.25
    prices: tuple[float, float, float] = (5e-5, 5e-5, 1e-3)
    scale_penalty: float = 1e-8
    faithful: bool = True


DEFAULT = Config(
    epochs=20,
    minutes=float("inf"),
    batch=128,
    channels=(16, 32),
    hidden=64,
    dropout=0.1,
    prices=(1e-3, 1e-3, 1e-3),
    faithful=False,
)
SMOKE = {"data": "digits", "epochs": 2, "batch": 256, "channels": (8, 8), "hidden": 16}


def glorot(layer: nn.Module, trained: bool) -> nn.Module:
    """Glorot-uniform weights, zero bias; frozen unless trained."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer.requires_grad_(trained)


def conv_block(channels: int, dropout: float, _: int) -> nn.Module:
    conv = glorot(nn.Conv2d(channels, channels, 3, padding=1), True)
    return nn.Sequential(
        conv, nn.Dropout(dropout), nn.BatchNorm2d(channels, momentum=0.01, eps=1e-3)
    )


def dense_block(units: int, dropout: float, _: int) -> nn.Module:
    linear = glorot(nn.Linear(units, units), True)
    return nn.Sequential(
        linear, nn.Dropout(dropout), nn.BatchNorm1d(units, momentum=0.01, eps=1e-3)
    )


def network(config: Config, size: int, classes: int) -> nn.Sequential:
    """Images (batch, 1, size, size) -> logits (batch, classes)."""
    (first, second), hidden, trained = config.channels, config.hidden, not config.faithful
    options = {"floor": None if config.faithful else 0.1, "lookahead": not config.faithful}

    def cost(factor: float, layer: LearnedDepth) -> Tensor:
        return quadratic(layer, factor) + scale_penalty(layer, config.scale_penalty)

    def deep(block: partial[nn.Module], penalty: float) -> LearnedDepth:
        return LearnedDepth(block, penalty=partial(cost, penalty), **options)  # type: ignore[arg-type]

    return nn.Sequential(
        glorot(nn.Conv2d(1, first, 3, padding=1), trained),
        deep(partial(conv_block, first, config.dropout), config.prices[0]),
        nn.MaxPool2d(2),
        glorot(nn.Conv2d(first, second, 3, padding=1), trained),
        deep(partial(conv_block, second, config.dropout), config.prices[1]),
        nn.MaxPool2d(2),
        nn.Flatten(),
        glorot(nn.Linear(second * (size // 4) ** 2, hidden), trained),
        deep(partial(dense_block, hidden, config.dropout), config.prices[2]),
        glorot(nn.Linear(hidden, classes), trained),
    )


@dataclass(frozen=True)
class Fit:
    """One run: after each epoch, counted from 0, the three depths and the test accuracy; and the
    frozen network's.
    """

    depths: tuple[tuple[float, ...], ...]
    accuracy: tuple[float, ...]
    frozen: float
    blocks: tuple[int, ...]
    seconds: float


def rate_at(step: int, steps: int) -> float:
    """Rises for a hundred steps, falls to zero over the last two thirds."""
    left = 1 - step / steps
    return 4e-3 * min(1.0, (step + 1) / 100) * min(1.0, 1.5 * left)


def epoch_of(
    model: nn.Module, optimizer: Optimizer, batches: Batches, config: Config, epoch: int
) -> None:
    """Train for one epoch; depths are adapted every twenty steps."""
    model.train()
    start = epoch * batches.per_epoch
    numbered = enumerate(batches.range(start, start + batches.per_epoch), start=start)
    for step, (images, labels) in numbered:
        if not config.faithful:
            rate = rate_at(step, config.epochs * batches.per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels) + penalty(model)
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            adapt(model, optimizers=[optimizer])


def run(config: Config, seed: int) -> Fit:
    """Train on the training part, all of it; the test part is looked at after every epoch and
    decides nothing. Not by `training.train`: depths are adapted within an epoch.
    """
    torch.manual_seed(seed)
    dataset = load_data(config.data)
    x = torch.as_tensor(dataset.x_train)
    y = torch.as_tensor(dataset.y_train, dtype=torch.long)
    test = torch.as_tensor(dataset.x_test), torch.as_tensor(dataset.y_test, dtype=torch.long)
    model = network(config, x.shape[-1], len(dataset.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = [module for module in model if isinstance(module, LearnedDepth)]
    batches = Batches(x, y, min(config.batch, len(x)), seed, shift=0 if config.faithful else 2)
    optimizer = make_optimizer(model, config)
    depths = []
    scores = []
    began = time.perf_counter()
    for epoch in range(config.epochs):
        if time.perf_counter() - began > 60 * config.minutes:
            break
        epoch_of(model, optimizer, batches, config, epoch)
        depths.append(tuple(layer.depth for layer in layers))
        scores.append(accuracy(model, *test))
    seconds = time.perf_counter() - began
    plain, _ = freeze(model, test[0][:64])
    blocks = tuple(layer.active_blocks for layer in layers)
    return Fit(tuple(depths), tuple(scores), accuracy(plain, *test), blocks, seconds)


def make_optimizer(model: nn.Module, config: Config) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if config.faithful:
        return Adadelta(trained, lr=1.0, rho=0.95, eps=1e-8)
    depths = size_parameters(model)
    matrices = [p for p in trained if p.dim() > 1]
    vectors = [p for p in trained if p.dim() <= 1 and not any(p is w for w in depths)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": 0.01},
        {"params": vectors},
        {"params": depths, "scale": 2.0},
    ]
    return AdamW(groups, lr=4e-3, weight_decay=0.0, betas=(0.9, 0.99))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    return float(torch.cat([model(part).argmax(1) for part in x.split(1000)]).eq(y).double().mean())


def published(layer: int, epoch: int) -> float:
    """w of the released run after an epoch, in proportion between those that are known."""
    place = next((i for i, known in enumerate(EPOCHS) if known >= epoch), len(EPOCHS) - 1)
    if place == 0 or EPOCHS[place] <= epoch:
        return DEPTHS[place][layer]
    share = (epoch - EPOCHS[place - 1]) / (EPOCHS[place] - EPOCHS[place - 1])
    return DEPTHS[place - 1][layer] * (1 - share) + DEPTHS[place][layer] * share


def claims(config: Config, fits: list[Fit]) -> list[Claim]:
    """Accuracy and depths after the last epoch; against the released run only where its settings
    were used, and no more than it had itself reached by that epoch.
    """
    last = min(len(fit.depths) for fit in fits) - 1
    final = [fit.accuracy[-1] for fit in fits]
    change = max(abs(fit.frozen - fit.accuracy[-1]) for fit in fits)
    return [
        Claim(
            "test accuracy after the last epoch",
            0.994,
            mean(final),
            low=0.994 if not config.faithful or last >= 25 else None,
            spread=stdev(final) if len(fits) > 1 else None,
            source="promised",
        ),
        *(released(fits, last) if config.faithful else []),
        lead(fits, last, config.faithful),
        Claim("change of the test accuracy by freezing", 0.0, change, high=1e-4, source="promised"),
    ]


def released(fits: list[Fit], last: int) -> list[Claim]:
    """Beside the released run after the same epochs."""
    target = max((score for epoch, score in REACHED.items() if epoch <= last), default=None)
    best = mean(max(fit.accuracy) for fit in fits)
    name = f"best test accuracy by epoch {last}"
    beside = [Claim(name, target, best, low=target, source="released run")]
    for i, layer in enumerate(NAMES):
        known = published(i, last)
        depth = mean(fit.depths[last][i] for fit in fits)
        name = f"{layer}: w after epoch {last}"
        beside.append(Claim(name, known, depth, known - 0.15, known + 0.15, source="released run"))
    return beside


def lead(fits: list[Fit], last: int, faithful: bool) -> Claim:
    """By how much the second convolution wants to be deeper than the other layers."""
    first, second, third = (published(i, last) for i in range(len(NAMES)))
    return Claim(
        "lead of the second convolution's depth",
        second - max(first, third) if faithful else None,
        mean(fit.depths[-1][1] - max(fit.depths[-1][0], fit.depths[-1][2]) for fit in fits),
        low=0.0 if not faithful or last >= 100 else None,
        source="released run, from epoch 100 on",
    )


def drawn(first: Fit, faithful: bool) -> list[Curve]:
    """One run's depths, beside the released run's, its accuracy and its gates."""
    epochs = tuple(range(len(first.depths)))
    curves = [
        Curve("depth", name, epochs, tuple(w[i] for w in first.depths))
        for i, name in enumerate(NAMES)
    ]
    known = [i for i, epoch in enumerate(EPOCHS) if epoch < len(epochs)] or [0]
    for i, name in enumerate(NAMES) if faithful else ():
        x = tuple(EPOCHS[k] for k in known)
        y = tuple(DEPTHS[k][i] for k in known)
        curves.append(Curve("depth", f"published {name}", x, y))
    curves.append(Curve("accuracy", "test", epochs, first.accuracy))
    return [*curves, *gate_curves(epochs, [w[1] for w in first.depths])]


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """The original's first 30 epochs, as many as begin within an hour, or 20 of ours. smoke: a
    small network on digits.
    """
    config = replace(Config() if faithful else DEFAULT, seeds=seeds)
    config = replace(config, **SMOKE) if smoke else config  # type: ignore[arg-type]
    began = time.perf_counter()
    fits = [run(config, seed) for seed in range(seeds)]
    notes = [
        f"seed {i}: {len(fit.depths)} epochs of {config.epochs}, {fit.blocks} blocks open at the "
        f"end, {fit.seconds:.0f} s"
        for i, fit in enumerate(fits)
    ]
    notes += NOTES if faithful else ()
    curves = drawn(fits[0], faithful)
    return page(PAPER, config, began, claims(config, fits), curves, notes, faithful)
