"""`morphogen predict`: what a finished run says about new rows."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.errors import DataError
from morphogen.record import whole_file

if TYPE_CHECKING:
    import pandas as pd


def predict(
    run: Annotated[Path, typer.Argument(help="the folder that fit wrote, such as runs/customers")],
    table: Annotated[
        Path, typer.Argument(metavar="NEW", help="a table with the columns that fit has seen")
    ],
    out: Annotated[
        Path | None, typer.Option(help="where to write them as CSV; otherwise they are printed")
    ] = None,
    proba: Annotated[
        bool, typer.Option("--proba", help="the probability of every class, a column a class")
    ] = False,
) -> None:
    """Predict the target of each row of NEW with the network in RUN, in the order of the rows.

    Gaps and unknown categories are handled as in training; further columns are ignored.
    """
    from morphogen.fitting.predict import Strays, predict_file

    strays = Strays()
    parts = predict_file(run, table, strays, proba)
    try:
        rows = _write(parts, out)
    except OSError as error:
        if out is None:
            raise
        raise DataError(f"--out {out}: cannot be written ({error.strerror})") from error
    for note in strays.notes():
        sys.stderr.write(f"note: {note}\n")
    if out:
        sys.stderr.write(f"{rows:,} predictions written to {out}\n")


def _write(parts: "Iterator[pd.DataFrame]", out: Path | None) -> int:
    """How many rows were written."""
    rows = 0
    with whole_file(out) if out else nullcontext(sys.stdout) as file:
        for part in parts:
            part.to_csv(file, index=False, header=rows == 0, lineterminator="\n")
            rows += len(part)
    return rows
