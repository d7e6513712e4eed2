"""How complex is the shallow form of a deep network, of a residual one, formally and in fact?

Random networks of two inputs, equal units in layers of different depth, with and without skips.
Formally: the terms of the difference of maxima before anything is pruned. In fact: the cells of the
network, of its later layers alone, its different affine functions, and the terms of the one maximum
after pruning.

Source: An et al. 2017 (arXiv 1703.10355), abstract: deeper networks, and residual ones, have much
more complex representations with a single hidden layer. Figures beside ours are those of the
specification's pilot: medians over ten other random networks.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from statistics import median

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box
from morphogen.experiments.shared.page import Paper, page
from morphogen.linear_regions.piecewise import piecewise
from morphogen.linear_regions.regions import regions
from morphogen.record import Claim, Curve, Reproduction
from morphogen.transforms.shallow.difference import formal_terms
from morphogen.transforms.shallow.maximum import maximum
from morphogen.transforms.shallow.shallow import certified

# widths, skips -> cells, deep patterns, affine functions, terms after pruning, log2 of the formal
# terms (the larger list)
PILOT: dict[tuple[tuple[int, ...], bool], tuple[float, ...]] = {
    ((12,), False): (70, 1, 70, 20, 0),
    ((6, 6), False): (60, 13.5, 60, 32, 3),
    ((4, 4, 4), False): (32, 8.5, 28.5, 23.5, 10.7),
    ((4, 4, 4), True): (32.5, 12, 32.5, 24, 12.7),
    ((3, 3, 3, 3), False): (24.5, 9.5, 14, 18, 21.1),
    ((3, 3, 3, 3), True): (28, 11.5, 28, 23.5, 35.2),
    ((2,) * 6, False): (9, 3.5, 1, 9, 36.8),
    ((2,) * 6, True): (15, 8.5, 15, 13, 154),
    ((24,), False): (259.5, 1, 259.5, 54, 0),
    ((12, 12), False): (233, 54, 233, 154.5, 6.5),
    ((8, 8, 8), False): (237, 104.5, 237, 197, 41),
    ((8, 8, 8), True): (234, 95.5, 234, 188, 46),
    ((6, 6, 6, 6), False): (138.5, 49, 138.5, 117, 139),
    ((6, 6, 6, 6), True): (177.5, 83.5, 177.5, 127.5, 185),
}
FIGURES = (
    "cells",
    "patterns of later layers",
    "affine functions",
    "terms of the maximum",
    "log2 of the formal terms",
)


DRAWN = (FIGURES[0], FIGURES[3], FIGURES[4])
PAPER = Paper(
    "deep-to-shallow",
    "From deep to shallow: terms, formal and in fact",
    "arXiv 1703.10355, abstract",
    {figure: ("hidden layers", figure) for figure in DRAWN},
)
NOTES = (
    "medians over the seeds; formal terms are those of both lists, the pilot's of the longer one",
    "the abstract's ordering, deeper and residual networks more complex, is one of formal terms: "
    "there it holds",
    "at equal units, random networks have FEWER cells the deeper they are; skips bring back a part "
    "of them",
)
Shape = tuple[tuple[int, ...], bool]
"""Widths of the hidden layers, and whether there are skips."""


@dataclass(frozen=True)
class Config:
    """Weights from N(0, 1.4^2 / fan in), biases from N(0, 1/4), the box from -3 to 3."""

    seeds: int = 10
    shapes: tuple[Shape, ...] = tuple(PILOT)
    scale: float = 1.4
    radius: float = 3.0


SMOKE = Config(
    shapes=tuple(shape for shape in PILOT if sum(shape[0]) == 12 and len(shape[0]) in (1, 3))
)


class Stream(nn.Module):
    """Layers of ReLUs of one width; with skips each but the first adds to what it is given."""

    def __init__(self, widths: tuple[int, ...], skips: bool, config: Config) -> None:
        super().__init__()
        sizes = (2, *widths, 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.skips = skips
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=config.scale / layer.in_features**0.5)
            nn.init.normal_(layer.bias, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, out = self.layers
        for number, layer in enumerate(hidden):
            h = torch.relu(layer(x))
            x = x + h if self.skips and number else h
        result: Tensor = out(x)
        return result


def one(shape: Shape, seed: int, config: Config) -> tuple[tuple[float, ...], float]:
    """(the figures, the largest difference of the maximum from the network)."""
    torch.manual_seed(seed)
    model = Stream(*shape, config).double().requires_grad_(False)
    ends = torch.full((1, 2), config.radius)
    net = piecewise(model, Box(-ends, ends))
    cells = regions(net)
    made = maximum(net, cells, 20.0).prune()
    later = len(cells.patterns[:, shape[0][0] :].unique(dim=0)) if len(shape[0]) > 1 else 1
    figures = (len(cells), later, cells.n_pieces, made.n_terms, formal_terms(net))
    return figures, certified(model, net, made, "", "measured").max_error


Medians = Mapping[Shape, Mapping[str, float]]
"""Of each figure over the seeds, by the network's shape."""


