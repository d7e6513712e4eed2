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
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from morphogen.bounds.box import Box
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


@dataclass(frozen=True)
class Config:
    """Weights from N(0, 1.4^2 / fan in), biases from N(0, 1/4), the box from -3 to 3."""

    seeds: int = 10
    shapes: tuple[tuple[tuple[int, ...], bool], ...] = tuple(PILOT)
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


def one(
    shape: tuple[tuple[int, ...], bool], seed: int, config: Config
) -> tuple[tuple[float, ...], float]:
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


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 10) -> Reproduction:
    """Both modes are the same; the paper has no experiments. seeds: at least ten unless it is a
    smoke run.
    """
    config = replace(SMOKE if smoke else Config(), seeds=1 if smoke else max(10, seeds))
    began = time.perf_counter()
    runs = {
        shape: [one(shape, seed, config) for seed in range(config.seeds)] for shape in config.shapes
    }
    middle = {
        shape: [median(run[0][k] for run in made) for k in range(len(FIGURES))]
        for shape, made in runs.items()
    }
    claims = [
        Claim(
            f"{_named(shape)}: {figure}",
            PILOT[shape][k],
            middle[shape][k],
            source="the specification's pilot",
        )
        for k, figure in enumerate(FIGURES)
        for shape in config.shapes
    ]
    worst = max(error for made in runs.values() for _, error in made)
    claims.append(
        Claim("largest difference of the maximum from its network", 0.0, worst, high=1e-9)
    )
    if ((3, 3, 3, 3), True) in middle:
        claims.append(
            Claim(
                "terms for four residual layers of three",
                23.5,
                middle[(3, 3, 3, 3), True][3],
                high=24.0,
            )
        )
    source = "arXiv 1703.10355, abstract"
    for k, figure in ((4, FIGURES[4]), (0, FIGURES[0])):
        for (one_, skips), (other, more) in _pairs(config.shapes):
            ahead = middle[other, more][k] - middle[one_, skips][k]
            claims.append(
                Claim(
                    f"{_named((other, more))} beside {_named((one_, skips))}: more {figure}",
                    None,
                    ahead,
                    1e-9,
                    source=source,
                )
            )
    curves = []
    for k in (0, 3, 4):
        for total in sorted({sum(widths) for widths, _ in config.shapes}):
            for skips in (False, True):
                some = [
                    shape for shape in config.shapes if sum(shape[0]) == total and shape[1] == skips
                ]
                if len(some) > 1:
                    name = f"{total} units, {'residual' if skips else 'plain'}"
                    depth = tuple(float(len(widths)) for widths, _ in some)
                    curves.append(
                        Curve(FIGURES[k], name, depth, tuple(middle[shape][k] for shape in some))
                    )
    return Reproduction(
        "deep-to-shallow",
        "From deep to shallow: terms, formal and in fact",
        source,
        "default",
        {"seeds": str(config.seeds), "scale": str(config.scale), "radius": str(config.radius)},
        tuple(claims),
        tuple(curves),
        {FIGURES[k]: ("hidden layers", FIGURES[k]) for k in (0, 3, 4)},
        (
            "medians over the seeds; formal terms are those of both lists, the pilot's of the "
            "longer one",
            "the abstract's ordering, deeper and residual networks more complex, is one of formal "
            "terms: there it holds",
            "at equal units, random networks have FEWER cells the deeper they are; skips bring "
            "back a part of them",
        ),
        time.perf_counter() - began,
    )


def _named(shape: tuple[tuple[int, ...], bool]) -> str:
    return f"{'-'.join(map(str, shape[0]))}{' residual' if shape[1] else ''}"


def _pairs(
    shapes: tuple[tuple[tuple[int, ...], bool], ...],
) -> list[tuple[tuple[tuple[int, ...], bool], tuple[tuple[int, ...], bool]]]:
    """What the paper compares: a plain network with the next deeper one of as many units, and with
    its residual twin.
    """
    found = []
    for shape in shapes:
        deeper = [
            s
            for s in shapes
            if not s[1] and sum(s[0]) == sum(shape[0]) and len(s[0]) > len(shape[0])
        ]
        if not shape[1]:
            found += [(shape, min(deeper, key=lambda s: len(s[0])))] if deeper else []
            found += [(shape, (shape[0], True))] if (shape[0], True) in shapes else []
    return found
