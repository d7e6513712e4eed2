"""Where the named sets lie: the folder that MORPHOGEN_DATA names, else the user's cache."""

import os
from pathlib import Path

from morphogen.errors import DataError


def cache() -> Path:
    """The user's cache folder of morphogen; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "morphogen"


def find(*files: str) -> tuple[Path, ...] | None:
    """The paths of `files` in the first folder that holds all of them, None where no folder
    does.
    """
    for folder in searched():
        paths = tuple(folder / file for file in files)
        if all(path.is_file() for path in paths):
            return paths
    return None


def searched() -> tuple[Path, ...]:
    """The folders in the order in which they are searched. DataError: MORPHOGEN_DATA names no
    folder.
    """
    given = os.environ.get("MORPHOGEN_DATA")
    if not given:
        return (cache(),)
    if not Path(given).is_dir():
        raise DataError(f"MORPHOGEN_DATA={given!r} is no folder: correct or unset it")
    return Path(given), cache()
