"""How long it takes to decide which units of a trained network have one sign on all images.

    python bench/stability.py   # about ten minutes, nearly all of it training; writes
    bench/results/stability.{json,md}

Perceptrons with two hidden layers of 400 and 800, SGD with an l1 penalty, the box of all images;
10,000 training images are looked at first. Asked: 2x400 with about 600 candidates (units that no
image shows on both sides) in under 10 s, 2x800 in under 60 s. Published: 113.6 to 118.6 s for 637
candidates of 2x400 on CIFAR-10 with a commercial solver (arXiv 2102.07804, log of its code). The
two networks of `relu_nets`, trained without a penalty: no unit has one sign, as published (18.4 s
for the second).
"""

import argparse
import json
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.experiments.compression.stable_nets import (
    Part,
    Training,
    accuracy,
    pixels,
    rows,
    trained,
)
from morphogen.threads import threads
from morphogen.transforms.compress import compress
from morphogen.verification.stability import ACTIVE, INACTIVE, UNDECIDED, UNSTABLE, stability

NETS = (
    ("mnist", (400, 400), 1e-4),
    ("mnist", (400, 400), 5e-4),
    ("mnist", (800, 800), 1e-4),
    ("mnist", (800, 800), 5e-4),
    ("cifar10", (400, 400), 1.75e-4),
    ("cifar10", (800, 800), 1.75e-4),
)


def published(path: Path) -> nn.Sequential:
    held = np.load(path)
    layers: list[nn.Module] = []
    flipped = held["W0"].shape[0] == 784  # (inputs, units), in all layers
    for number in range(len(held) // 2):
        weight, bias = (torch.from_numpy(held[f"{kind}{number}"]).float() for kind in "Wb")
        weight = weight.T if flipped else weight
        layer = nn.Linear(weight.shape[1], len(bias))
        layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def decided(name: str, model: nn.Sequential, x: Tensor, test: Part) -> dict[str, object]:
    box = pixels(x.shape[1])
    began = time.perf_counter()
    proved = stability(model, box, x[:10_000], seconds=60)
    seconds = time.perf_counter() - began
    how = Counter(how for signs in proved.units.values() for how in signs.how)
    began = time.perf_counter()
    _, certificate = compress(model, box, x[:10_000])
    return {
        "network": name,
        "accuracy": accuracy(model, test),
        "candidates": sum(how.values()) - how["sampling"],
        "active": proved.count(ACTIVE),
        "inactive": proved.count(INACTIVE),
        "both": proved.count(UNSTABLE),
        "undecided": proved.count(UNDECIDED),
        "seconds": seconds,
        "by": dict(how),
        "seconds by": dict(proved.seconds),
        "compress": certificate.reason,
        "compress: seconds": time.perf_counter() - began,
        "compress: difference": certificate.max_error,
    }


@threads(1)
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    epochs = parser.parse_args().epochs
    done = []
    folder = Path(os.environ.get("MORPHOGEN_DATA", "")) / "relu_nets" / "exactcompression"
    for path in sorted(folder.glob("*.npz")):
        parts = rows("mnist")
        done.append(
            decided(
                f"published {path.stem.split('_')[2]}",
                published(path),
                parts["train"][0],
                parts["test"],
            )
        )
        print(done[-1], flush=True)
    for data, widths, price in NETS:
        parts = rows(data)
        model = trained(parts["train"], Training(widths, epochs, price), 0)
        done.append(
            decided(
                f"{data} {widths[0]}-{widths[1]}, l1 {price:g}",
                model,
                parts["train"][0],
                parts["test"],
            )
        )
        print(done[-1], flush=True)
    stored = {"rows": done, "epochs": epochs, "environment": environment()}
    (RESULTS / "stability.json").write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "stability.md").write_text(table(stored))
    print(table(stored))


def table(stored: dict) -> str:
    lines = [
        "| network | accuracy % | candidates | active | inactive | both | undecided | seconds | "
        "decided by | compress: s | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|--:|---|",
    ]
    for row in stored["rows"]:
        by = ", ".join(f"{how} {count}" for how, count in row["by"].items() if how)
        lines.append(
            f"| {row['network']} | {row['accuracy']:.2f} | {row['candidates']} | {row['active']} "
            f"| {row['inactive']} | "
            f"{row['both']} | {row['undecided']} | {row['seconds']:.1f} | {by} | "
            f"{row['compress: seconds']:.1f} | "
            f"{row['compress']} |"
        )
    told = "; ".join(f"{k} {v}" for k, v in stored["environment"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{stored['epochs']} epochs, one thread, one run; asked: 10 s for 2x400, 60 s for "
            f"2x800. {told}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
