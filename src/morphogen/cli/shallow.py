"""`morphogen shallow`: a deep network as one maximum of shallow ones."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from morphogen.cli.networks import Domain, Network, Trust, certified, read_domain, write


def shallow(
    model: Network,
    domain: Domain = "0,1",
    form: Annotated[
        Literal["maximum", "minimum", "max-min", "split", "difference"], typer.Option(help="which")
    ] = "maximum",
    out: Annotated[
        Path | None,
        typer.Option(help="the shallow network, .onnx or .pt2; none is written unless given"),
    ] = None,
    relus: Annotated[bool, typer.Option("--relus", help="maxima as layers of ReLUs")] = False,
    max_cells: Annotated[
        int,
        typer.Option(
            min=1, help="linear regions, at most; with fewer it is a lower or upper bound"
        ),
    ] = 100_000,
    tolerance: Annotated[
        float, typer.Option(help="by which outputs may differ, relative to the largest, in float64")
    ] = 1e-9,
    trust: Trust = False,
) -> None:
    """Write MODEL as one maximum of networks with a single hidden layer, or another shallow form,
    exact on a domain.
    """
    from morphogen.formats.network_files import read_network
    from morphogen.transforms.shallow.form import relu_tree
    from morphogen.transforms.shallow.shallow import shallow as rewrite

    read = read_network(model, trust)
    box, _ = read_domain(domain, read.shape)
    made, certificate = certified(
        lambda: rewrite(read.model, box, form, max_cells=max_cells, prune=True)
    )
    network = made.to_torch()
    if relus:
        network = relu_tree(network)
    write(network, read.model, out, certificate, box, tolerance)
