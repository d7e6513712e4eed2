"""What a linked activation costs beside its peers.

    python bench/linked.py                   # about three minutes; writes
    bench/results/linked.{json,md}

One layer: forward and backward of LK-ReLU beside ReLU, batch norm with ReLU, and SELU, on equal
outputs. The output of a linked activation is twice its input, so its peers read tensors of twice
the size.

Whole networks at equal multiplications: four 3 x 3 convolutions, linked with 32 units each, plain
with sqrt(2) times as many. The article's ratios, 2.09 (batch norm) and 1.38 (SELU), are wall times
of whole runs on a GPU.

The identity W [z+; z-] = (W1 - W2)/2 z + (W1 + W2)/2 |z| of LK-ReLU and the linear layer behind it:
what it would save.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.layers.linked import LKReLU
from morphogen.threads import threads
from turns import in_turns, ratio

SHAPES = {
    "256 x 1,024": (256, 1024),
    "64 x 64 x 16 x 16": (64, 64, 16, 16),
    "64 x 64 x 32 x 32": (64, 64, 32, 32),
}
# peer: (what is asked of its time over that of LK-ReLU, source)
ASKED = {"ReLU": (1 / 1.1, "per byte of output"), "batch norm + ReLU": (2.0, ""), "SELU": (1.4, "")}


def passes(module: nn.Module, z: Tensor, gradient: Tensor) -> None:
    """Forward and backward; nothing is accumulated, as inside a network."""
    torch.autograd.grad(module(z), z, gradient)


def layers(shape: tuple[int, ...]) -> dict[str, float]:
    """The time of each peer over that of LK-ReLU, all with outputs of one size."""
    doubled = (shape[0], 2 * shape[1], *shape[2:])
    norm = nn.BatchNorm1d(doubled[1]) if len(shape) == 2 else nn.BatchNorm2d(doubled[1])
    peers = {
        "ReLU": nn.ReLU(),
        "batch norm + ReLU": nn.Sequential(norm, nn.ReLU()),
        "SELU": nn.SELU(),
    }
    gradient = torch.randn(doubled)
    runs: dict[str, Callable[[], Any]] = {
        name: partial(passes, peer, torch.randn(doubled, requires_grad=True), gradient)
        for name, peer in peers.items()
    }
    runs["linked"] = partial(passes, LKReLU(), torch.randn(shape, requires_grad=True), gradient)
    times = in_turns(runs, turns=max(20, min(300, 30_000_000 // gradient.numel())))
    return {name: ratio(times, name, "linked") for name in peers}


# batch, units, outputs
BEHIND = ((256, 512, 10), (256, 512, 512), (2048, 1024, 10), (2048, 1024, 1024))


def by_definition(z: Tensor, weight: Tensor) -> Tensor:
    return F.linear(LKReLU()(z), weight)


def by_identity(z: Tensor, weight: Tensor) -> Tensor:
    first, second = weight.chunk(2, 1)
    return torch.addmm(F.linear(z, (first - second) / 2), z.abs(), ((first + second) / 2).T)


def behind(batch: int, units: int, outputs: int) -> tuple[float, float]:
    """The time of the layer by its definition over that by the identity: (forward and backward,
    forward).
    """
    z, weight = (
        torch.randn(batch, units, requires_grad=True),
        torch.randn(outputs, 2 * units, requires_grad=True),
    )
    gradient = torch.randn(batch, outputs)

    def both(way: Callable[..., Tensor]) -> None:
        torch.autograd.grad(way(z, weight), (z, weight), gradient)

    def forward(way: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            way(z, weight)

    turns = max(15, min(300, int(1e9 / (batch * units * (outputs + 100)))))
    ratios = []
    for run in (both, forward):
        times = in_turns(
            {"definition": partial(run, by_definition), "identity": partial(run, by_identity)},
            turns,
        )
        ratios.append(ratio(times, "definition", "identity"))
    return ratios[0], ratios[1]


def network(
    units: int, activation: Callable[[], nn.Module], widen: int = 1, norm: bool = False
) -> nn.Sequential:
    """Images (batch, 3, 16, 16) -> logits. widen: how many features an activation makes of one."""
    parts: list[nn.Module] = []
    before = 3
    for _ in range(4):
        parts += [
            nn.Conv2d(before, units, 3, padding=1),
            *([nn.BatchNorm2d(units)] if norm else []),
            activation(),
        ]
        before = widen * units
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def networks() -> dict[str, float]:
    """The time of a training step of each network over that of the linked one, at equal
    multiplications.
    """
    wide = round(32 * math.sqrt(2))
    models = {
        "linked": network(32, LKReLU, widen=2),
        "ReLU": network(wide, nn.ReLU),
        "batch norm + ReLU": network(wide, nn.ReLU, norm=True),
        "SELU": network(wide, nn.SELU),
    }
    x = torch.randn(64, 3, 16, 16)
    runs = {
        name: partial(step, model, torch.optim.SGD(model.parameters(), 1e-4), x)
        for name, model in models.items()
    }
    times = in_turns(runs, turns=60)
    return {name: ratio(times, name, "linked") for name in models if name != "linked"}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@threads(1)
def main() -> None:
    torch.manual_seed(0)
    shapes = {name: layers(shape) for name, shape in SHAPES.items()}
    whole = networks()
    identity = {
        f"{batch:,} x {units:,} -> {outputs:,}": behind(batch, units, outputs)
        for batch, units, outputs in BEHIND
    }
    result = {
        "layers": shapes,
        "networks": whole,
        "identity": identity,
        "environment": environment(),
    }
    (RESULTS / "linked.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        "| forward and backward, time / LK-ReLU on equal outputs | " + " | ".join(ASKED) + " |",
        "|---|" + "--:|" * len(ASKED),
    ]
    lines += [
        f"| {name} | {' | '.join(f'{ratios[peer]:.2f}' for peer in ASKED)} |"
        for name, ratios in shapes.items()
    ]
    lines.append(
        "| asked | " + " | ".join(f"at least {least:.2f}" for least, _ in ASKED.values()) + " |"
    )
    lines.append(
        "| four convolutions, training step, equal multiplications | "
        + " | ".join(f"{whole[p]:.2f}" for p in ASKED)
        + " |"
    )
    lines.append("| the article, whole runs on a GPU | – | 2.09 | 1.38 |")
    lines += [
        "",
        "| linear layer behind LK-ReLU, time / by the identity | forward and backward | forward |",
        "|---|--:|--:|",
    ]
    lines += [
        f"| {name} | {both:.2f} | {forward:.2f} |" for name, (both, forward) in identity.items()
    ]
    lines += ["", "; ".join(f"{k} {v}" for k, v in environment().items())]
    (RESULTS / "linked.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
