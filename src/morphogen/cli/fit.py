"""`morphogen fit`: learn a network of the right shape for a data set."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Task(StrEnum):
    """What the target column asks for."""

    classification = "classification"
    regression = "regression"


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="digits, mnist, fashion-mnist, cifar10, adult, california-housing, or a CSV or "
            "Parquet file"
        ),
    ],
    target: Annotated[str | None, typer.Option(help="column to predict (files)")] = None,
    task: Annotated[
        Task | None, typer.Option(help="override what the target column suggests")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="file with the test rows; otherwise a fifth is set aside")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="most parameters")] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed")] = 0,
    time_limit: Annotated[
        float | None,
        typer.Option(min=1, help="seconds for the search (the control comes after it)"),
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
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="also run scikit-learn's MLP, a grid of 12 and gradient boosting"
        ),
    ] = False,
    control: Annotated[bool, typer.Option(help="also train the found shape from scratch")] = True,
    compress: Annotated[
        bool,
        typer.Option(
            "--compress",
            help="make it smaller at the end, exactly equal on the range of the training rows",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")] = False,
) -> None:
    """Learn a network of the right shape for DATA and write it, with a report, to a folder."""
    from morphogen.data.load import load_data
    from morphogen.fitting.run import run

    dataset = load_data(
        data, target=target, task=task.value if task else None, test=test, seed=seed
    )
    run(
        dataset,
        out=out,
        resume=resume,
        baselines=baselines,
        control=control,
        compress=compress,
        quiet=quiet,
        budget=budget,
        seed=seed,
        seconds=time_limit,
        device=device,
        policy=policy,
        wiring=wiring,
    )
