"""`morphogen reproduce`: a paper's experiment again."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from morphogen.experiments import EXPERIMENTS, Run, experiment
from morphogen.folder import claimed, claimed_free


def reproduce(
    name: Annotated[str, typer.Argument(help=f"the experiment: {', '.join(EXPERIMENTS)}")],
    faithful: Annotated[
        bool, typer.Option("--faithful", help="the original's settings, quirks included")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="a few seconds, to see that it runs")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds")] = 1,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="keep the trained networks, where it has any")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="write the curves as TensorBoard summaries too")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="output folder; default runs/reproduce/NAME")
    ] = None,
) -> None:
    """Run a paper's experiment again and put its published figures beside what came out."""
    run = experiment(name)
    with claimed_free(Path("runs") / "reproduce" / name) if out is None else claimed(out) as folder:
        _reproduce(run, folder, faithful, smoke, seeds, checkpoints, tensorboard)


def _reproduce(
    run: Run,
    folder: Path,
    faithful: bool,
    smoke: bool,
    seeds: int,
    checkpoints: bool,
    tensorboard: bool,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from morphogen.environment import environment
    from morphogen.report import reproduction, summaries

    if tensorboard:
        summaries.needed()  # before the run, which may take hours
    result = replace(run(faithful, smoke, seeds), environment=environment("cpu"))
    reproduction.write(result if checkpoints else replace(result, files={}), folder)
    if tensorboard:
        summaries.write_summaries(result, folder)
    console = Console()
    table = Table(*reproduction.HEADER[:-1])
    for claim in result.claims:
        table.add_row(
            *reproduction.cells(claim)[:-1], style="yellow" if claim.verdict == "missed" else None
        )
    console.print(table)
    console.print(f"{reproduction.summary(result)}; written to {folder}/")
