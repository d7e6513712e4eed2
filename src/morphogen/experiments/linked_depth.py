"""Fifty convolutions of four units: with which activation do they learn anything?

The article's table 2: a strided convolution, fifty more of width 4, one linear layer, on CIFAR-10. ReLU, PReLU, Swish and
LK-Swish stay at chance there; linked and SELU nets train. All of its nets start from Glorot's weights, which happen to suit
SELU and shrink the others at every layer; so every linked net is run from the start that belongs to it, too.

faithful: the article's 13 nets, 200 epochs of all rows in one order, decided by the test part as its best epoch was. default:
rows in a new order each epoch, fewer of them and fewer epochs, a validation part, and the five nets with other starts.

Source: Riera Molina & Pujol 2017 (arXiv 1712.02609), table 2 and the code beside it; asymmetric padding of the first
convolution as there. Differs: PReLU has one slope a channel where the original has one a position.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.optim import Adam

from morphogen.experiments.images import Images, images
from morphogen.experiments.linked_nets import ORIGINAL, STARTED, Fit, Kind, fit, middle, started
from morphogen.experiments.over_seeds import over_seeds
from morphogen.record import Claim, Curve, Reproduction
from morphogen.train import Batches

# (best run, median of runs), the best epoch on the test part
PUBLISHED = {
    "ReLU": (0.1, 0.1), "LK-ReLU": (0.5667, 0.5607), "ReLU √2": (0.1, 0.1), "PReLU": (0.1, 0.1), "LK-PReLU": (0.5458, 0.5210),
    "PReLU √2": (0.1, 0.1), "BN+ReLU": (0.5202, 0.5114), "SELU": (0.5654, 0.5643), "LK-SELU": (0.5876, 0.5670),
    "SELU √2": (0.5707, 0.5703), "Swish": (0.1, 0.1), "LK-Swish": (0.1, 0.1), "Swish √2": (0.1, 0.1),
}  # fmt: skip
AT_CHANCE = ("ReLU", "PReLU", "Swish", "LK-Swish")
TRAINS = ("LK-ReLU, looks linear", "LK-Swish, looks linear")


@dataclass(frozen=True)
class Config:
    """rows: of the training part that are used, 0 for all."""

    data: str = "cifar10"
    seeds: int = 1
    faithful: bool = False
    layers: int = 50
    width: int = 4
    rows: int = 10_000
    epochs: int = 6
    batch: int = 32
    rate: float = 1e-3


SMOKE = {"data": "digits", "layers": 6, "rows": 320, "epochs": 1}


def network(kind: Kind, config: Config, classes: int) -> nn.Sequential:
    """Images (batch, 3, 32, 32) -> logits (batch, classes)."""
    units = kind.units(config.width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(pad=nn.ZeroPad2d((2, 3, 2, 3)))  # as Keras's "same" has it
    for number in range(config.layers + 1):
        layer = nn.Conv2d(kind.widen * units, units, 3, padding=1) if number else nn.Conv2d(3, units, 7, stride=2)
        layers[f"conv{number}"] = started(layer, kind, reads=number > 0)
        if kind.norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(units, eps=1e-3, momentum=0.01)
        layers[f"act{number}"] = kind.build(units)
    layers["flatten"] = nn.Flatten()
    layers["output"] = started(nn.Linear(kind.widen * units * 16 * 16, classes), kind, reads=True)
    return nn.Sequential(layers)


def one(kind: Kind, config: Config, data: Images, seed: int) -> Fit:
    torch.manual_seed(seed)
    model = network(kind, config, data.classes)
    x, y = (part[: config.rows or None] for part in data.train)
    batches = Batches(x, y, config.batch, seed, shuffled=not config.faithful)
    optimizer = Adam(model.parameters(), config.rate, eps=1e-8, fused=True)
    return fit(model, optimizer, batches, data, lambda step: config.rate, batches.per_epoch, config.epochs)


def claims(runs: Sequence[dict[str, Fit]], faithful: bool) -> list[Claim]:
    """The article's table, then who trains."""
    found = []
    for key in runs[0]:
        source = "table 2, median of best epochs" if key in PUBLISHED else ""
        target = PUBLISHED[key][1] if key in PUBLISHED else None
        if faithful:
            value = middle([run[key].best for run in runs])
            found.append(Claim(f"{key}: best epoch on the test part", target, value, source=source))
            continue
        low = 0.2 if key in TRAINS else None
        high = 0.12 if key in AT_CHANCE else None
        name = f"{key}: test accuracy at the best validation"
        found.append(over_seeds(name, [run[key].chosen for run in runs], target, low, high, source))
        found.append(over_seeds(f"{key}: test accuracy at the end", [run[key].last for run in runs]))
    return found


def reproduce(faithful: bool = False, smoke: bool = False, seeds: int = 1) -> Reproduction:
    """All nets on the same batches. smoke: six layers, on digits."""
    config = Config(seeds=seeds, faithful=faithful)
    config = replace(config, rows=0, epochs=200) if faithful else config
    config = replace(config, **SMOKE) if smoke else config  # type: ignore[arg-type]
    kinds = ORIGINAL if faithful else ORIGINAL | STARTED
    began = time.perf_counter()
    runs = []
    for seed in range(seeds):
        data = images(config.data, seed, held=0.0 if faithful else 0.1)
        runs.append({name: one(kind, config, data, seed) for name, kind in kinds.items()})
    curves, notes = [], []
    for name, found in runs[0].items():
        curves.append(Curve("accuracy", name, tuple(range(1, config.epochs + 1)), found.path))
        layers = tuple(range(1, len(found.gradients) + 1))
        curves.append(Curve("gradients", name, layers, tuple(max(norm, 1e-30) for norm in found.gradients)))
        curves.append(Curve("dead", name, tuple(range(1, len(found.dead) + 1)), found.dead))
        first, last = found.gradients[0], found.gradients[-1]
        notes.append(
            f"{name}: {found.parameters} parameters, {found.seconds:.0f} s, gradient norms {first:.1e} (first layer) and "
            f"{last:.1e} (last) at the start, {100 * sum(found.dead) / len(found.dead):.0f} % of units dead at the end"
        )
    axes = {
        "accuracy": ("epoch", "test accuracy"), "gradients": ("layer", "gradient norm at the start"),
        "dead": ("layer", "share of dead units at the end"),
    }  # fmt: skip
    return Reproduction(
        "linked-depth", f"{data.title}: {config.layers} layers of {config.width} units",
        "Linked neurons (arXiv 1712.02609), table 2", "faithful" if faithful else "default",
        {key: str(value) for key, value in vars(config).items()},
        tuple(claims(runs, faithful)), tuple(curves), axes, (*data.notes, *notes), time.perf_counter() - began,
    )  # fmt: skip
