"""`morphogen regions`: the linear regions of a network, counted."""

import time
from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli.networks import Domain, Network, Trust, read_domain, read_points


def regions(
    model: Network,
    domain: Domain = "0,1",
    through: Annotated[
        Path | None,
        typer.Option(
            help="a CSV file of d + 1 inputs: only on the plane through them; DOMAIN is of its "
            "coefficients"
        ),
    ] = None,
    max_cells: Annotated[int, typer.Option(min=1, help="stop after so many")] = 1_000_000,
    seconds: Annotated[float, typer.Option(help="stop after so long")] = 60.0,
    picture: Annotated[
        Path | None,
        typer.Option(help="where to draw them, with two free inputs: .png, .svg or .pdf"),
    ] = None,
    trust: Trust = False,
) -> None:
    """Count the linear regions of MODEL on a domain, exactly, and draw those of a plane; exit code
    3 where it was stopped.
    """
    from rich.console import Console

    from morphogen.formats.network_files import read_network
    from morphogen.linear_regions.regions import regions as count
    from morphogen.report.tiling import tiled

    read = read_network(model, trust)
    along = None
    if through is not None:
        rows = read_points(through, read.shape).unique(dim=0, sorted=False)
        along = rows[0], rows[1:] - rows[0]
    box, _ = read_domain(domain, read.shape if along is None else (len(along[1]),))
    began = time.perf_counter()
    cells = count(read.model, box, along, max_cells, seconds)
    Console(soft_wrap=True, highlight=False).print(f"{cells} ({time.perf_counter() - began:.2f} s)")
    if picture is not None:
        tiled(cells.picture(f"linear regions of {model.name}")).savefig(picture, dpi=150)
        typer.echo(f"drawn to {picture}")
    if not cells.complete:
        raise typer.Exit(3)
