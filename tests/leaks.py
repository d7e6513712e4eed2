"""What a file must not tell about the machine it was written on."""

from pathlib import Path

import torch

import morphogen


def leaks(folder: Path) -> list[str]:
    """ "FILE holds PATH" for each file below `folder` in which the home, the working or a package's
    folder is named.
    """
    packages = [Path(package.__file__).parent for package in (morphogen, torch)]
    paths = {
        str(path)
        for path in (
            Path.home(),
            Path.cwd(),
            folder.resolve(),
            *packages,
            *(p.parent for p in packages),
        )
    }
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        f"{path} holds {text}"
        for path in files
        for text in paths
        if len(text) > 3 and text.encode() in path.read_bytes()
    ]
