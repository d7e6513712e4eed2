"""The command: `morphogen VERB`."""

import inspect
import os
import re
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


VERBS = (
    fit.fit,
    reproduce.reproduce,
    verify.verify,
    compress.compress,
    shallow.shallow,
    regions.regions,
    diff.diff,
)
for verb in VERBS:
    app.command()(verb)

OPTIONS = {name for verb in VERBS for name in inspect.signature(verb).parameters}
_RENAMED = {"folder": "out", "seconds": "time_limit"}  # what the library calls some of them


def as_options(message: str) -> str:
    """A message of the library, which names arguments as Python does, with options in their place:
    "budget=5" becomes "--budget 5".
    """

    def option(found: re.Match[str]) -> str:
        name = _RENAMED.get(found[1], found[1])
        value = found[2]
        # no option takes a list as Python writes it
        if name not in OPTIONS or value.startswith("["):
            return found[0]
        flag = f"--{name.replace('_', '-')}"
        return flag if value in ("", "True") else f"{flag} {value}"

    return re.sub(r"\b([a-z_]+)=([^\s,;:)]*)", option, message)


def main() -> None:
    """Run the command. An error that was raised on purpose is one line on standard error and exit
    code 2.
    """
    try:
        app()
    except MorphogenError as error:
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        sys.stderr.write(f"{as_options(' '.join(str(error).split()))}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; go on with --resume\n")
        sys.exit(130)
