"""`morphogen pack`: a table as a file that is much shorter."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def pack(
    table: Annotated[Path, typer.Argument(help="a CSV file with a first line of names")],
    out: Annotated[
        Path | None, typer.Option(help="the packed file; default TABLE.mpk", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(help="for training the models that are tried")] = 45.0,
    seed: Annotated[int, typer.Option(help="of training")] = 0,
) -> None:
    """Compress TABLE without loss, by a density model that is trained on it and travels along."""
    from morphogen.packing.pack import pack as write

    target = out or table.with_name(f"{table.name}.mpk")
    packed = write(table, target, seconds, seed)
    share = packed.model_bytes / packed.after
    sys.stdout.write(
        f"{packed.rows:,} rows: {packed.before:,} -> {packed.after:,} bytes in {target}, "
        f"{packed.bits_a_row:.1f} bits a row, the model is {share:.1%} of them\n"
    )
    if not packed.exact:
        sys.stderr.write("note: every cell comes back, quotes and line ends may differ\n")
