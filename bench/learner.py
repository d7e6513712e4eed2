"""What each part of the learner brings: variants of `fit` on the tables of bench/tables.py.

    python bench/learner.py --only heloc,crx     # all tables without --only; goes on where it was

Decisions about defaults are made on this bench: it never sees a test part. Of at most 3,000 rows
the training part of split 0 (four fifths, as in bench/tables.py) is split once more, three quarters
to one. The fixed shape, two layers of 64, learns from the same teacher for as many steps.
"""

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import nn

import tables
from morphogen.data.dataset import Dataset
from morphogen.data.from_frame import from_frame
from morphogen.environment import environment
from morphogen.fitting import distillation, teacher
from morphogen.fitting import problem as problems
from morphogen.fitting.fit import fit
from morphogen.fitting.problem import Problem, Settings, threads_for
from morphogen.fitting.recipe import Recipe, recipe_for
from morphogen.fitting.scaling import to_unit
from morphogen.fitting.schedule import Phase, optimizer_for
from morphogen.training.train import State, train

RESULTS = Path(__file__).parent / "results" / "learner.json"
MOST_ROWS = 3000
FIXED = (64, 64)
_STEPS = 2000


def learned(data: Dataset, **settings: Any) -> nn.Module:
    return fit(data, Settings(**settings)).plain


def without(kind: str, data: Dataset) -> nn.Module:
    """The teacher without one of its kinds, on plain columns or on bins."""
    others = {name: part for name, part in teacher.KINDS.items() if not name.startswith(kind)}
    with patch.object(teacher, "KINDS", others):
        return learned(data)


def on_lines(data: Dataset) -> nn.Module:
    """Rows between rows made of what the network reads, bins and all."""

    def between(x: np.ndarray, prepare: object, count: int, seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, 8])
        first, second = draw.integers(len(x), size=(2, count))
        share = draw.random((count, 1), dtype=np.float32)
        return np.asarray(x[first] * share + x[second] * (1 - share))

    with patch.object(distillation, "between", between):
        return learned(data)


def every_feature(data: Dataset) -> nn.Module:
    """Without the selection of input features."""

    def recipe(*given: Any) -> Recipe:
        return replace(recipe_for(*given), feature_penalty=0.0)

    with patch.object(problems, "recipe_for", recipe):
        return learned(data)


def fixed(data: Dataset) -> nn.Module:
    """A shape that nobody searched for, taught by the same teacher."""
    settings = Settings()
    problem = Problem(data, None, settings, distillation.distil(data, settings.seed))
    sizes = (problem.x.shape[1], *FIXED)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, units) in enumerate(zip(sizes, FIXED, strict=False)):
        layers[f"hidden{number}"] = nn.Linear(inputs, units)
        layers[f"relu{number}"] = nn.ReLU()
    model = nn.Sequential(layers | {"output": nn.Linear(FIXED[-1], problem.outputs)})
    recipe = problem.recipe
    rounds = max(1, _STEPS // recipe.steps)
    with threads_for(problem):
        state = State(model, optimizer_for(model, recipe), settings.seed)
        phase = Phase(0, rounds * recipe.steps)
        train(
            state,
            problem.batches,
            problem.objective,
            partial(phase.rate, recipe=recipe),
            steps=recipe.steps,
            rounds=rounds,
        )
    if problem.regression:
        to_unit(model, problem.scaling)
    return model.eval()


VARIANTS: Mapping[str, Callable[[Dataset], nn.Module]] = {
    "default": learned,
    "labels alone": partial(learned, distillation=False),
    "teacher without boosting": partial(without, "boosting"),
    "teacher without linear": partial(without, "linear"),
    "rows on lines between encoded rows": on_lines,
    "every feature stays": every_feature,
    "fixed shape 64, 64, same teacher": fixed,
}


def measured(model: nn.Module, data: Dataset) -> dict[str, float]:
    with torch.no_grad():
        x = torch.as_tensor(data.x_test).to(next(model.parameters()).dtype)
        out = model.cpu()(x).double()
    count = sum(p.numel() for p in model.parameters())
    figures = (
        tables.scores(out.softmax(1).numpy(), data.y_test)
        if data.task == "classification"
        else tables.errors(out[:, 0].numpy(), data.y_test)
    )
    return {**figures, "parameters": count}


def summary(results: Mapping[str, dict[str, Any]]) -> str:
    """Each variant beside the default, in Markdown."""
    rows = pd.DataFrame(results.values())
    losses = rows.pivot_table(index="table", columns="variant", values="loss").dropna()
    sizes = rows.pivot_table(index="table", columns="variant", values="parameters")
    lines = [
        "# What each part of the learner brings",
        "",
        f"{len(losses)} tables, training rows alone. Ratio: the variant's loss by the default's, "
        "geometric mean, with a 95 % interval over tables.",
        "",
        "| variant | ratio | tables where the default is better | parameters, median |",
        "|---|--:|--:|--:|",
    ]
    for name in VARIANTS:
        if name not in losses:
            continue
        ratio = np.log(losses[name] / losses["default"])
        room = 1.96 * ratio.std() / np.sqrt(len(ratio))
        ends = np.exp([ratio.mean() - room, ratio.mean() + room])
        better = int((ratio > 0).sum())
        lines.append(
            f"| {name} | {np.exp(ratio.mean()):.3f} ({ends[0]:.3f} to {ends[1]:.3f}) | "
            f"{better} of {len(ratio)} | {sizes[name].median():.0f} |"
        )
    return "\n".join([*lines, "", str(environment("cpu")), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of tables, with commas")
    names = parser.parse_args().only
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    torch.set_num_threads(1)
    for name in names.split(",") if names else [*tables.CLASSIFICATION, *tables.REGRESSION]:
        frame, target, task = tables.load(name, MOST_ROWS)
        train_rows, _ = tables.parts(frame, target, task, 0)
        inside, held = tables.parts(train_rows, target, task, 100, 0.25)
        data = from_frame(inside, target, test=held, task=task)
        for variant, make in VARIANTS.items():
            key = f"{name}/{variant}"
            if key in results:
                continue
            figures = measured(make(data), data)
            results[key] = {"table": name, "variant": variant, **figures}
            RESULTS.write_text(json.dumps(results, indent=1))
            print(key, figures, flush=True)
    RESULTS.with_suffix(".md").write_text(summary(results))


if __name__ == "__main__":
    main()
