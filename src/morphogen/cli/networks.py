"""What the verbs that rewrite a network have in common: their options, the set of inputs, what they
write.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from morphogen.errors import DataError, NotExact
from morphogen.record import Certificate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from morphogen.bounds.box import Box

Network = Annotated[
    Path, typer.Argument(metavar="MODEL", help="a .onnx file, or a .pt2 file of torch.export.save")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="read a .pt2 file even where that may run code which is in it"),
]
Domain = Annotated[
    str,
    typer.Option(
        help="the set of inputs: LOW,HIGH for each of them, or a CSV file whose rows it just holds"
    ),
]


def certified(rewrite: Callable[[], tuple[Any, Certificate]]) -> tuple[Any, Certificate]:
    """What a rewrite returns; where it is not exact, exit code 1 and no file."""
    try:
        return rewrite()
    except NotExact as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(1) from None


def write(
    network: "nn.Module",
    original: "nn.Module",
    out: Path | None,
    certificate: Certificate,
    box: "Box",
    tolerance: float,
) -> None:
    """Print a certificate, and write it with the network unless it fails the tolerance: then exit
    code 1, and no file.
    """
    from rich.console import Console

    from morphogen.formats.network_files import largest_output, write_network

    console = Console(soft_wrap=True, highlight=False)
    console.print(f"[bold]{certificate.kind}[/] on the domain: {certificate.reason}")
    console.print(
        f"largest difference {certificate.max_error:.1e} at 10,000 points and corners, in float64"
    )
    allowed = tolerance * largest_output(original, box.points(1000, 500))
    if certificate.kind == "exact" and not certificate.max_error <= allowed:
        sys.stderr.write(f"the difference exceeds --tolerance {tolerance:g}; no file was written\n")
        raise typer.Exit(1)
    if out is not None:
        seen = write_network(network, original, box.points(64, 32), out, certificate)
        console.print(
            f"written to {out} and {out.name}.certificate.json; {seen.reason}: "
            f"{seen.max_error:.1e} off"
        )


def stem(path: Path) -> str:
    """A file's name without its ending."""
    return path.name.removesuffix(".gz").rpartition(".")[0]


def read_domain(text: str, shape: tuple[int, ...]) -> "tuple[Box, Tensor | None]":
    """(a box of inputs of this shape, the data it is around): "LOW,HIGH" for all inputs, or a CSV
    or Parquet file of as many columns as there are inputs, whose rows it just holds.
    """
    import torch

    from morphogen.bounds.box import Box, bounding_box

    ends = text.split(",")
    if len(ends) == 2 and all(map(_number, ends)):
        low, high = map(float, ends)
        if not -math.inf < low <= high < math.inf:
            raise DataError(f"--domain {text}: give two finite numbers, the lower one first")
        return Box(torch.full((1, *shape), low), torch.full((1, *shape), high)), None
    rows = read_points(Path(text), shape)
    return bounding_box(rows), rows


def read_points(path: Path, shape: tuple[int, ...]) -> "Tensor":
    """Examples (rows, *shape) from a table of numbers."""
    import torch

    from morphogen.data.tables import read_table

    if not path.exists():
        raise DataError(
            f"--domain {path}: neither LOW,HIGH nor a file; give such as 0,1 or data.csv"
        )
    table = read_table(path, numbers=True)
    wanted = math.prod(shape)
    if table.shape[1] != wanted or len(table) == 0:
        raise DataError(
            f"{path}: {len(table)} rows of {table.shape[1]} columns; the network has {wanted} "
            "inputs"
        )
    try:
        values = torch.tensor(table.to_numpy(dtype=float))
    except ValueError as error:
        raise DataError(f"{path}: {error}; give numbers alone") from error
    if not bool(values.isfinite().all()):
        raise DataError(f"{path}: has gaps or infinite numbers; give complete rows")
    points: Tensor = values.unflatten(1, shape)
    return points


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
