"""`morphogen verify`: whether a network can do what must not be."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.deadline import Deadline
from morphogen.errors import DataError

if TYPE_CHECKING:
    from morphogen.verification.instances import Result


def verify(
    network: Annotated[Path | None, typer.Argument(help="an ONNX file")] = None,
    prop: Annotated[
        Path | None, typer.Argument(metavar="PROPERTY", help="a VNN-LIB 1.0 file: what is unsafe")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="seconds from reading the files on, then it is unknown; 60, or as listed"
        ),
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="a CSV of network, property, seconds: verify them all")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes, with --instances")] = 1,
    out: Annotated[
        Path,
        typer.Option(
            help="the table of results, with --instances; only errors in it are run again"
        ),
    ] = Path("results.csv"),
) -> None:
    """Prove that NETWORK has no unsafe input, or find one: sat (with the input), unsat or unknown;
    exit codes 0, 1 and 3.
    """
    if instances is not None:
        if network is not None:
            raise DataError(
                "verify: --instances names the networks; leave NETWORK and PROPERTY away"
            )
        _verify_all(instances, out, timeout, jobs)
        return
    if network is None or prop is None:
        raise DataError("verify: give NETWORK and PROPERTY, or --instances instances.csv")
    until = Deadline.after(timeout or 60.0)
    from rich.console import Console

    console = Console(stderr=True)
    began = time.perf_counter()
    last = [0.0]
    with console.status("bounding") as status:

        def progress(bound: float, count: int) -> None:
            line = f"least bound {bound:.4g}, {count:,} subproblems open"
            spent = time.perf_counter() - began
            status.update(line)
            if spent > 2 * last[0] + 1:  # 1 s, 3 s, 7 s, 15 s, ...
                last[0] = spent
                console.print(f"{spent:6.1f} s  {line}", highlight=False)

        with _ended(until):
            from morphogen.verification.vnncomp import verify_file

            answer = verify_file(network, prop, until, progress)
    typer.echo(answer.status)
    if answer.witness is not None and answer.output is not None:
        pairs = [f"(X_{i} {text})" for i, text in enumerate(answer.written)]
        pairs += [f"(Y_{i} {value:.9g})" for i, value in enumerate(answer.output)]
        typer.echo("(" + "\n ".join(pairs) + ")")
    console.print(
        f"bound {answer.bound:.6g}, {answer.boxes:,} subproblems, {answer.seconds:.1f} s",
        highlight=False,
    )
    raise typer.Exit({"sat": 0, "unsat": 1, "unknown": 3}[answer.status])


_GRACE = 0.7  # seconds after its end in which a search says what it knows


@contextmanager
def _ended(until: Deadline) -> Iterator[None]:
    """End the process as unknown where a search does not stop by itself: what reads, traces and
    bounds asks the deadline between its steps, but nothing can ask it in the middle of one, such as
    of loading a module or a file.
    """
    answered = threading.Lock()  # by whoever gets it

    def give_up() -> None:
        if answered.acquire(blocking=False):
            sys.stdout.write("unknown\n")
            sys.stdout.flush()
            os._exit(3)

    timer = threading.Timer(until.left() + _GRACE, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
        answered.acquire()
    finally:
        timer.cancel()


def _verify_all(listing: Path, out: Path, timeout: float | None, jobs: int) -> None:
    """Every problem of a listing, with a line each and a count at the end."""
    from rich.console import Console
    from rich.table import Table

    from morphogen.verification.instances import run_instances

    console = Console(soft_wrap=True, highlight=False)

    def progress(result: "Result", left: int) -> None:
        said = f"  {result.said}" if result.said else ""
        console.print(
            f"{result.status:8}{result.seconds:7.1f} s  {result.network}  {result.prop}  ({left} "
            f"left){said}"
        )

    results = run_instances(listing, out, timeout, jobs, progress)
    counts = Counter(result.status for result in results)
    table = Table("status", "problems", "median s", "longest s")
    for status, count in counts.most_common():
        times = [result.seconds for result in results if result.status == status]
        table.add_row(status, str(count), f"{median(times):.2f}", f"{max(times):.1f}")
    console.print(table)
    console.print(f"{len(results)} results in {out}")
