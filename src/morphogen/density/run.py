"""The job of `morphogen fit TABLE --task density`: `run(frame, name) -> Density`.

Writes density.safetensors (see `density.files`), metrics.json, samples.csv and report.html.
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from morphogen.data.binary_sets import BINARY_SETS, binary_set
from morphogen.data.tables import read_table, table_ending
from morphogen.deadline import NEVER, Deadline
from morphogen.density.darn import Darn
from morphogen.density.estimator import Density
from morphogen.density.files import save
from morphogen.density.likelihood import divergence_of_units
from morphogen.density.search import Step
from morphogen.density.variables import UNKNOWN, Variables, fit_variables
from morphogen.edit.apply import count_parameters
from morphogen.environment import environment
from morphogen.errors import DataError, RunError
from morphogen.folder import Left, claimed_run
from morphogen.random_state import own_draws
from morphogen.record import DensityReport, DensityTrial, to_json, write_atomic
from morphogen.report.density import density_html, headline

_LAST = "report.html"  # with which a run is done
_SHOWN = 8  # rows, samples and hardest rows of the page
_SAMPLES = 1000  # rows of samples.csv
_SEARCH = 0.8  # share of the time limit that the search may take
_TRAININGS = 10  # that a search is made of, about
_LOOKED_AT = 2000  # test rows


def tables(source: str, test: str | None, seed: int) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """(name, training rows, test rows) of a name of BINARY_SETS or a file of a table; without
    `test`, a fifth of its rows are set aside.
    """
    if source in BINARY_SETS:
        if test is not None:
            raise DataError(f"test={test}: {source} has its own test part: leave it out")
        parts = binary_set(source)  # type: ignore[arg-type]
        names = [f"x{bit}" for bit in range(parts.train.shape[1])]
        rows = np.concatenate([parts.train, parts.valid])
        return source, pd.DataFrame(rows, columns=names), pd.DataFrame(parts.test, columns=names)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"there is no file {source!r}: give a table, or one of {', '.join(BINARY_SETS)}"
        )
    frame = read_table(path).rename(columns=str)
    name = path.name.removesuffix(table_ending(path) or "") or "table"
    if test is not None:
        held_out = read_table(Path(test).expanduser()).rename(columns=str)
        if not len(held_out):
            raise DataError(f"test={test}: there are no rows in it")
        return name, frame, held_out
    order = np.random.default_rng(seed).permutation(len(frame))
    held = len(frame) // 5
    parts_of = (frame.iloc[order[held:]], frame.iloc[order[:held]])
    return name, *(part.reset_index(drop=True) for part in parts_of)


def run(
    source: str,
    *,
    test: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    until: Deadline = NEVER,
    resume: bool = False,
    quiet: bool = False,
) -> tuple[Density, DensityReport]:
    """Learn, score the test rows, write the folder and say so. resume: go on with a run that was
    stopped in the same folder, from the last training that had ended.

    Raises `Left` at Ctrl-C, `RunError` where the folder holds a run that is done, or one of other
    rows or settings.
    """
    name, train, held = tables(source, test, seed)
    # what the test rows have that cannot be scored is said before anything is learned
    fit_variables(train).levels(held)
    console = Console(highlight=False, quiet=quiet, markup=False)
    left = until.left()
    seconds = None if left == np.inf else _SEARCH * left / _TRAININGS
    density = Density(random_state=seed, seconds=seconds)
    late = lambda: until.left() < (1 - _SEARCH) * left  # noqa: E731
    say = lambda step: console.print(f"  {_line(step)}")  # noqa: E731
    with claimed_run(name, out, resume) as folder:
        if (folder / _LAST).exists():
            raise RunError(f"out={folder} holds a run that is done: choose another folder")
        kept = folder / "search"
        console.print(f"{name}: {len(train):,} rows to learn from, {len(held):,} to test")
        try:
            density.fit(train, say=say, stopping=late, kept=kept)
        except KeyboardInterrupt as error:
            raise Left(folder, kept.exists()) from error
        for note in (*density.variables_.notes, *density.variables_.strange(held)):
            console.print(note)
        save(density, folder / "density.safetensors")
        with warnings.catch_warnings():
            # what is strange in the test rows was just said
            warnings.simplefilter("ignore", UserWarning)
            report = describe(density, train, held, name)
        write_atomic(folder / "metrics.json", to_json(report))
        rows = density.sample(_SAMPLES, random_state=seed)
        write_atomic(folder / "samples.csv", rows.to_csv(index=False))
        write_atomic(folder / _LAST, density_html(report))
        shutil.rmtree(kept, ignore_errors=True)
        console.print(f"{headline(report)}.\n{report.found}.")
        console.print(f"{folder}: density.safetensors, metrics.json, samples.csv, report.html")
        if quiet:
            Console(markup=False, highlight=False).print(str(folder), soft_wrap=True)
    return density, report


def describe(density: Density, train: pd.DataFrame, held: pd.DataFrame, name: str) -> DensityReport:
    """What the page shows."""
    looked = (held if len(held) else train).iloc[:_LOOKED_AT].reset_index(drop=True)
    log_prob, error = density.score_samples(looked, return_error=True)
    bits = -log_prob / np.log(2)
    levels = density.variables_.levels(looked)
    widths = density.variables_.log_widths(levels) / np.log(2)
    costs = (density.column_bits(looked) - widths).mean().fillna(0.0)
    alone = _alone(density.variables_, train, levels)
    independent = np.nansum(alone, 1) + widths.sum(1)
    names = tuple(density.variables_.frame(np.zeros((1, len(costs)), np.int64)).columns)
    hardest = np.argsort(-bits)[:_SHOWN]
    return DensityReport(
        name,
        (len(train), len(looked)),
        names,
        float(bits.mean()),
        float(bits.std() / len(bits) ** 0.5),
        float(np.sqrt((error**2).sum()) / len(error) / np.log(2)),
        float(independent.mean()),
        tuple(
            (column, float(cost), float(own))
            for column, cost, own in zip(costs.index, costs, np.nanmean(alone, 0), strict=True)
        ),
        tuple(_trial(step) for step in density.steps_),
        found(density.model_),
        _texts(looked[list(names)].iloc[:_SHOWN]),
        _texts(density.sample(_SHOWN)[list(names)]),
        tuple(
            (float(bits[row]), texts)
            for row, texts in zip(hardest, _texts(looked[list(names)].iloc[hardest]), strict=True)
        ),
        _stochastic(density, levels),
        density.variables_.notes,
        environment("cpu"),
    )


def _alone(variables: Variables, train: pd.DataFrame, levels: np.ndarray) -> np.ndarray:
    """What each column's level costs by itself in bits, (rows, groups), NaN where it is not known;
    one row more a level.
    """
    seen = variables.levels(train)
    costs = []
    for group, column in enumerate(variables.varying):
        counts = np.bincount(seen[:, group].clip(0), minlength=column.size) + 1
        costs.append(-np.log2(counts / counts.sum())[levels[:, group]])
    return np.where(levels == UNKNOWN, np.nan, np.stack(costs, 1))


def _stochastic(density: Density, levels: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Bits that each stochastic unit costs, of rows without gaps that training had not."""
    model = density.model_
    x = torch.as_tensor(density.variables_.bits(levels[(levels != UNKNOWN).all(1)]))
    with own_draws(0, model):
        each = divergence_of_units(model, x)
    return tuple(tuple(float(nats / np.log(2)) for nats in layer) for layer in each)


def found(model: Darn) -> str:
    """The network in words."""
    shape = model.shape
    visible = {
        "linear": "logistic regressions on the columns before",
        "made": "a masked perceptron on the columns before",
        "independent": "columns that see the stochastic units alone",
    }[shape.visible]
    units = " and ".join(str(size) for size in model.units)
    layers = f" in {model.stochastic} layers" if model.stochastic > 1 else ""
    behind = (
        f"with {units} stochastic units{layers} behind them"
        if units
        else "without stochastic units, which did not pay"
    )
    return f"Found: {visible}, {behind}, {count_parameters(model):,} parameters"


def _trial(step: Step) -> DensityTrial:
    loss = step.loss / float(np.log(2))
    return DensityTrial(step.what, loss, step.bits, step.parameters, step.seconds, step.layers)


def _line(step: Step) -> str:
    trial = _trial(step)
    layers = f" in {trial.layers} layers" if trial.layers > 1 else ""
    units = f", {trial.units} stochastic units{layers}" if trial.units else ""
    return f"{trial.name}{units}: {trial.loss:.3f} bits a held out row ({trial.seconds:.0f} s)"


def _texts(frame: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    def text(value: object) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return tuple(tuple(text(value) for value in row) for row in frame.itertuples(index=False))
