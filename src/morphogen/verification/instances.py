"""A folder of verification problems, one after the other or several at once:
`run_instances("instances.csv", ...)`.
"""

import csv
import math
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from io import StringIO
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from morphogen.errors import DataError, MorphogenError
from morphogen.record import write_atomic
from morphogen.threads import threads
from morphogen.verification.vnncomp import verify_file


@dataclass(frozen=True)
class Result:
    """One line of the results table. status: "sat", "unsat", "unknown", or "error" with what was
    said.
    """

    network: str
    prop: str
    status: str
    seconds: float
    bound: float
    boxes: int
    said: str = ""


_COLUMNS = [column.name for column in fields(Result)]


def run_instances(
    listing: Path,
    out: Path,
    seconds: float | None = None,
    jobs: int = 1,
    callback: Callable[[Result, int], None] | None = None,
) -> list[Result]:
    """Verify every pair that a listing names, and append each result to `out` (CSV) as it comes.

    listing: lines of network, property, seconds, as in VNN-COMP; paths are relative to it, and may
    have lost their .gz. What `out` already has is not run again, unless it was an error. seconds:
    instead of the listing's seconds. jobs: processes; where one is killed, its problem is tried
    once more after all others, and then is an error. callback: called with each new result and how
    many are left. Raises `DataError` for a listing that cannot be read so.
    """
    wanted = dict.fromkeys(_listed(listing, seconds))
    pairs = {row[:2] for row in wanted}
    done = [
        result
        for result in _done(out)
        if result.status != "error" or (result.network, result.prop) not in pairs
    ]
    left = [row for row in wanted if row[:2] not in {(r.network, r.prop) for r in done}]
    out.parent.mkdir(parents=True, exist_ok=True)
    text = StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(asdict(result) for result in done)
    write_atomic(out, text.getvalue())  # anew, since the last line may have been cut off
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        for number, result in enumerate(_results(listing.parent, left, jobs), 1):
            writer.writerow(asdict(result))
            file.flush()
            done.append(result)
            if callback:
                callback(result, len(left) - number)
    return done


def _results(folder: Path, rows: list[tuple[str, str, float]], jobs: int) -> Iterator[Result]:
    """As they come."""
    if jobs == 1:
        yield from (_one(folder, *row) for row in rows)
        return
    waiting = deque(_Problem(*row) for row in rows)
    workers = [_Worker(folder) for _ in range(min(jobs, len(rows)))]
    try:
        for worker in workers:
            worker.take(waiting)
        while busy := [worker for worker in workers if worker.problem]:
            ready = wait([worker.channel for worker in busy])
            for worker in busy:
                if worker.channel not in ready or (problem := worker.problem) is None:
                    continue
                result = worker.result()
                if result is None:
                    ended = worker.stop()
                    workers.remove(worker)
                    if problem.tried:
                        said = (
                            f"its process was ended twice ({ended}); it may need more memory than "
                            f"there is with {jobs} jobs"
                        )
                        result = Result(
                            problem.network, problem.prop, "error", math.nan, math.nan, 0, said
                        )
                    else:
                        waiting.append(replace(problem, tried=True))
                    if waiting:
                        worker = _Worker(folder)
                        workers.append(worker)
                worker.take(waiting)
                if result is not None:
                    yield result
    finally:
        for worker in workers:
            worker.stop()


@dataclass(frozen=True)
class _Problem:
    """tried: before, by a process that was killed."""

    network: str
    prop: str
    seconds: float
    tried: bool = False


class _Worker:
    """A process that solves one problem at a time."""

    def __init__(self, folder: Path) -> None:
        # started anew: threads of a process that was forked do not live on
        spawn = multiprocessing.get_context("spawn")
        self.channel, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, folder, _one), daemon=True)
        self.process.start()
        theirs.close()  # so that the channel ends when the process does
        self.problem: _Problem | None = None

    def take(self, waiting: deque[_Problem]) -> None:
        """The next problem, where there is one."""
        self.problem = waiting.popleft() if waiting else None
        if self.problem:
            with suppress(OSError):  # that it was killed is seen when its result is asked for
                self.channel.send((self.problem.network, self.problem.prop, self.problem.seconds))

    def result(self) -> Result | None:
        """None where the process was killed."""
        try:
            result: Result = self.channel.recv()
        except (EOFError, OSError):
            return None
        return result

    def stop(self) -> str:
        """Ends the process: what ended it."""
        self.channel.close()
        self.process.join(1.0)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        return f"by signal {-code}" if code < 0 else f"with exit code {code}"


@threads(1)
def _serve(channel: "Connection[Any, Any]", folder: Path, solve: Callable[..., Result]) -> None:
    """Solves problems until no more can come."""
    # the process that asks is interrupted, and ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError):
        while True:
            channel.send(solve(folder, *channel.recv()))


def _one(folder: Path, network: str, prop: str, seconds: float) -> Result:
    began = time.perf_counter()
    try:
        answer = verify_file(_there(folder / network), _there(folder / prop), seconds)
    except Exception as error:  # one problem that fails must not end the others
        said = (
            str(error) if isinstance(error, MorphogenError) else f"{type(error).__name__}: {error}"
        )
        return Result(network, prop, "error", time.perf_counter() - began, float("nan"), 0, said)
    return Result(network, prop, answer.status, answer.seconds, answer.bound, answer.boxes)


def _there(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.exists() and packed.exists() else path


def _listed(listing: Path, seconds: float | None) -> list[tuple[str, str, float]]:
    try:
        with listing.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise DataError(f"{listing} cannot be read ({error.strerror})") from None
    instances = []
    for row in rows:
        try:
            network, prop, listed = (cell.strip() for cell in row)
            instances.append((network, prop, seconds or float(listed)))
        except ValueError:
            raise DataError(
                f"{listing}: {','.join(row)!r}; each line is network, property, seconds"
            ) from None
    return instances


def _done(out: Path) -> list[Result]:
    """The whole lines of an earlier run."""
    if not out.exists():
        return []
    text = out.read_text()
    header = ",".join(_COLUMNS)
    if not text.startswith(header) and not header.startswith(text.rstrip()):
        raise DataError(f"{out} is no table of results with columns {header}; name another file")
    whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    results = []
    for r in csv.DictReader(whole):
        try:
            numbers = float(r["seconds"]), float(r["bound"]), int(r["boxes"])
        except (TypeError, ValueError):
            continue  # cut off
        results.append(Result(r["network"], r["prop"], r["status"], *numbers, r["said"]))
    return results
