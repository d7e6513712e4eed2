"""How much of a trained perceptron can go without changing it on any image, and what training has
to do with it.

MNIST, two hidden layers of 100, SGD as published. Prices of the l1 norm, adversarial training, and
a loss on units of both signs; each network is compressed on the box of all images, then on small
boxes around single ones.

Source: Serra, Kumar, Ramalingam 2020 (arXiv 2001.00218), table 1: 0, 14.9 and 30.8 % of the units
at l1 0, 1e-4, 5e-4, with 98.00, 98.14 and 97.14 % accuracy; 2021 (arXiv 2102.07804) for the
settings. Differs: the penalty is a proximal step (weights become zero), a larger rate and fewer
epochs, then some without the penalty, and seven rules in the place of two.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from morphogen.bounds.box import linf_ball
from morphogen.edit.apply import count_parameters
from morphogen.experiments.compression.stable_nets import (
    Part,
    Training,
    accuracy,
    pixels,
    rows,
    trained,
)
from morphogen.experiments.shared.claims import Row, claimed
from morphogen.experiments.shared.page import Paper, page
from morphogen.record import Certificate, Claim, Curve, Reproduction
from morphogen.transforms.compress import compress

PAPER = Paper(
    "lossless-compression",
    "Lossless compression of trained perceptrons",
    "arXiv 2001.00218, table 1",
    {"units gone, %": ("price of the l1 norm", "hidden units that can go, %")},
)
# by the price of the l1 norm: accuracy and units gone, in percent
PUBLISHED = {5e-4: (97.14, 30.8), 1e-4: (98.14, 14.9), 0.0: (98.00, 0.0)}
ROOM = 0.15  # by which an accuracy may be lower


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    rows: int | None = None
    seeds: int = 1
    prices: tuple[float, ...] = (0.0, 5e-5, 1e-4, 2e-4, 5e-4)
    widths: tuple[int, ...] = (100, 100)
    epochs: int = 40
    settled: int = 20
    # of 0.01, 0.05 and 0.1 the best on validation rows at equal compression
    rate: float = 0.05
    # beside these, at the price 1e-4: adversarial examples, and the loss on units of both signs,
    # (radius, weight)
    adversarial: tuple[float, ...] = (0.1,)
    stable: tuple[tuple[float, float], ...] = ((0.1, 1e-3),)
    local: tuple[float, ...] = (0.01, 0.03, 0.1)  # radii of boxes around images
    images: int = 5


SMOKE = Config(
    "digits",
    300,
    prices=(0.0, 5e-4),
    widths=(12, 12),
    epochs=2,
    settled=1,
    adversarial=(),
    stable=(),
    local=(0.1,),
    images=1,
)


FAITHFUL: dict[str, Any] = {
    "epochs": 121,
    "settled": 0,
    "rate": 0.01,
    "prices": tuple(PUBLISHED),
    "adversarial": (),
    "stable": (),
}


def trainings(config: Config) -> list[Training]:
    """All arms."""
    plain = Training(config.widths, config.epochs, settled=config.settled, rate=config.rate)
    return [
        *(replace(plain, penalty=penalty) for penalty in config.prices),
        *(replace(plain, penalty=1e-4, radius=radius) for radius in config.adversarial),
        *(
            replace(plain, penalty=1e-4, radius=radius, stable=weight)
            for radius, weight in config.stable
        ),
    ]


def one(how: Training, parts: Mapping[str, Part], config: Config, seed: int) -> dict[str, float]:
    """Figures of one network."""
    model = trained(parts["train"], how, seed)
    rows, _ = parts["train"]
    units = sum(how.widths)
    began = time.perf_counter()
    small, certificate = compress(model, pixels(rows.shape[1]), samples=rows[:10_000], seconds=30)
    figures = {
        "seconds": time.perf_counter() - began,
        "accuracy": accuracy(model, parts["test"]),
        "accuracy after": accuracy(small, parts["test"]),
        "units gone, %": 100 * (1 - _hidden(small) / units),
        "parameters gone, %": 100 * (1 - count_parameters(small) / count_parameters(model)),
        "difference": certificate.max_error,
        **by_rule(certificate, units - _hidden(small)),
    }
    images, _ = parts["test"]
    for radius in config.local:
        near = [gone_around(model, image, radius, units) for image in images[: config.images]]
        figures[local(radius)] = fmean(near)
    return figures


def by_rule(certificate: Certificate, gone: int) -> dict[str, float]:
    """How many units each rule took out; what no step tells went with freezing."""
    rules = Counter(step.partition(": ")[2].partition(" (")[0] for step in certificate.steps)
    frozen = gone - sum(rules.values())
    counts = rules | {"no weights in or out": frozen}
    return {f"by: {rule}": float(count) for rule, count in counts.items()}


def gone_around(model: nn.Module, image: Tensor, radius: float, units: int) -> float:
    """The share of units, in percent, that can go on the box around one image."""
    small, _ = compress(model, linf_ball(image[None], radius, 0.0, 1.0), seconds=5)
    return 100 * (1 - _hidden(small) / units)


def _hidden(model: nn.Module) -> int:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return sum(layer.out_features for layer in layers[:-1])


Figures = dict[str, float]
"""What `one` says of a network."""


def published_rows(price: float | None) -> list[Row]:
    """Accuracy and compression, beside the paper's at this price where it has any."""
    if price not in PUBLISHED:
        names = ("accuracy", "units gone, %")
        return [Row(name, itemgetter(name)) for name in names]
    accuracy, gone = PUBLISHED[price]
    source = PAPER.source
    low = accuracy - ROOM
    return [
        Row("accuracy", itemgetter("accuracy"), accuracy, low, source=source),
        Row("units gone, %", itemgetter("units gone, %"), gone, gone, source=source),
    ]


