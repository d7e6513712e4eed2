"""Whether any bound or verdict is wrong: a thousand random networks against samples, tiny ones
against all their linear pieces.

    python bench/sound.py [--nets N]         # about twenty minutes; writes
    bench/results/sound.{json,md}

Every technique's bounds on every value are held against what the network does on points of the box:
corners, others, and where an attack ends. A property is then set near the least value seen, so that
a wrong "unsat" would show. Of tiny rectifier networks the least value is known exactly: a linear
program for each choice of its units' signs.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise, product

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.activations import MODULES
from morphogen.bounds.box import Box
from morphogen.bounds.crown import crown, lower_bound
from morphogen.bounds.dual import dual
from morphogen.bounds.interval import interval
from morphogen.bounds.lp import lp_minimum
from morphogen.bounds.techniques import TECHNIQUES
from morphogen.layers.linked import LKReLU
from morphogen.tracing.program import program
from morphogen.verification.pgd import attack
from morphogen.verification.unsafe import Unsafe
from morphogen.verification.verify import verify

# a few steps of ascent are enough to be wrong
HURRIED = {"alpha-CROWN": {"steps": 3}, "dual": {"steps": 5}}
CURVED = [
    *(module for module in MODULES if module is not nn.PReLU),
    LKReLU,
]
POINTS, TINY, NEAR = 400, 200, 1e-6
# by how much of itself a derivative may leave its range, which is found from slopes in 17 places
SLOPES = 0.1


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def network(draw: np.random.Generator) -> tuple[nn.Module, int]:
    """(a random one with two outputs, its inputs)."""
    inputs = width = int(draw.integers(1, 7))
    layers: list[nn.Module] = []
    for _ in range(int(draw.integers(1, 4))):
        chosen = CURVED[int(draw.integers(len(CURVED)))]
        if draw.random() < 0.3:
            layers.append(Residual(nn.Sequential(nn.Linear(width, width), nn.Tanh())))
            continue
        units = int(draw.integers(2, 17))
        layers += [nn.Linear(width, units), chosen()]
        width = units * 2 if chosen is LKReLU else units
    model = nn.Sequential(*layers, nn.Linear(width, 2))
    scale = float(draw.uniform(0.7, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model.double(), inputs


def a_box(draw: np.random.Generator, inputs: int) -> Box:
    centre = torch.from_numpy(draw.normal(size=(1, inputs)))
    radius = torch.from_numpy(10 ** draw.uniform(-2, 0.3, size=(1, inputs)))
    return Box(centre - radius, centre + radius)


def outside(values: Mapping[str, Tensor], boxes: Mapping[str, Box], within: float) -> int:
    """Values that are not in their boxes, nor nearly; what the network's own run rounds is allowed
    for.
    """
    found = 0
    for name, box in boxes.items():
        room = within * (1 + values[name].abs())
        found += int(((values[name] < box.lower - room) | (values[name] > box.upper + room)).sum())
    return found


def sampled(seed: int, counts: Counter[str]) -> None:
    """One network against points of its box."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    model, inputs = network(draw)
    box = a_box(draw, inputs)
    net, row = program(model, box.lower.repeat(2, 1)), torch.from_numpy(draw.normal(size=(1, 2)))
    lowest, _ = attack(net, Unsafe(row, torch.full((1,), -torch.inf)), box)
    points = torch.cat([box.points(POINTS, POINTS // 2, torch.default_generator), lowest])
    counts["networks"] += 1
    for name, technique in TECHNIQUES.items():
        boxes = technique.run(net, box, **HURRIED.get(name, {}))
        seen = technique.at(net, points)
        if technique.bounds == "derivatives":  # rounding is left out, and slopes are looked up
            counts["derivatives outside their ranges"] += outside(seen, boxes, SLOPES)
            continue
        counts["bounds"] += sum(2 * each.lower.numel() for each in boxes.values())
        counts["values outside their bounds"] += outside(seen, boxes, 1e-12)
    least = float((net(points) @ row.T).min())
    for limit in (least - float(10 ** draw.uniform(-4, 0)), least - NEAR, least):
        # of the program, so that the time is the search's alone; what it says is held against the
        # model
        verdict = verify(
            net, box, Unsafe(row, torch.tensor([limit], dtype=torch.float64)), seconds=0.5
        )
        counts[verdict.status] += 1
        with torch.no_grad():
            if verdict.status == "unsat":
                counts["wrong verdicts"] += limit >= least
            elif verdict.witness is not None:
                counts["wrong verdicts"] += (
                    float(model(verdict.witness[None]) @ row.T) > limit + 1e-12
                )
                there = (verdict.witness >= box.lower[0]) & (verdict.witness <= box.upper[0])
                counts["wrong verdicts"] += not bool(there.all())


def exact(model: nn.Sequential, box: Box, row: Tensor) -> float:
    """The least row . output of a plain rectifier network, over all signs of its units."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    sizes = [layer.out_features for layer in layers[:-1]]
    ends = list(zip(box.lower[0].tolist(), box.upper[0].tolist(), strict=True))
    least = np.inf
    for signs in product((0.0, 1.0), repeat=sum(sizes)):
        a, b, rows, limits, at = np.eye(len(ends)), np.zeros(len(ends)), [], [], 0
        for layer, size in zip(layers, [*sizes, 0], strict=True):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            a, b = weight @ a, weight @ b + bias
            if size:
                sign = np.array(signs[at : at + size])
                rows.append((1 - 2 * sign)[:, None] * a)
                limits.append(-(1 - 2 * sign) * b)
                a, b, at = sign[:, None] * a, sign * b, at + size
        cost = row.numpy()[0]
        optimum = linprog(
            cost @ a, A_ub=np.concatenate(rows), b_ub=np.concatenate(limits), bounds=ends
        )
        if optimum.status == 0:
            least = min(least, float(optimum.fun + cost @ b))
    return least


def tiny(seed: int, counts: Counter[str]) -> None:
    """One network against all its linear pieces, and the techniques against one another."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(10**6 + seed)
    sizes = [
        int(draw.integers(1, 4)),
        *([int(draw.integers(2, 7))] if draw.random() < 0.5 else [3, 3]),
    ]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    box, row = a_box(draw, sizes[0]), torch.from_numpy(draw.normal(size=(1, 2)))
    truth = exact(model, box, row)
    counts["tiny networks"] += 1
    for limit, status in ((truth - NEAR, "unsat"), (truth + NEAR, "sat")):
        verdict = verify(
            model, box, Unsafe(row, torch.tensor([limit], dtype=torch.float64)), 10.0
        ).status
        counts["wrong verdicts of tiny networks"] += verdict not in (status, "unknown")
        counts["tiny networks left open"] += verdict == "unknown"
    net, spec = program(model, box.lower.repeat(2, 1)), row[None]
    boxes = crown(net, box)
    loosest = float(lower_bound(net, interval(net, box), spec))
    plain, best = float(lower_bound(net, boxes, spec)), float(dual(net, boxes, spec).bound)
    tightest, _ = lp_minimum(net, boxes, row, torch.zeros(1))
    whole, _ = lp_minimum(net, boxes, row, torch.zeros(1), exact=True)
    chain = [plain, best, tightest, truth]
    counts["orders that do not hold"] += sum(a > b + NEAR for a, b in pairwise(chain)) + (
        loosest > truth
    )
    counts["searches over whole numbers that miss"] += abs(whole - truth) > 1e-5 * max(
        1.0, abs(truth)
    )
    counts["duals within 1e-3 of the linear program"] += tightest - best <= 1e-3 * max(
        1.0, abs(tightest)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", type=int, default=1000)
    nets = parser.parse_args().nets
    counts: Counter[str] = Counter()
    began = time.perf_counter()
    for seed in range(nets):
        sampled(seed, counts)
        if seed < TINY * nets // 1000:
            tiny(seed, counts)
    stored = {**counts, "minutes": (time.perf_counter() - began) / 60, "environment": environment()}
    (RESULTS / "sound.json").write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "sound.md").write_text(table(stored))
    print(table(stored))


ASKED = {
    "networks": 1000, "values outside their "
                      "bounds": 0, "wrong verdicts": 0, "wrong verdicts of tiny networks": 0,
    "orders that do not hold": 0, "searches over whole numbers that miss": 0,
}  # fmt: skip


def table(stored: dict[str, float]) -> str:
    """As Markdown."""
    lines = ["| | counted | asked |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {value:g} | {ASKED.get(name, '–')} |"
        for name, value in stored.items()
        if name != "environment"
    ]
    return "\n".join(
        [*lines, "", "; ".join(f"{k} {v}" for k, v in stored["environment"].items()), ""]
    )


if __name__ == "__main__":
    main()
