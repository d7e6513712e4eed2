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
from pathlib import Path

import torch
from torch import Tensor, nn

from fit import RESULTS, environment
from morphogen.bounds.box import Box
from morphogen.errors import Unsupported
from morphogen.linear_regions.regions import regions
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", type=int, default=350)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    began = time.perf_counter()

    def note(what: str, **figures: float) -> None:
        row = rows.setdefault(what, {"nets": 0.0})
        row["nets"] += 1
        for key, value in figures.items():
            row[key] = (
                max(row.get(key, 0.0), value)
                if key.startswith("largest")
                else row.get(key, 0.0) + value
            )

    for number in range(given.nets):
        name, seed = list(BUILD)[number % len(BUILD)], number // len(BUILD)
        model, box = uneven(name, seed)
        x = box.points(POINTS, 0, torch.default_generator)
        small, certificate = compress(
            model,
            box,
            rules=None
            if number % 2
            else ("inactive", "constant", "unread", "duplicate", "dependent", "collapse", "skip"),
        )
        gone = 1 - sum(p.numel() for p in small.parameters()) / sum(
            p.numel() for p in model.parameters()
        )
        note(
            "compress",
            **{
                "largest difference": off(small(x).detach(), model(x)),
                "parameters gone": gone,
                "steps": len(certificate.steps),
            },
        )
        model, box = drawn(name, seed)
        x = box.points(POINTS, 0, torch.default_generator)
        far = 30 * (2 * torch.rand(POINTS // 10, box.lower.shape[1], dtype=torch.float64) - 1)
        f, beyond = model(x), model(far)
        for form in FORMS:
            try:
                made, _ = shallow(model, box, form)
            except Unsupported:  # more layers or terms than the form is for
                continue
            pruned = made.prune()
            size = beyond.abs().max().clamp_min(1.0)
            wrong = max(
                float((made.lower(far) - beyond).max()),
                float((beyond - made.upper(far)).max()),
                0.0,
            )
            note(
                form,
                **{
                    "largest difference": off(made(x), f),
                    "largest difference pruned": off(pruned(x), f),
                    "largest breach outside": wrong / float(size),
                    "terms": made.n_terms,
                    "pruned": pruned.n_terms,
                    "largest of to_torch": off(pruned.to_torch()(x[:5000]).detach(), f[:5000]),
                },
            )
        cells, walked = (
            regions(model, box),
            regions(model, box, method="reverse search") if number % 4 == 0 else None,
        )
        note(
            "regions",
            cells=len(cells),
            **(
                {"largest disagreement": abs(len(cells) - len(walked)), "walked": 1.0}
                if walked
                else {}
            ),
        )
        if number % 20 == 19:
            print(
                number + 1,
                {key: row.get("largest difference") for key, row in rows.items()},
                flush=True,
            )
    for row in rows.values():
        for key in ("parameters gone", "steps", "terms", "pruned", "cells"):
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
