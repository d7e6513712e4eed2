"""`morphogen unpack`: the table that `morphogen pack` was given."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def unpack(
    packed: Annotated[Path, typer.Argument(metavar="FILE", help="what pack wrote")],
    out: Annotated[
        Path | None, typer.Option(help="where to write the table; otherwise it is printed")
    ] = None,
) -> None:
    """Write the table that was packed into FILE, as it was.

    A damaged file is refused, and rows that are not those that were packed are never written.
    """
    from morphogen.packing.pack import unpack_bytes, unpack_file

    if out is None:
        sys.stdout.buffer.write(unpack_bytes(packed)[0])
        return
    rows = unpack_file(packed, out)
    sys.stderr.write(f"{rows:,} rows written to {out}\n")
