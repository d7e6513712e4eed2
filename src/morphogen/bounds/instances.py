"""A folder of verification problems, one after the other or several at once: `run_instances("instances.csv", ...)`."""

import csv
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path

import torch

from morphogen.bounds.files import verify_file
from morphogen.errors import DataError, MorphogenError
from morphogen.record import write_atomic


@dataclass(frozen=True)
class Result:
    """One line of the results table. status: "sat", "unsat", "unknown", or "error" with what was said."""

    network: str
    prop: str
    status: str
    seconds: float
    bound: float
    boxes: int
    said: str = ""


_COLUMNS = [column.name for column in fields(Result)]


def run_instances(
    listing: Path, out: Path, timeout: float | None = None, jobs: int = 1, tell: Callable[[Result, int], None] | None = None
) -> list[Result]:
    """Verify every pair that a listing names, and append each result to `out` (CSV) as it comes.

    listing: lines of network, property, seconds, as in VNN-COMP; paths are relative to it, and may have lost their .gz. What
    `out` already has is not run again. timeout: instead of the listing's seconds. jobs: processes. tell: called with each new
    result and how many are left. Raises `DataError` for a listing that cannot be read so.
    """
    wanted, done = dict.fromkeys(_listed(listing, timeout)), _done(out)
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
            if tell:
                tell(result, len(left) - number)
    return done


def _results(folder: Path, rows: list[tuple[str, str, float]], jobs: int) -> Iterator[Result]:
    """As they come."""
    if jobs == 1:
        yield from (_one(folder, *row) for row in rows)
        return
    # started anew: threads of a process that was forked do not live on
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _alone) as pool:
        waiting: set[Future[Result]] = {pool.submit(_one, folder, *row) for row in rows}
        while waiting:
            ready, waiting = wait(waiting, return_when="FIRST_COMPLETED")
            yield from (future.result() for future in ready)


def _alone() -> None:
    torch.set_num_threads(1)


def _one(folder: Path, network: str, prop: str, seconds: float) -> Result:
    began = time.perf_counter()
    try:
        found = verify_file(_there(folder / network), _there(folder / prop), seconds)
    except Exception as error:  # one problem that fails must not end the others
        said = str(error) if isinstance(error, MorphogenError) else f"{type(error).__name__}: {error}"
        return Result(network, prop, "error", time.perf_counter() - began, float("nan"), 0, said)
    return Result(network, prop, found.status, found.seconds, found.bound, found.boxes)


def _there(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if not path.exists() and packed.exists() else path


def _listed(listing: Path, timeout: float | None) -> list[tuple[str, str, float]]:
    try:
        with listing.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise DataError(f"{listing} cannot be read ({error.strerror})") from None
    found = []
    for row in rows:
        try:
            network, prop, seconds = (cell.strip() for cell in row)
            found.append((network, prop, timeout or float(seconds)))
        except ValueError:
            raise DataError(f"{listing}: {','.join(row)!r}; each line is network, property, seconds") from None
    return found


def _done(out: Path) -> list[Result]:
    """The whole lines of an earlier run."""
    if not out.exists():
        return []
    text = out.read_text()
    header = ",".join(_COLUMNS)
    if not text.startswith(header) and not header.startswith(text.rstrip()):
        raise DataError(f"{out} is no table of results with columns {header}; name another with --out")
    whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    found = []
    for r in csv.DictReader(whole):
        try:
            numbers = float(r["seconds"]), float(r["bound"]), int(r["boxes"])
        except (TypeError, ValueError):
            continue  # cut off
        found.append(Result(r["network"], r["prop"], r["status"], *numbers, r["said"]))
    return found