def local(radius: float) -> str:
    """The name of a figure."""
    return f"units gone within {radius:g}, %"


# what holds whatever the training was
EXACT = (
    Row("parameters gone, %", itemgetter("parameters gone, %")),
    Row("largest difference", itemgetter("difference"), high=1e-9),
    Row(
        "change of the accuracy",
        lambda run: abs(run["accuracy after"] - run["accuracy"]),
        0.0,
        high=0.0,
        source="the function is the same",
    ),
)


def told(name: str, runs: Sequence[Figures]) -> str:
    """One line of what a reader must know of a training."""
    keys = [key for run in runs for key in run if key.startswith("by: ")]
    rules = {
        key.removeprefix("by: "): fmean(run.get(key, 0.0) for run in runs)
        for key in dict.fromkeys(keys)
    }
    units = ", ".join(f"{rule} {count:g}" for rule, count in rules.items() if count)
    seconds = fmean(run["seconds"] for run in runs)
    return f"{name}: units by rule: {units or 'none'}; {seconds:.1f} s"


def drawn(
    config: Config, prices: Mapping[str, float], runs: Mapping[str, Sequence[Figures]]
) -> list[Curve]:
    """Units gone by the price of the l1 norm, on all images and within boxes around one."""
    scopes = {"all images": "units gone, %"}
    scopes |= {f"within {radius:g} of one": local(radius) for radius in config.local}
    x = tuple(prices.values())
    curves = []
    for scope, key in scopes.items():
        gone = tuple(fmean(run[key] for run in runs[name]) for name in prices)
        curves.append(Curve("units gone, %", scope, x, gone))
    return curves


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """faithful: the 121 epochs of the published grid, and its prices alone."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    config = replace(config, **FAITHFUL) if faithful else config
    began = time.perf_counter()
    parts = rows(config.data, config.rows)
    arms = trainings(config)
    runs = {arm.named: [one(arm, parts, config, seed) for seed in range(seeds)] for arm in arms}
    prices = {arm.named: arm.penalty for arm in arms if not arm.radius}
    around = [Row(local(radius), itemgetter(local(radius))) for radius in config.local]
    claims: list[Claim] = []
    for name, figures in runs.items():
        known = published_rows(None if smoke else prices.get(name))
        claims += claimed([*known, *EXACT, *around], figures, f"{name}: ")
    notes = [told(name, figures) for name, figures in runs.items()]
    return page(PAPER, config, began, claims, drawn(config, prices, runs), notes, faithful)
