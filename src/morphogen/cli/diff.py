"""`morphogen diff`: what changed between two structures."""

from pathlib import Path
from typing import Annotated

import typer


def diff(
    before: Annotated[
        Path, typer.Argument(help="a structure.json, or a checkpoint that morphogen.save wrote")
    ],
    after: Annotated[Path, typer.Argument(help="another")],
) -> None:
    """Print what changed between two structures, a line a module."""
    from morphogen.edit.structure import diff as difference

    typer.echo(difference(before, after) or "no difference")
