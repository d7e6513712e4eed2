"""Are compressed and shallow networks exactly what they were? Random networks, 100,000 points each,
float64.

    python bench/exact.py [--nets 350]   # about ten minutes; writes bench/results/exact.{json,md}

Plain, leaky, residual, concatenating networks of one and two outputs, with the weights of the
specification's table; those that are compressed have units that are never on, always on, multiples
of each other or without weights. Asked: at most 1e-9 inside the box, and outside it, 10 times as
far, no lower bound above the network and no upper one below.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.bounds.box import Box
from morphogen.errors import Unsupported
from morphogen.linear_regions.regions import regions
from morphogen.threads import threads
from morphogen.transforms.compress import compress
from morphogen.transforms.shallow.shallow import FORMS, shallow

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from piecewise_nets import BUILD, drawn

POINTS = 100_000


def uneven(name: str, seed: int) -> tuple[nn.Module, Box]:
    """With units for every rule."""
    model, box = drawn(name, seed)
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)][:-1]:
        kind = torch.randint(7, layer.bias.shape)
        layer.bias += 30.0 * (kind < 2) - 30.0 * (kind == 2)
        layer.weight[kind == 3] = 0.0
        layer.weight[kind == 4] = 2 * layer.weight[:1]
        layer.bias[kind == 4] = 2 * layer.bias[0]
    return model, box


def off(made: Tensor, true: Tensor) -> float:
    return float((made - true).abs().max() / true.abs().max().clamp_min(1.0))


Rows = dict[str, dict[str, float]]
"""Figures summed over networks, or the largest of them, by what they are of."""
SUMMED = ("parameters gone", "steps", "terms", "pruned", "cells")
# with a skip, which is left out unless asked for
ALL_RULES = ("inactive", "constant", "unread", "duplicate", "dependent", "collapse", "skip")


def note(rows: Rows, what: str, figures: dict[str, float]) -> None:
    row = rows.setdefault(what, {"nets": 0.0})
    row["nets"] += 1
    for key, value in figures.items():
        before = row.get(key, 0.0)
        row[key] = max(before, value) if key.startswith("largest") else before + value


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def points(box: Box) -> Tensor:
    share = torch.rand(POINTS, box.lower.shape[1], dtype=torch.float64)
    return box.lower + box.width * share


def compressed(name: str, seed: int, rules: tuple[str, ...] | None) -> dict[str, float]:
    model, box = uneven(name, seed)
    x = points(box)
    small, certificate = compress(model, box, rules=rules)
    return {
        "largest difference": off(small(x).detach(), model(x)),
        "parameters gone": 1 - parameters(small) / parameters(model),
        "steps": len(certificate.steps),
    }


def shallow_forms(model: nn.Module, box: Box) -> Iterator[tuple[str, dict[str, float]]]:
    """Every form that the network is not too large for, inside the box and far outside."""
    x = points(box)
    far = 30 * (2 * torch.rand(POINTS // 10, box.lower.shape[1], dtype=torch.float64) - 1)
    inside = model(x)
    outside = model(far)
    size = float(outside.abs().max().clamp_min(1.0))
    for form in FORMS:
        try:
            made, _ = shallow(model, box, form)
        except Unsupported:  # more layers or terms than the form is for
            continue
        pruned = made.prune()
        above = float((made.lower(far) - outside).max())
        below = float((outside - made.upper(far)).max())
        yield (
            form,
            {
                "largest difference": off(made(x), inside),
                "largest difference pruned": off(pruned(x), inside),
                "largest breach outside": max(above, below, 0.0) / size,
                "terms": made.n_terms,
                "pruned": pruned.n_terms,
                "largest of to_torch": off(pruned.to_torch()(x[:5000]).detach(), inside[:5000]),
            },
        )


def counted(model: nn.Module, box: Box, walk: bool) -> dict[str, float]:
    """Regions, and where asked the same by reverse search."""
    cells = len(regions(model, box))
    if not walk:
        return {"cells": cells}
    walked = len(regions(model, box, method="reverse search"))
    return {"cells": cells, "largest disagreement": abs(cells - walked), "walked": 1.0}


@threads(1)
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", type=int, default=350)
    given = parser.parse_args()
    rows: Rows = {}
    began = time.perf_counter()
    for number in range(given.nets):
        seed, kind = divmod(number, len(BUILD))
        name = list(BUILD)[kind]
        note(rows, "compress", compressed(name, seed, None if number % 2 else ALL_RULES))
        model, box = drawn(name, seed)
        for form, figures in shallow_forms(model, box):
            note(rows, form, figures)
        note(rows, "regions", counted(model, box, number % 4 == 0))
        if number % 20 == 19:
            largest = {key: row.get("largest difference") for key, row in rows.items()}
            print(number + 1, largest, flush=True)
    for row in rows.values():
        for key in SUMMED:
            if key in row:
                row[f"mean {key}"] = row.pop(key) / row["nets"]
    stored = {"rows": rows, "seconds": time.perf_counter() - began, "environment": environment()}
    (RESULTS / "exact.json").write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "exact.md").write_text(table(stored))
    print(table(stored))


def table(stored: dict) -> str:
    lines = ["| what | networks | figures |", "|---|--:|---|"]
    for what, row in stored["rows"].items():
        told = ", ".join(f"{key} {value:.3g}" for key, value in row.items() if key != "nets")
        lines.append(f"| {what} | {row['nets']:.0f} | {told} |")
    about = (
        f"{POINTS:,} points inside and {POINTS // 10:,} up to ten times as far outside each; "
        f"asked: differences of at most 1e-9"
    )
    told = "; ".join(f"{k} {v}" for k, v in stored["environment"].items())
    return "\n".join([*lines, "", f"{about}. {stored['seconds']:.0f} s; {told}", ""])


if __name__ == "__main__":
    main()
