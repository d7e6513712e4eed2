"""`morphogen compress`: a smaller network that does the same."""

from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli.networks import Domain, Network, Trust, certified, read_domain, stem, write


def compress(
    model: Network,
    domain: Domain = "0,1",
    out: Annotated[
        Path | None,
        typer.Option(help="the smaller network, .onnx or .pt2; default MODEL-small.onnx"),
    ] = None,
    skips: Annotated[
        bool, typer.Option("--skips", help="also put linear skips past stable units")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="by which outputs may differ, relative to the largest, in float64")
    ] = 1e-9,
    seconds: Annotated[float, typer.Option(help="for linear programs in each pass")] = 60.0,
    steps: Annotated[
        bool, typer.Option("--steps", help="print every unit that went, with its proof")
    ] = False,
    trust: Trust = False,
) -> None:
    """Make MODEL smaller without changing what it does on a domain; writes the network and its
    certificate.
    """
    from rich.console import Console

    from morphogen.formats.network_files import read_network
    from morphogen.transforms import compress as rewrite

    read = read_network(model, trust)
    box, samples = read_domain(domain, read.shape)
    rules = [name for name in rewrite.RULES if name != "skip" or skips]
    small, certificate = certified(
        lambda: rewrite.compress(read.model, box, samples, seconds, rules)
    )
    console = Console(soft_wrap=True, highlight=False)
    if steps:
        console.print("\n".join(certificate.steps) or "nothing to take out", markup=False)
    target = out or model.with_name(f"{stem(model)}-small.onnx")
    write(small.to(read.dtype), read.model, target, certificate, box, tolerance)
