"""What rows cost: the density that a search finds beside a tuned MADE and independent columns.

    python bench/density.py                       # all sets, one seed; goes on where it was stopped
    python bench/density.py --only mushrooms,dna-nade --seeds 3

Sets of MORPHOGEN_DATA (density_binary), in their published parts: the search and the choice of
MADE's width and dropout look at the valid part, figures are of the test part, in nats a row.
Likelihoods are exact without stochastic units, else by importance sampling from q with 500 draws a
row. The same defaults for every set. Results go to results/density.json as they come, and
results/density.md is made from them.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

from morphogen.data.binary_sets import BINARY_SETS
from morphogen.density.darn import Darn, DarnShape
from morphogen.density.groups import Groups
from morphogen.density.learn import Training, learn
from morphogen.density.likelihood import Likelihood, bound, log_likelihood
from morphogen.density.mixture import learn_orders, log_likelihood_of
from morphogen.density.search import Found, first, search
from morphogen.environment import environment
from morphogen.experiments.darn.uci import ORDERS, rows_of

RESULTS = Path(__file__).parent / "results" / "density.json"
MOST_TESTED = 10_000  # test rows
SAMPLES = 500
MADE = [
    DarnShape((), 0, "made", visible_hidden=(width,), dropout=dropout)
    for width in (100, 500)
    for dropout in (0.0, 0.2, 0.5)
]
# (published DARN, what is to be reached, processor seconds)
WANTED: Mapping[str, tuple[float, float, float]] = {
    "mushrooms": (9.55, 9.52, 60),
    "dna-nade": (81.04, 81.1, 60),
    "adult-binary": (13.19, 13.20, 90),
    "nips": (274.68, 275.0, 120),
    "connect4": (11.91, 12.0, 600),
    "ocr-letters": (28.17, 28.5, 1200),
}


@lru_cache(maxsize=1)
def searched(name: str, seed: int, seconds: float | None) -> tuple[Found, float]:
    """The search and its processor seconds."""
    train, valid, _ = rows_of(name, MOST_TESTED)
    began = time.process_time()
    how = Training(seed=seed, seconds=seconds)
    one = search(train, valid, Groups.of_bits(train.shape[1]), how)
    return one, time.process_time() - began


def found(name: str, seed: int, seconds: float | None) -> dict[str, Any]:
    one, spent = searched(name, seed, seconds)
    *_, test = rows_of(name, MOST_TESTED)
    torch.manual_seed(seed)
    shape = one.model.shape
    return {
        **figures(log_likelihood(one.model, test, SAMPLES)),
        "bound": bound(one.model, test),
        "seconds": spent,
        "visible": shape.visible,
        "dropout": shape.dropout,
        "units": sum(one.model.units),
        "layers": one.model.stochastic,
        "parameters": sum(p.numel() for p in one.model.parameters()),
        "trials": len(one.steps),
    }


def several(name: str, seed: int, seconds: float | None) -> dict[str, Any]:
    """What the search found, with three more of its shape that read variables in other orders."""
    one, spent = searched(name, seed, seconds)
    train, valid, test = rows_of(name, MOST_TESTED)
    began = time.process_time()
    mixture = learn_orders(one.model, train, valid, Training(seed=seed, seconds=seconds), ORDERS)
    spent += time.process_time() - began
    torch.manual_seed(seed)
    parameters = sum(p.numel() for model in mixture.models for p in model.parameters())
    return {
        **figures(log_likelihood_of(mixture, test, SAMPLES)),
        "seconds": spent,
        "units": sum(one.model.units),
        "parameters": parameters,
    }


def made(name: str, seed: int, seconds: float | None) -> dict[str, Any]:
    """Of six, the one that is best on the valid part."""
    train, valid, test = rows_of(name, MOST_TESTED)
    began = time.process_time()
    best: tuple[float, Darn] | None = None
    for shape in MADE:
        model = first(Groups.of_bits(train.shape[1]), shape, train, seed)
        learn(model, train, valid, Training(seed=seed, seconds=seconds))
        loss = bound(model, valid)
        if best is None or loss < best[0]:
            best = (loss, model)
    assert best is not None
    model = best[1]
    return {
        **figures(log_likelihood(model, test)),
        "seconds": time.process_time() - began,
        "units": 0,
        "dropout": model.shape.dropout,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def independent(name: str, seed: int, seconds: float | None) -> dict[str, Any]:
    train, valid, test = rows_of(name, MOST_TESTED)
    rows = torch.cat([train, valid])
    means = (rows.sum(0) + 1) / (len(rows) + 2)
    costs = -(test * means.log() + (1 - test) * (1 - means).log()).sum(1)
    return figures(Likelihood(-costs.numpy(), np.zeros(len(test)), np.ones(len(test)), 1))


def figures(likelihood: Likelihood) -> dict[str, Any]:
    return {
        "loss": -likelihood.mean,
        "data_error": likelihood.data_error,
        "sampling_error": likelihood.monte_carlo_error,
    }


MODELS = {"morphogen": found, "orders": several, "MADE": made, "independent": independent}


def summary(results: Mapping[str, dict[str, Any]]) -> str:
    rows = pd.DataFrame(results.values())
    lines = [
        "# What rows cost",
        "",
        "Nats a row of the test part (at most 10,000 rows), ± its standard error over rows; in "
        "brackets the standard deviation over seeds. Level: within one standard error of rows.",
        "",
        "| set | seeds | independent | MADE, tuned | ours | against MADE | in four orders | found "
        "| bits | seconds, ours / MADE |",
        "|---|--:|--:|--:|--:|---|--:|---|--:|--:|",
    ]
    ahead = level = 0
    for name, group in rows.groupby("set", sort=False):
        by = dict(list(group.groupby("model")))
        if not {"morphogen", "MADE", "independent"} <= set(by):
            continue
        own, other = by["morphogen"], by["MADE"]
        difference = own["loss"].mean() - other["loss"].mean()
        error = own["data_error"].mean()
        verdict = "ahead" if difference < 0 else "level" if difference < error else "behind"
        ahead += verdict == "ahead"
        level += verdict == "level"
        lines.append(
            f"| {name} | {len(own)} | {by['independent']['loss'].mean():.2f} | {_mean(other)} | "
            f"{_mean(own)} | {verdict} | {_mean(by['orders']) if 'orders' in by else ''} | "
            f"{', '.join(own['visible'])} | "
            f"{', '.join(map(str, own['units'].astype(int)))} | {own['seconds'].mean():.0f} / "
            f"{other['seconds'].mean():.0f} |"
        )
    lines += ["", f"Ahead of MADE on {ahead}, level on {level}.", "", "## Beside published figures"]
    lines += ["", "| set | published DARN | to reach | ours | within | processor seconds |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for name, (published, wanted, limit) in WANTED.items():
        own = rows[(rows["set"] == name) & (rows["model"] == "morphogen")]
        if len(own):
            lines.append(
                f"| {name} | {published} | {wanted} | {_mean(own)} | {limit:.0f} s | "
                f"{own['seconds'].mean():.0f} |"
            )
    return "\n".join([*lines, "", str(environment("cpu")), ""])


def _mean(rows: pd.DataFrame) -> str:
    spread = f" ({rows['loss'].std():.3f})" if len(rows) > 1 else ""
    return f"{rows['loss'].mean():.3f} ± {rows['data_error'].mean():.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of sets, with commas")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="of each training, at most")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.results
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(given.seeds):
        for name in given.only.split(",") if given.only else BINARY_SETS:
            for model in given.models.split(","):
                key = f"{name}/{seed}/{model}"
                if key in results:
                    continue
                one = MODELS[model](name, seed, given.seconds)
                results[key] = {"set": name, "seed": seed, "model": model, **one}
                path.write_text(json.dumps(results, indent=1))
                print(key, one, flush=True)
    path.with_suffix(".md").write_text(summary(results))


if __name__ == "__main__":
    main()
