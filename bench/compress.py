"""How much smaller a network gets that keeps its function exactly: MNIST, two hidden layers, trained with an l1 penalty.

    python bench/compress.py [--seeds N] [--epochs E]   # about ten minutes a seed; writes bench/results/compress.{json,md}

Settings of the published tables: widths 100 and 100, SGD with momentum 0.9, batch 128, 121 epochs, the rate 0.01 divided by 10
every 50, inputs in [0, 1]. To reach: 30.8 % of the units at 97.14 % accuracy with l1 5e-4, 14.9 % at 98.14 % with 1e-4. The
penalty is a proximal step, so weights are zero and not nearly so. Nothing looks at the test part but the accuracy.

Source: Serra, Kumar, Ramalingam 2020 (arXiv 2001.00218), table 1; the grid of 2102.07804.
"""

import argparse
import json
import time
from collections import Counter
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.bounds import Box
from morphogen.data.load import load
from morphogen.policies.proximal import soft
from morphogen.resize.apply import count_parameters
from morphogen.transforms import compress

PRICES = (5e-4, 2e-4, 1e-4, 5e-5, 0.0)
# l1 -> published accuracy in percent, share of units that went
PUBLISHED = {5e-4: (97.14, 30.8), 1e-4: (98.14, 14.9), 0.0: (98.00, 0.0)}
WIDTH, RATE, MOMENTUM, BATCH, EVERY = 100, 0.01, 0.9, 128, 50


def trained(x: Tensor, y: Tensor, price: float, seed: int, epochs: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)]
    model = nn.Sequential(*layers)
    weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, EVERY, 0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            with torch.no_grad():
                # momentum takes the loss's gradient 1 / (1 - momentum) times as far, and the penalty must keep up with it
                far = optimizer.param_groups[0]["lr"] * price / (1 - MOMENTUM)
                for weight in weights if price else ():
                    weight.copy_(soft(weight, far))
        schedule.step()
    return model


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model(x.to(next(model.parameters()).dtype)).argmax(1) == y).double().mean())


def one(price: float, seed: int, epochs: int, parts: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    model = trained(*parts["train"], price, seed, epochs)
    began = time.perf_counter()
    box = Box(torch.zeros(1, 784), torch.ones(1, 784))
    small, certificate = compress(model, box, samples=parts["train"][0][:10_000])
    spent = time.perf_counter() - began
    rules = Counter(step.partition(": ")[2].partition(" (")[0] for step in certificate.steps)
    sizes = [count_parameters(net) for net in (model, small)]
    units = sum(layer.out_features for layer in small if isinstance(layer, nn.Linear)) - 10
    if unread := 2 * WIDTH - units - sum(rules.values()):
        rules["fed or read by nothing when frozen"] = unread
    return {
        "accuracy": accuracy(model, *parts["test"]), "accuracy after": accuracy(small, *parts["test"]),
        "units gone, %": 100 * (2 * WIDTH - units) / (2 * WIDTH), "parameters gone, %": 100 * (1 - sizes[1] / sizes[0]),
        "error": certificate.max_error, "seconds": spent, **{f"by {rule}": float(count) for rule, count in rules.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=121)
    given = parser.parse_args()
    data = load("mnist")

    def part(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(x).flatten(1).float(), torch.as_tensor(y)

    parts = {"train": part(data.x_train, data.y_train), "test": part(data.x_test, data.y_test)}
    runs = {str(price): [one(price, seed, given.epochs, parts) for seed in range(given.seeds)] for price in PRICES}
    stored = {"epochs": given.epochs, "seeds": given.seeds, "runs": runs, "environment": environment()}
    (RESULTS / "compress.json").write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "compress.md").write_text(table(stored))
    print(table(stored))


def table(stored: dict) -> str:
    """As Markdown, means over the seeds."""
    lines = [
        "| l1 | accuracy % (published) | units gone % (published) | parameters gone % | largest difference | seconds | by |",
        "|--:|--:|--:|--:|--:|--:|---|",
    ]
    for price, runs in stored["runs"].items():
        good, gone = (f" ({value:.4g})" for value in PUBLISHED[float(price)]) if float(price) in PUBLISHED else ("", "")
        mean = {key: fmean(run.get(key, 0.0) for run in runs) for run in runs for key in run}
        rules = ", ".join(f"{key.removeprefix('by ')} {value:g}" for key, value in mean.items() if key.startswith("by "))
        lines.append(
            f"| {float(price):g} | {mean['accuracy']:.2f}{good} | {mean['units gone, %']:.1f}{gone} | "
            f"{mean['parameters gone, %']:.1f} | {max(run['error'] for run in runs):.0e} | {mean['seconds']:.1f} | {rules} |"
        )
    told = f"{stored['seeds']} seeds, {stored['epochs']} epochs"
    return "\n".join([*lines, "", told + "; " + "; ".join(f"{k} {v}" for k, v in stored["environment"].items()), ""])


if __name__ == "__main__":
    main()
