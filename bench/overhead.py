"""What a controller costs: a training step under it between changes, and a hundred changes of one
feature.

    python bench/overhead.py                 # about a minute; writes
    bench/results/overhead.{json,md}

The network is a perceptron 784 - 512 - 512 - 10 under AdamW, batch 128. To reach: a step at most
1.02 times that of a network that never met a controller, and the changes less than 5 % of a run of
3,000 steps.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.edit.edit import Grow, Shrink
from morphogen.policies.controller import Controller
from morphogen.policies.policy import Observation, Proposal
from morphogen.threads import threads
from morphogen.training.train import generator
from turns import in_turns, ratio

STEPS, CHANGES, TURNS = 3_000, 100, 300


class OneByOne:
    """A policy that adds one feature and takes one away, in turns."""

    def start(self) -> dict[str, Any]:
        return {}

    def decide(
        self, observation: Observation, memory: dict[str, Any], generator: torch.Generator
    ) -> tuple[list[Proposal], dict[str, Any], bool]:
        width, size = next(iter(observation.sizes.items()))
        edit = (
            Grow(width, 1)
            if observation.round % 2
            else Shrink(width, [int(torch.randint(size, (1,), generator=generator))])
        )
        return [Proposal(edit, "its turn")], memory, False


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return model, torch.optim.AdamW(model.parameters(), fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def controlled(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Controller:
    def losses(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x), y, reduction="none").detach()

    return Controller(model, OneByOne(), losses, x[:2], optimizers=[optimizer])


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@threads(1)
def main() -> None:
    x, y = torch.randn(128, 784), torch.randint(10, (128,))
    plain, grown = build(), build()
    controller = controlled(*grown, x, y)
    for number in range(10):  # back at the first size, by way of five larger ones
        step(*grown, x, y)
        controller.step(number + 1, 0.0, generator(number))
    runs = {"plain": partial(step, *plain, x, y), "controlled": partial(step, *grown, x, y)}
    times = in_turns(runs, TURNS, 20)
    changes = [
        timed(partial(controller.step, number + 1, 0.0, generator(number)))
        for number in range(CHANGES)
    ]
    run = STEPS * median(timed(runs["controlled"]) for _ in range(100))
    figures = {
        "step under a controller / plain step": ratio(times, "controlled", "plain"),
        "100 changes / 3,000 steps": sum(changes) / run,
    }
    limits = dict(zip(figures, (1.02, 0.05), strict=True))
    (RESULTS / "overhead.json").write_text(
        json.dumps({**figures, "environment": environment()}, indent=1) + "\n"
    )
    lines = ["| | measured | at most | met |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {value:.4f} | {limits[name]} | {'yes' if value <= limits[name] else 'no'} |"
        for name, value in figures.items()
    ]
    about = "A change includes a look at 128 validation examples. " + "; ".join(
        f"{k} {v}" for k, v in environment().items()
    )
    (RESULTS / "overhead.md").write_text("\n".join([*lines, "", about, ""]))
    print("\n".join([*lines, about]))


if __name__ == "__main__":
    main()
