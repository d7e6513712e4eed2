"""The command: `morphogen VERB`."""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

# Before torch is imported: its CPU threads then wait without spinning, which other processes on the
# machine would pay for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from morphogen.cli import (
    compress,
    diff,
    fit,
    pack,
    predict,
    regions,
    reproduce,
    shallow,
    unpack,
    verify,
)
from morphogen.errors import MorphogenError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Networks that find their own shape."""


VERBS = (
    fit.fit,
    predict.predict,
    reproduce.reproduce,
    verify.verify,
    compress.compress,
    shallow.shallow,
    regions.regions,
    diff.diff,
    pack.pack,
    unpack.unpack,
)


def ended_by_hand(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that says so where Ctrl-C ends it: typer would end it without a word."""

    @functools.wraps(verb)
    def wrapped(*args: Any, **options: Any) -> None:
        try:
            verb(*args, **options)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            raise typer.Exit(130) from None

    return wrapped


for verb in VERBS:
    app.command()(ended_by_hand(verb))

OPTIONS = {name for verb in VERBS for name in inspect.signature(verb).parameters}
_RENAMED = {"folder": "out", "seconds": "time_limit"}  # what the library calls some of them


def as_options(message: str) -> str:
    """A message of the library, which names arguments as Python does, with options in their place:
    "budget=5" becomes "--budget 5".
    """

    def option(match: re.Match[str]) -> str:
        name = _RENAMED.get(match[1], match[1])
        value = match[2]
        # no option takes a list as Python writes it
        if name not in OPTIONS or value.startswith("["):
            return match[0]
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
    except BrokenPipeError:
        # whoever read has left, as `head` does; what is still to be written goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
