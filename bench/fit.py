"""The table of the README: `fit` beside the same shape from scratch and scikit-learn, five seeds,
one run.

    python bench/fit.py                      # everything, about two hours on two cores
    python bench/fit.py digits adult         # some rows
    python bench/fit.py mnist --seeds 1      # fewer seeds, said in the file
    python bench/fit.py mnist --more         # the seeds that are not there yet

Each (data, seed) is one process, so that import and tracing are in the whole-process time. Results
go to bench/results/fit.json as they come; bench/results/fit.md is made from it. Nothing here looks
at a test score to decide.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

# data: (score to reach, most parameters = the budget, most seconds, higher is better)
TARGETS: dict[str, tuple[float, int, int, bool]] = {
    "digits": (0.978, 5_000, 20, True),
    "adult": (0.858, 10_000, 60, True),
    "california-housing": (0.50, 40_000, 90, False),
    "mnist": (0.993, 150_000, 600, True),
    "fashion-mnist": (0.915, 300_000, 900, True),
}
LEGEND = """Accuracy in percent, RMSE for california-housing; mean ± standard deviation over seeds. "Met" asks for the score,
the parameters of every seed, the seconds, at most 0.3 points (RMSE: 0.003) behind the same shape from scratch, and at most
twice its time."""
# The grid of twelve takes a quarter of an hour on adult, and hours on the image sets.
BASELINES = {"digits"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--more", action="store_true", help="keep the runs that are there")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "fit.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for data in arguments.data:
        now = environment()
        commit = now["commit"]
        before = stored.get(data, {"environment": now, "runs": []})
        runs = before["runs"] if arguments.more else []
        for one in runs:
            one.setdefault("commit", before["environment"]["commit"])
        stored[data] = {"environment": now, "runs": runs}
        for seed in sorted({*range(arguments.seeds)} - {one["seed"] for one in runs}):
            runs.append({**run(data, seed), "commit": commit})
            now["commit"] = ", ".join(dict.fromkeys(one["commit"] for one in runs))
            path.write_text(json.dumps(stored, indent=1) + "\n")
            (RESULTS / "fit.md").write_text(table(stored))
            print(
                data,
                seed,
                [
                    (r["name"], r["score"], r["parameters"], r["seconds"])
                    for r in stored[data]["runs"][-1]["table"]
                ],
            )


def run(data: str, seed: int) -> dict[str, Any]:
    """The figures of one run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "fit",
            data,
            "--seed",
            str(seed),
            "--budget",
            str(TARGETS[data][1]),
            "--quiet",
            "--out",
            f"{folder}/run",
        ]
        compared = data in BASELINES and seed == 0
        arguments += ["--baselines" if compared else "--no-baselines"]
        began = time.perf_counter()
        command = [sys.executable, "-c", "from morphogen.cli.app import main; main()", *arguments]
        subprocess.run(command, check=True)
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
    kept = (
        "seed",
        "test_score",
        "validation_score",
        "parameters",
        "seconds",
        "rounds",
        "steps",
        "table",
        "recipe",
    )
    return {
        **{k: metrics[k] for k in kept},
        "command": " ".join(arguments[:-2]),
        "process_seconds": time.perf_counter() - began,
    }


def environment() -> dict[str, str]:
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    # the results that this very run writes are no change of the code
    changed = [
        *git[:3],
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":/",
        ":(exclude,top)bench/results",
    ]
    dirty = subprocess.run(changed, capture_output=True, text=True).stdout
    return {
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip()
        + ("+changes" if dirty.strip() else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hardware": f"{cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} of them used",
    }


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def table(stored: dict[str, Any]) -> str:
    """The stored figures as Markdown, misses marked."""
    lines = [
        "| data | seeds | score (target) | same shape from scratch | parameters (most) | seconds "
        "(most) | time / scratch "
        "| met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data, (target, most, seconds, higher) in TARGETS.items():
        if not (runs := stored.get(data, {}).get("runs")):
            continue
        grown = [r["table"][0] for r in runs]
        scratch = [r["table"][1] for r in runs]
        scores, controls = ([row["score"] for row in rows] for rows in (grown, scratch))
        ratio = mean(f["seconds"] / s["seconds"] for f, s in zip(grown, scratch, strict=True))
        behind = (mean(controls) - mean(scores)) * (1 if higher else -1)
        misses = [
            name
            for name, missed in {
                "score": (mean(scores) < target) == higher and mean(scores) != target,
                "parameters": max(f["parameters"] for f in grown) > most,
                "seconds": mean(f["seconds"] for f in grown) > seconds,
                "beside scratch": behind > 0.003,
                "time": ratio > 2,
            }.items()
            if missed
        ]
        lines.append(
            f"| {data} | {len(runs)} | {show(scores, higher)} ({shown(target, higher)}) | "
            f"{show(controls, higher)} "
            f"| {mean(f['parameters'] for f in grown):,.0f} ({most:,}) | "
            f"{mean(f['seconds'] for f in grown):.0f} ({seconds}) "
            f"| {ratio:.2f} | {'missed: ' + ', '.join(misses) if misses else 'yes'} |"
        )
    others = [
        f"| {data} | {row['name']} | {shown(row['score'], TARGETS[data][3])} "
        f"| {'–' if row['parameters'] is None else format(row['parameters'], ',')} | "
        f"{row['seconds']:.1f} |"
        for data, value in stored.items()
        for run in value["runs"][:1]
        for row in run["table"][2:]
    ]
    if others:
        lines += [
            "",
            "Scikit-learn on the same split (seed 0):",
            "",
            "| data | model | score | parameters | seconds |",
            "|---|---|---|---|---|",
            *others,
        ]
    seen = {tuple(sorted(value["environment"].items())) for value in stored.values()}
    lines += ["", *("; ".join(f"{k} {v}" for k, v in environment) for environment in sorted(seen))]
    lines += ["", LEGEND]
    return "\n".join(lines) + "\n"


def show(values: list[float], percent: bool) -> str:
    spread = (
        f" ± {(100 if percent else 1) * stdev(values):.{2 if percent else 3}f}"
        if len(values) > 1
        else ""
    )
    return f"{shown(mean(values), percent)}{spread}"


def shown(value: float, percent: bool) -> str:
    return f"{100 * value:.2f}" if percent else f"{value:.3f}"


if __name__ == "__main__":
    main()
