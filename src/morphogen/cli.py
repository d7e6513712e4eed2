"""The command: `morphogen fit DATA`."""

import os
import sys
from dataclasses import replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

# Before torch is imported: its CPU threads then wait without spinning, which other processes on the machine would pay for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from rich.console import Console
from rich.table import Table

from morphogen.data.load import load
from morphogen.errors import MorphogenError
from morphogen.export import claim, free_folder
from morphogen.fit import environment
from morphogen.resize import diff as difference
from morphogen.run import run

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class Task(StrEnum):
    """What the target column asks for."""

    classification = "classification"
    regression = "regression"


@app.callback()
def root() -> None:
    """Networks that find their own shape."""


@app.command()
def fit(
    data: Annotated[
        str, typer.Argument(help="digits, mnist, fashion-mnist, cifar10, adult, california-housing, or a CSV or Parquet file")
    ],
    target: Annotated[str | None, typer.Option(help="column to predict (files)")] = None,
    task: Annotated[Task | None, typer.Option(help="override what the target column suggests")] = None,
    test: Annotated[str | None, typer.Option(help="file with the test rows; otherwise a fifth is set aside")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="most parameters")] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed")] = 0,
    time_limit: Annotated[float | None, typer.Option(min=1, help="seconds for the search (the control comes after it)")] = None,
    out: Annotated[Path | None, typer.Option(help="output folder; default runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the output folder")] = False,
    device: Annotated[str, typer.Option(help="torch device, such as cpu or cuda")] = "cpu",
    policy: Annotated[str, typer.Option(help="trial, prune-expand, gradmax or natural")] = "trial",
    wiring: Annotated[str, typer.Option(help="layers, or dag: every neuron reads every earlier one")] = "layers",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="also run scikit-learn's MLP, a grid of 12 and gradient boosting")
    ] = False,
    control: Annotated[bool, typer.Option(help="also train the found shape from scratch")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")] = False,
) -> None:
    """Learn a network of the right shape for DATA and write it, with a report, to a folder."""
    dataset = load(data, target=target, task=task.value if task else None, test=test, seed=seed)
    run(
        dataset,
        out=out,
        resume=resume,
        baselines=baselines,
        control=control,
        quiet=quiet,
        budget=budget,
        seed=seed,
        time_limit=time_limit,
        device=device,
        policy=policy,
        wiring=wiring,
    )


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="the experiment; see --help for the list")],
    faithful: Annotated[bool, typer.Option("--faithful", help="the original's settings, quirks included")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="a few seconds, to see that it runs")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds")] = 1,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="keep the trained networks, where it has any")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write the curves as TensorBoard summaries too")] = False,
    out: Annotated[Path | None, typer.Option(help="output folder; default runs/reproduce/NAME")] = None,
) -> None:
    """Run a paper's experiment again and put its published figures beside what came out."""
    experiments = import_module("morphogen.experiments").EXPERIMENTS
    if name not in experiments:
        raise MorphogenError(f"reproduce {name!r}: unknown; choose one of {', '.join(experiments)}")
    folder = free_folder(Path("runs") / "reproduce" / name) if out is None else out
    claim(folder, resume=False)
    summaries = import_module("morphogen.report.summaries")
    if tensorboard:
        summaries.needed()  # before the run, which may take hours
    result = replace(experiments[name](faithful, smoke, seeds), environment=environment("cpu"))
    write = import_module("morphogen.report.reproduction")
    write.write(result if checkpoints else replace(result, files={}), folder)
    if tensorboard:
        summaries.write_summaries(result, folder)
    console, table = Console(), Table(*write.HEADER[:-1])
    for claimed in result.claims:
        table.add_row(*write.cells(claimed)[:-1], style="yellow" if claimed.verdict == "missed" else None)
    console.print(table)
    console.print(f"{write.summary(result)}; written to {folder}/")


@app.command()
def verify(
    network: Annotated[Path, typer.Argument(help="an ONNX file")],
    prop: Annotated[Path, typer.Argument(metavar="PROPERTY", help="a VNN-LIB 1.0 file: what is unsafe")],
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds, then the answer is unknown")] = 60.0,
) -> None:
    """Prove that NETWORK has no unsafe input, or find one: sat (with the input), unsat or unknown; exit codes 0, 1 and 3."""
    console = Console(stderr=True)
    with console.status("bounding") as status:
        search = import_module("morphogen.bounds.verify").verify
        told = lambda bound, count: status.update(f"least bound {bound:.4g}, {count:,} boxes open")  # noqa: E731
        found = search(network, prop, timeout, told)
    typer.echo(found.status)
    if found.witness is not None:
        pairs = [*(("X", i, v) for i, v in enumerate(found.witness)), *(("Y", i, v) for i, v in enumerate(found.output))]
        typer.echo("(" + "\n ".join(f"({kind}_{i} {value:.9g})" for kind, i, value in pairs) + ")")
    console.print(f"bound {found.bound:.6g}, {found.boxes:,} boxes, {found.seconds:.1f} s")
    raise typer.Exit({"sat": 0, "unsat": 1, "unknown": 3}[found.status])


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="a structure.json, or a checkpoint that morphogen.save wrote")],
    after: Annotated[Path, typer.Argument(help="another")],
) -> None:
    """Print what changed between two structures, a line a module."""
    typer.echo(difference(before, after) or "no difference")


def main() -> None:
    """Run the command. An error that was raised on purpose is one line on standard error and exit code 2."""
    try:
        app()
    except MorphogenError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print("[bold red]error:[/] ", end="")
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; go on with --resume\n")
        sys.exit(130)
