"""A folder of verification problems, one after the other or several at once: `run_instances("instances.csv", ...)`."""

import csv
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from morphogen.bounds.files import verify_file
from morphogen.errors import DataError, MorphogenError


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
    wanted, done = _listed(listing, timeout), _done(out)
    left = [row for row in wanted if row[:2] not in {(r.network, r.prop) for r in done}]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if not done:
            writer.writeheader()
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
    except MorphogenError as error:
        return Result(network, prop, "error", time.perf_counter() - began, float("nan"), 0, str(error))
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
    if not out.exists():
        return []
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            Result(r["network"], r["prop"], r["status"], float(r["seconds"]), float(r["bound"]), int(r["boxes"]), r["said"])
            for r in rows
        ]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{out} is no table of results with columns {', '.join(_COLUMNS)}; name another with --out") from None
