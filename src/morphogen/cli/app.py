"""The command: `morphogen VERB`."""

import os
import sys

# Before torch is imported: its CPU threads then wait without spinning, which other processes on the
# machine would pay for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from morphogen.cli import compress, diff, fit, regions, reproduce, shallow, verify
from morphogen.errors import MorphogenError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Networks that find their own shape."""


for verb in (
    fit.fit,
    reproduce.reproduce,
    verify.verify,
    compress.compress,
    shallow.shallow,
    regions.regions,
    diff.diff,
):
    app.command()(verb)


def main() -> None:
    """Run the command. An error that was raised on purpose is one line on standard error and exit
    code 2.
    """
    try:
        app()
    except MorphogenError as error:
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; go on with --resume\n")
        sys.exit(130)
