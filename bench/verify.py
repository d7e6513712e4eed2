"""How many verification problems are solved, and whether any verdict is wrong.

    python bench/verify.py [--jobs N] [--seconds S] [NAME...]

Up to two hours a core; what bench/results/verify/ already has is not run again.

The problems of VNN-COMP 2022 that the data folder holds (`MORPHOGEN_DATA`), with the verdicts that
its tools agree on. Linear bounds: the output of a 6 x 200 network on 100 boxes at once.
"""

import argparse
import csv
import gzip
import json
import os
from pathlib import Path
from statistics import median

import torch
from torch import nn

from fit import RESULTS, environment
from morphogen.bounds.box import linf_ball
from morphogen.bounds.crown import crown
from morphogen.tracing.program import program
from morphogen.verification.instances import Result, run_instances
from turns import in_turns

# problems that must be solved, of how many; seconds of the median of those that are
ASKED = {"test": 5, "acasxu": 180, "mnist_fc": 55}
MEDIAN = 2.0
BOXES = "boxes"  # linear bounds of a hundred at once
FOLDER = RESULTS / "verify"


def truths(data: Path, name: str) -> dict[tuple[str, str], str]:
    """(network, property) -> "sat", "unsat" or something else where the tools do not agree."""
    with gzip.open(data / "ground_truth.csv.gz", "rt", newline="") as file:
        return {
            (row["onnx"], row["vnnlib"]): row["truth"]
            for row in csv.DictReader(file)
            if row["benchmark"] == name
        }


def summary(
    name: str, results: list[Result], known: dict[tuple[str, str], str]
) -> dict[str, float]:
    solved = [result for result in results if result.status in ("sat", "unsat")]
    judged = [(result.status, known[result.network, result.prop]) for result in solved]
    wrong = [status for status, truth in judged if truth in ("sat", "unsat") and truth != status]
    return {
        "problems": len(results),
        "asked": ASKED[name],
        "solved": len(solved),
        "wrong": len(wrong),
        "sat": sum(result.status == "sat" for result in solved),
        "judged": sum(truth in ("sat", "unsat") for _, truth in judged),
        "median s": median(result.seconds for result in solved),
        "longest s": max(result.seconds for result in solved),
    }


def many(count: int = 100) -> dict[str, float]:
    """Seconds for linear bounds of a 6 x 200 network on as many boxes at once."""
    torch.manual_seed(0)
    layers = [part for _ in range(5) for part in (nn.Linear(200, 200), nn.ReLU())]
    model, x = (
        nn.Sequential(nn.Linear(784, 200), nn.ReLU(), *layers, nn.Linear(200, 10)),
        torch.rand(count, 784),
    )
    fastest = {}
    for dtype in (torch.float32, torch.float64):
        net, box = program(model, x, dtype), linf_ball(x.to(dtype), 0.01, 0.0, 1.0)
        times = in_turns({"run": lambda net=net, box=box: crown(net, box)}, turns=3, warm_up=1)
        fastest[str(dtype).removeprefix("torch.")] = min(times["run"])
    return fastest


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "names", nargs="*", default=[*ASKED, BOXES], metavar="NAME", help=", ".join([*ASKED, BOXES])
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, help="for each problem; by default those of its listing"
    )
    given = parser.parse_args()
    data = Path(os.environ["MORPHOGEN_DATA"]) / "vnncomp2022"
    stored = (
        json.loads((FOLDER / "verify.json").read_text())
        if (FOLDER / "verify.json").exists()
        else {}
    )
    FOLDER.mkdir(exist_ok=True)
    for name in ASKED.keys() & given.names:
        listing = data / "benchmarks" / name / "instances.csv"
        results = run_instances(
            listing,
            FOLDER / f"{name}.csv",
            given.seconds,
            given.jobs,
            callback=lambda r, left: print(left, r, flush=True),
        )
        limit = {"limit s": given.seconds or "as listed"}
        stored[name] = {
            **limit,
            **summary(name, results, truths(data, name)),
            "environment": environment(),
        }
    if BOXES in given.names:
        stored[BOXES] = many()
    (FOLDER / "verify.json").write_text(json.dumps(stored, indent=1) + "\n")
    (FOLDER / "verify.md").write_text(table(stored))
    print(table(stored))


def table(stored: dict[str, dict[str, float]]) -> str:
    """As Markdown."""
    lines = [
        f"| problems | of them | limit s | solved | asked | sat | wrong, of known | median s "
        f"({MEDIAN:g} asked) | longest s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ASKED:
        if name in stored:
            f = stored[name]
            cells = (
                f["problems"],
                f["limit s"],
                f["solved"],
                f["asked"],
                f["sat"],
                f"{f['wrong']} of {f['judged']}",
            )
            lines.append(
                f"| {name} | "
                + " | ".join(map(str, cells))
                + f" | {f['median s']:.2f} | {f['longest s']:.1f} |"
            )
    if times := stored.get(BOXES):
        lines += [
            "",
            f"Linear bounds of a 6 x 200 network on 100 boxes at once: "
            f"{times['float32']:.2f} s in float32, "
            f"{times['float64']:.2f} s in float64 (2 asked).",
        ]
    about = next(f["environment"] for f in stored.values() if "environment" in f)
    return "\n".join([*lines, "", "; ".join(f"{k} {v}" for k, v in about.items()), ""])


if __name__ == "__main__":
    main()