def figure_claims(middle: Medians) -> list[Claim]:
    """Every figure beside that of the pilot."""
    return [
        Claim(
            f"{_named(shape)}: {figure}",
            PILOT[shape][FIGURES.index(figure)],
            middle[shape][figure],
            source="the specification's pilot",
        )
        for figure, shape in product(FIGURES, middle)
    ]


def exact_claims(worst: float, middle: Medians) -> list[Claim]:
    """The maximum is the network, and has about as many terms as the pilot's."""
    claims = [Claim("largest difference of the maximum from its network", 0.0, worst, high=1e-9)]
    shape = ((3, 3, 3, 3), True)
    if shape in middle:
        terms = middle[shape]["terms of the maximum"]
        claims.append(Claim("terms for four residual layers of three", 23.5, terms, high=24.0))
    return claims


def ordering(middle: Medians) -> list[Claim]:
    """Deeper networks, and residual ones, beside their twins."""
    claims = []
    for figure, (plain, other) in product((FIGURES[4], FIGURES[0]), _pairs(tuple(middle))):
        ahead = middle[other][figure] - middle[plain][figure]
        name = f"{_named(other)} beside {_named(plain)}: more {figure}"
        claims.append(Claim(name, None, ahead, 1e-9, source=PAPER.source))
    return claims


def drawn(middle: Medians) -> list[Curve]:
    """By depth at equal units, where there are several."""
    curves = []
    totals = sorted({sum(widths) for widths, _ in middle})
    for figure, total, skips in product(DRAWN, totals, (False, True)):
        shapes = [shape for shape in middle if (sum(shape[0]), shape[1]) == (total, skips)]
        if len(shapes) > 1:
            depth = tuple(float(len(widths)) for widths, _ in shapes)
            values = tuple(middle[shape][figure] for shape in shapes)
            name = f"{total} units, {'residual' if skips else 'plain'}"
            curves.append(Curve(figure, name, depth, values))
    return curves


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 10) -> Reproduction:
    """Both modes are the same; the paper has no experiments. seeds: at least ten unless it is a
    smoke run.
    """
    config = replace(SMOKE if smoke else Config(), seeds=1 if smoke else max(10, seeds))
    began = time.perf_counter()
    middle: dict[Shape, dict[str, float]] = {}
    worst = 0.0
    for shape in config.shapes:
        runs = [one(shape, seed, config) for seed in range(config.seeds)]
        columns = zip(*(figures for figures, _ in runs), strict=True)
        middle[shape] = dict(zip(FIGURES, map(median, columns), strict=True))
        worst = max(worst, *(error for _, error in runs))
    claims = [*figure_claims(middle), *exact_claims(worst, middle), *ordering(middle)]
    shown = {"seeds": config.seeds, "scale": config.scale, "radius": config.radius}
    return page(PAPER, shown, began, claims, drawn(middle), NOTES)


def _named(shape: Shape) -> str:
    return f"{'-'.join(map(str, shape[0]))}{' residual' if shape[1] else ''}"


def _pairs(shapes: tuple[Shape, ...]) -> list[tuple[Shape, Shape]]:
    """What the paper compares: a plain network with the next deeper one of as many units, and with
    its residual twin.
    """
    pairs = []
    for shape in shapes:
        widths, skips = shape
        if skips:
            continue
        deeper = [
            other
            for other in shapes
            if not other[1] and sum(other[0]) == sum(widths) and len(other[0]) > len(widths)
        ]
        if deeper:
            pairs.append((shape, min(deeper, key=lambda other: len(other[0]))))
        if (widths, True) in shapes:
            pairs.append((shape, (widths, True)))
    return pairs
