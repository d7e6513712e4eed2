"""Does training for sparse weights, or against adversarial examples, leave fewer linear regions and
more units of one sign?

MNIST, two hidden layers. Regions are counted exactly, on planes through three test images each and
on lines between two; units are decided on the box of all images.

Source: Kumar, Serra, Ramalingam 2019 (arXiv 1905.11428), whose abstract says that both l1 and
adversarial training cut the number of linear regions, since sparse weights make units stable; its
tables were not to be had.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from morphogen.experiments.shared.over_seeds import over_seeds
from morphogen.linear_regions.regions import Regions, regions
from morphogen.record import Claim, Curve, Reproduction, Tiling
from morphogen.verification.stability import ACTIVE, INACTIVE, stability


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
        "affine functions on a plane": fmean(found.n_pieces for found in planes),
        "regions on a line": fmean(map(len, lines)),
        "units of one sign, %": 100 * (signs.count(ACTIVE) + signs.count(INACTIVE)) / units,
        "weights of zero, %": 100 * zeros,
    }, planes[0].picture(f"regions, {how.named}")


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """Both modes are the same: the published settings were not to be had."""
    config = replace(SMOKE if smoke else Config(), seeds=seeds)
    began = time.perf_counter()
    parts = rows(config.data, config.rows)
    arms = trainings(config)
    runs = {
        how.named: [one(how, parts, config, seed) for seed in range(config.seeds)] for how in arms
    }
    figures = {name: [figure for figure, _ in made] for name, made in runs.items()}
    claims: list[Claim] = []
    source = "arXiv 1905.11428, abstract"
    for key in next(iter(figures.values()))[0]:
        claims += [
            over_seeds(f"{name}: {key}", [run[key] for run in made])
            for name, made in figures.items()
        ]
    plain = figures["plain"]
    for how in arms[1:]:
        for key, sign in (("regions on a plane", 1.0), ("units of one sign, %", -1.0)):
            ahead = [
                sign * (base[key] - run[key])
                for base, run in zip(plain, figures[how.named], strict=True)
            ]
            more = "fewer" if sign > 0 else "more"
            claims.append(
                over_seeds(f"{how.named}: {more} {key} than plain", ahead, low=1e-9, source=source)
            )
    curves = [
        Curve(
            key,
            kind,
            tuple(getattr(how, field) for how in some),
            tuple(fmean(run[key] for run in figures[how.named]) for how in some),
        )
        for key in ("regions on a plane", "units of one sign, %")
        for kind, field, some in (
            ("l1, penalty in 1e-3", "penalty", [how for how in arms if not how.radius]),
            (
                "adversarial, radius",
                "radius",
                [how for how in arms if not how.penalty and not how.stable],
            ),
        )
    ]
    curves = [
        replace(curve, x=tuple(1e3 * x for x in curve.x)) if curve.name.startswith("l1") else curve
        for curve in curves
    ]
    axes = {key: ("strength", key) for key in ("regions on a plane", "units of one sign, %")}
    shown = [
        arms[0],
        max(arms, key=lambda how: how.penalty),
        max(arms, key=lambda how: how.radius * (not how.stable)),
        arms[-1],
    ]
    tilings = tuple(runs[name][0][1] for name in dict.fromkeys(how.named for how in shown))
    axes |= {tiling.panel: ("towards a second image", "towards a third") for tiling in tilings}
    return Reproduction(
        "linear-regions",
        "Linear regions of trained perceptrons",
        source,
        "default",
        {key: str(value) for key, value in vars(config).items()},
        tuple(claims),
        tuple(curves),
        axes,
        (
            "regions are activation patterns on the plane from one test image towards two others, "
            "counted exactly",
        ),
        time.perf_counter() - began,
        tilings=tilings,
    )
