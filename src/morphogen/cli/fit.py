"""`morphogen fit`: learn a network of the right shape for a data set."""

import csv
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from morphogen.deadline import NEVER, Deadline


class Task(StrEnum):
    """What the target column asks for; density: how likely rows are, of a table without one."""

    classification = "classification"
    regression = "regression"
    density = "density"


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="digits, mnist, fashion-mnist, cifar10, adult, california-housing, a table (CSV, "
            "Parquet, Feather, JSON lines, Excel; also compressed), or a folder of images"
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="column to predict (files); several numeric ones with commas"),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(
            help="override what the target column suggests; density: learn how likely rows are"
        ),
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="file with the test rows; otherwise a fifth is set aside")
    ] = None,
    valid: Annotated[
        str | None, typer.Option(help="file with the rows that decide; otherwise some are held out")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="columns to leave out")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="the only columns to learn from")] = None,
    categorical: Annotated[
        list[str] | None, typer.Option(help="columns whose numbers are names")
    ] = None,
    numeric: Annotated[
        list[str] | None, typer.Option(help="columns of numbers, whatever they look like")
    ] = None,
    date: Annotated[list[str] | None, typer.Option(help="columns of dates")] = None,
    group: Annotated[
        str | None, typer.Option(help="column whose values are on one side of every split")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="column that sorts the rows: the past predicts the future")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="column with each row's weight")] = None,
    class_weight: Annotated[
        str | None, typer.Option(help="balanced: each class counts alike")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="most parameters")] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed")] = 0,
    time_limit: Annotated[
        float | None,
        typer.Option(min=1, help="seconds for all of it, from reading the data on"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="output folder; default runs/NAME")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the run in the output folder")
    ] = False,
    device: Annotated[str, typer.Option(help="torch device, such as cpu or cuda")] = "cpu",
    policy: Annotated[
        str, typer.Option(help="trial, prune-expand, gradmax, natural, firefly or stochastic")
    ] = "trial",
    wiring: Annotated[
        str, typer.Option(help="layers, or dag: every neuron reads every earlier one")
    ] = "layers",
    members: Annotated[
        int, typer.Option(min=1, help="networks that are averaged into the one exported")
    ] = 1,
    distillation: Annotated[
        bool,
        typer.Option(help="tables: learn from folds of several models beside the labels, or not"),
    ] = True,
    metric: Annotated[
        str | None,
        typer.Option(
            help="shown beside the loss: accuracy, balanced-accuracy, auc, average-precision, f1, "
            "mcc, log-loss; rmse, mae, median-error, r2"
        ),
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="beside scikit-learn's linear model and gradient boosting also an MLP and a grid "
            "of 12; or none of them",
        ),
    ] = None,
    control: Annotated[bool, typer.Option(help="also train the found shape from scratch")] = True,
    compress: Annotated[
        bool,
        typer.Option(
            "--compress",
            help="make it smaller at the end, exactly equal on the range of the training rows",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print nothing but the folder and errors")
    ] = False,
) -> None:
    """Learn a network of the right shape for DATA and write it, with a report, to a folder."""
    given = locals()
    until = NEVER if time_limit is None else Deadline.after(time_limit)
    if not quiet:
        typer.echo(f"reading {data}")  # before torch is loaded, which takes seconds
    if task is Task.density:
        _density(given, until)
        return
    from morphogen.data.load import load_data
    from morphogen.fitting.run import Options, run

    kind: Any = None if task is None else task.value
    dataset = load_data(
        data,
        target=_columns(target) or None,
        task=kind,
        test=test,
        valid=valid,
        seed=seed,
        drop=_columns(drop),
        keep=_columns(keep),
        categorical=_columns(categorical),
        numeric=_columns(numeric),
        date=_columns(date),
        group=group,
        time=time,
        weights=weights,
        class_weight=class_weight,
    )
    options = Options(resume, baselines, control, compress, quiet, until)
    with _may_be_left():
        run(
            dataset,
            options,
            out=out,
            budget=budget,
            seed=seed,
            device=device,
            policy=policy,
            wiring=wiring,
            metric=metric,
            members=members,
            distillation=distillation,
        )


@contextmanager
def _may_be_left() -> Iterator[None]:
    """Ctrl-C says how to go on."""
    from morphogen.folder import Left

    try:
        yield
    except Left as error:
        again = f"go on with the same options and --out {error.folder} --resume"
        sys.stderr.write(f"stopped; {again if error.kept else 'nothing was kept yet'}\n")
        raise typer.Exit(130) from None


_OF_DENSITY = ("data", "task", "test", "seed", "time_limit", "out", "resume", "quiet")


def _density(given: dict[str, Any], until: Deadline) -> None:
    """`--task density`, with the options that it knows."""
    from morphogen.density.run import run
    from morphogen.errors import RunError

    defaults = inspect.signature(fit).parameters
    others = [
        f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        for name, value in given.items()
        if name not in _OF_DENSITY and value != defaults[name].default
    ]
    if others:
        raise RunError(f"--task density knows no {', '.join(others)}: leave it out")
    names = ("test", "out", "seed", "resume", "quiet")
    with _may_be_left():
        run(given["data"], until=until, **{name: given[name] for name in names})


def _columns(given: list[str] | None) -> tuple[str, ...]:
    """Names given one an option or with commas between them; one with a comma in it is quoted, as
    in a CSV file.
    """
    return tuple(name.strip() for row in csv.reader(given or []) for name in row if name.strip())
