"""Does training for sparse weights, or against adversarial examples, leave fewer linear regions and
more units of one sign?

MNIST, two hidden layers. Regions are counted exactly, on planes through three test images each and
on lines between two; units are decided on the box of all images.

Source: Kumar, Serra, Ramalingam 2019 (arXiv 1905.11428), whose abstract says that both l1 and
adversarial training cut the number of linear regions, since sparse weights make units stable; its
tables were not to be had.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from statistics import fmean

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box
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
from morphogen.linear_regions.regions import Regions, regions
from morphogen.record import Claim, Curve, Reproduction, Tiling
from morphogen.verification.stability import ACTIVE, INACTIVE, stability

SHOWN = ("regions on a plane", "units of one sign, %")
PAPER = Paper(
    "linear-regions",
    "Linear regions of trained perceptrons",
    "arXiv 1905.11428, abstract",
    {panel: ("strength", panel) for panel in SHOWN},
)


@dataclass(frozen=True)
class Config:
    data: str = "mnist"
    rows: int | None = None
    seeds: int = 1
    widths: tuple[int, ...] = (100, 100)
    epochs: int = 30
    prices: tuple[float, ...] = (0.0, 2e-5, 1e-4, 5e-4)
    radii: tuple[float, ...] = (0.05, 0.1)
    stable: tuple[tuple[float, float], ...] = ((0.1, 1e-3),)
    planes: int = 10


SMOKE = Config(
    "digits", 300, widths=(12, 12), epochs=2, prices=(0.0, 5e-4), radii=(0.1,), stable=(), planes=2
)


def trainings(config: Config) -> list[Training]:
    plain = Training(config.widths, config.epochs)
    return [
        *(replace(plain, penalty=penalty) for penalty in config.prices),
        *(replace(plain, radius=radius) for radius in config.radii),
        *(replace(plain, radius=radius, stable=weight) for radius, weight in config.stable),
    ]


def plane(model: nn.Module, images: Tensor) -> Regions:
    """The regions on the plane (or line) through some images, which are the corners of the first
    quarter of a square: where the coefficients add up to at most one it is within their triangle.
    """
    ends = torch.zeros(1, len(images) - 1)
    return regions(model, Box(ends, ends + 1), along=(images[0], images[1:] - images[0]))


def one(
    how: Training, parts: Mapping[str, Part], config: Config, seed: int
) -> tuple[dict[str, float], Tiling]:
    """Figures of one network, and a picture."""
    model = trained(parts["train"], how, seed)
    test = parts["test"][0].double()
    planes = [plane(model, test[3 * at : 3 * at + 3]) for at in range(config.planes)]
    lines = [plane(model, test[2 * at : 2 * at + 2]) for at in range(config.planes)]
    signs = stability(model, pixels(test.shape[1]), parts["train"][0][:10_000], seconds=30)
    units = sum(how.widths)
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(
        weight.numel() for weight in weights
    )
    return {
        "accuracy, %": accuracy(model, parts["test"]),
        "regions on a plane": fmean(map(len, planes)),
        "affine functions on a plane": fmean(cells.n_pieces for cells in planes),
        "regions on a line": fmean(map(len, lines)),
        "units of one sign, %": 100 * (signs.count(ACTIVE) + signs.count(INACTIVE)) / units,
        "weights of zero, %": 100 * zeros,
    }, planes[0].picture(f"regions, {how.named}")


def fewer(name: str) -> Row:
    """A training leaves fewer regions than the plain one; a run is figures by training."""
    return Row(
        f"{name}: fewer regions on a plane than plain",
        lambda run: run["plain"]["regions on a plane"] - run[name]["regions on a plane"],
        low=1e-9,
        source=PAPER.source,
    )


def steadier(name: str) -> Row:
    """And more units of one sign."""
    return Row(
        f"{name}: more units of one sign, % than plain",
        lambda run: run[name]["units of one sign, %"] - run["plain"]["units of one sign, %"],
        low=1e-9,
        source=PAPER.source,
    )


Figures = Mapping[str, Sequence[Mapping[str, float]]]
"""What `one` says of each training, a seed each."""


def claims_of(figures: Figures) -> list[Claim]:
    """Every figure of every training, then each beside the plain one over paired seeds."""
    claims: list[Claim] = []
    for key in figures["plain"][0]:
        for name, made in figures.items():
            claims += claimed([Row(f"{name}: {key}", itemgetter(key))], made)
    runs = [dict(zip(figures, each, strict=True)) for each in zip(*figures.values(), strict=True)]
    for name in figures:
        if name != "plain":
            claims += claimed([fewer(name), steadier(name)], runs)
    return claims


def drawn(arms: Sequence[Training], figures: Figures) -> list[Curve]:
    """By the strength of the penalty, and by the radius of adversarial examples."""
    strengths = {
        "l1, penalty in 1e-3": {how: 1e3 * how.penalty for how in arms if not how.radius},
        "adversarial, radius": {
            how: how.radius for how in arms if not how.penalty and not how.stable
        },
    }
    curves = []
    for key in SHOWN:
        for kind, strength in strengths.items():
            means = [fmean(run[key] for run in figures[how.named]) for how in strength]
            curves.append(Curve(key, kind, tuple(strength.values()), tuple(means)))
    return curves


def pictured(arms: Sequence[Training]) -> dict[str, Training]:
    """The trainings whose regions are shown: plain, the largest penalty and radius, the last."""
    chosen = (
        arms[0],
        max(arms, key=lambda how: how.penalty),
        max(arms, key=lambda how: how.radius * (not how.stable)),
        arms[-1],
    )
    return {how.named: how for how in chosen}


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Both modes are the same: the published settings were not to be had."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    began = time.perf_counter()
    parts = rows(config.data, config.rows)
    arms = trainings(config)
    runs = {how.named: [one(how, parts, config, seed) for seed in range(seeds)] for how in arms}
    figures = {name: [figure for figure, _ in made] for name, made in runs.items()}
    tilings = tuple(runs[name][0][1] for name in pictured(arms))
    around = ("towards a second image", "towards a third")
    axes = {**PAPER.axes, **dict.fromkeys((tiling.panel for tiling in tilings), around)}
    note = (
        "regions are activation patterns on the plane from one test image towards two others, "
        "counted exactly"
    )
    return page(
        replace(PAPER, axes=axes),
        config,
        began,
        claims_of(figures),
        drawn(arms, figures),
        [note],
        tilings=tilings,
    )
