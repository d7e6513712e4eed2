"""How many linear regions a second: cut by their corners, and by reverse search.

    python bench/regions.py   # about two minutes; writes bench/results/regions.{json,md}

Random networks, two outputs, on the box from -3 to 3, one thread, the best of three
runs. Asked: 100,000 cells a second with two inputs, 5,000 with three to six. A
pilot, on such a machine: 8,000 to 15,000 in two dimensions (polygon clipping in numpy), 87 to 189
by a tree of linear programs. Where it is quick, Euler's formula is looked at and reverse search
counts again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from fit import RESULTS, environment
from morphogen.linear_regions.regions import regions
from morphogen.threads import threads

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from piecewise_nets import BUILD, drawn, plain
from test_regions import faces

NETS = (
    (1, (50, 50)),
    (2, (50, 50)),
    (2, (100, 100)),
    (2, (32, 32, 32, 32)),
    (2, (200, 200)),
    (2, (64, 64, 64, 64)),
    (3, (16, 16, 16)),
    (3, (32, 32)),
    (4, (16, 16)),
    (5, (14, 14)),
    (6, (14, 8)),
    (6, (10, 10)),
)


@threads(1)
def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = []
    for inputs, widths in NETS:
        BUILD["bench"] = lambda inputs=inputs, widths=widths: plain(inputs, widths, 2)
        model, box = drawn("bench", 0)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            cells = regions(model, box, max_cells=10_000_000)
            times.append(time.perf_counter() - began)
        row = {
            "inputs": inputs,
            "widths": "-".join(map(str, widths)),
            "cells": len(cells),
            "cells a second": len(cells) / min(times),
        }
        if len(cells) < 6000 and inputs in (2, 3):
            row["Euler"] = sum(count * (-1) ** k for k, count in enumerate(faces(cells)))
        if len(cells) < 6000:
            began = time.perf_counter()
            searched = regions(model, box, method="reverse search")
            row["reverse search: cells"], row["reverse search: cells a second"] = (
                len(searched),
                len(searched) / (time.perf_counter() - began),
            )
        rows.append(row)
        print(row, flush=True)
    stored = {"rows": rows, "environment": environment()}
    (RESULTS / "regions.json").write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "regions.md").write_text(table(stored))
    print(table(stored))


def table(stored: dict) -> str:
    lines = [
        "| inputs | widths | cells | cells a second (asked) | by reverse search | cells a second | "
        "corners - edges + ... |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in stored["rows"]:
        asked = {1: "", 2: " (100,000)"}.get(row["inputs"], " (5,000)")
        searched = (
            (f"{row['reverse search: cells']:,}", f"{row['reverse search: cells a second']:.0f}")
            if "reverse search: cells" in row
            else ("", "")
        )
        lines.append(
            f"| {row['inputs']} | {row['widths']} | {row['cells']:,} | "
            f"{row['cells a second']:,.0f}{asked} | {searched[0]} | "
            f"{searched[1]} | {row.get('Euler', '')} |"
        )
    told = "; ".join(f"{k} {v}" for k, v in stored["environment"].items())
    return "\n".join(
        [*lines, "", f"one thread, best of three; Euler's formula asks for 1. {told}", ""]
    )


if __name__ == "__main__":
    main()
