"""One run, one folder: claimed while a run writes into it, and given back when the run ends,
however it ends.
"""

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from morphogen.errors import RunError
from morphogen.record import PART

LOCK = "run.lock"
"""In a folder that is being written: which process, on which host."""


class Taken(RunError):
    """The folder cannot be claimed: another run is at it, or it holds something."""


class Left(KeyboardInterrupt):
    """A run was left by Ctrl-C. folder: of the run. kept: whether it can be gone on with."""

    def __init__(self, folder: Path, kept: bool) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.kept = kept


@contextmanager
def claimed(folder: Path, used: bool = False) -> Iterator[Path]:
    """Have `folder` to oneself. It is made where it does not exist, and goes again where it stays
    empty.

    used: it may hold something already. The system takes the lock of a process back that has died,
    so a dead run's folder is taken over; whether a run on another host is dead cannot be seen.
    Raises `Taken` where another run is at it, or where it holds something and `used` is off, and
    `RunError` where this process is one of several that train together.
    """
    refuse_copies()
    if folder.exists() and not folder.is_dir():
        raise Taken(f"folder={folder} is a file; choose another name")
    if not used:
        _refuse_full(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        file = _locked(folder)
        try:
            if not used:
                _refuse_full(folder)  # again, now that nobody else can write
            _remove_parts(folder)
            yield folder
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            file.close()
    finally:
        with suppress(OSError):  # one that is not empty stays, and so do those above it
            for parent in made:
                parent.rmdir()


@contextmanager
def claimed_free(base: Path) -> Iterator[Path]:
    """`base`, or base-2, base-3, ... : the first that can be claimed, claimed."""
    with ExitStack() as stack:
        yield _first_free(base, stack)


def claimed_run(name: str, out: Path | None, resume: bool) -> AbstractContextManager[Path]:
    """The folder of a run, claimed: `out`, else runs/NAME, or where that is taken and not to be
    gone on with a free one beside it.
    """
    base = Path("runs") / name
    return claimed_free(base) if out is None and not resume else claimed(out or base, resume)


def refuse_copies() -> None:
    """Raises `RunError` where a launcher has started several of this process, which would all do
    the same.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size.strip() not in ("", "0", "1"):
        raise RunError(
            f"WORLD_SIZE={size}: {size} processes would each train a network of their own into one "
            "folder; start the command once, without torchrun"
        )


def _first_free(base: Path, stack: ExitStack) -> Path:
    number = 1
    folder = base
    while True:
        try:
            return stack.enter_context(claimed(folder))
        except Taken:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")


def _refuse_full(folder: Path) -> None:
    if folder.exists() and any(entry.name != LOCK for entry in folder.iterdir()):
        raise Taken(
            f"folder={folder} already holds another run or other files; add resume=True to go on "
            "with it, or choose another"
        )


def _locked(folder: Path) -> IO[str]:
    """The open lock file of a folder, held by us and naming us. It is ours as long as it is
    open.
    """
    path = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
        except FileNotFoundError:
            continue  # whoever made the folder has just removed it
        _hold(file, folder)
        if _is_at(file, path):
            break
        file.close()  # its run has just ended and removed it
    host = socket.gethostname()
    owner = _owner(file)
    if owner and owner[1] != host:
        file.close()
        raise Taken(_held_by(folder, owner) + f"; if that run is over, delete {path}")
    file.truncate(0)
    file.seek(0)
    file.write(json.dumps({"pid": os.getpid(), "host": host}) + "\n")
    file.flush()
    return file


def _hold(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _owner(file)
        file.close()
        raise Taken(_held_by(folder, owner) + "; wait for it, or choose another") from None
    except OSError as error:
        file.close()
        raise RunError(
            f"folder={folder}: files there cannot be locked ({error}); choose a folder on another "
            "disk"
        ) from error


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _owner(file: IO[str]) -> tuple[int, str] | None:
    """(process, host) as the lock has it; None where nothing legible is in it, as between its
    making and its writing.
    """
    file.seek(0)
    try:
        about = json.load(file)
        return int(about["pid"]), str(about["host"])
    except (ValueError, KeyError, TypeError):
        return None


def _held_by(folder: Path, owner: tuple[int, str] | None) -> str:
    return f"folder={folder} is being written by another run" + (
        f" (process {owner[0]} on {owner[1]})" if owner else ""
    )


def _remove_parts(folder: Path) -> None:
    """What a run that was killed left half written."""
    for part in (*folder.glob(f".*{PART}"), *folder.glob(f"*/.*{PART}")):
        if re.fullmatch(rf"\..+\.\d+-[0-9a-f]{{8}}{re.escape(PART)}", part.name):
            part.unlink(missing_ok=True)
