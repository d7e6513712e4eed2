"""Files of benchmarks, which are often kept compressed."""

import gzip
from pathlib import Path


def read_bytes(path: Path) -> bytes:
    """What a file holds; of one that ends in .gz, what was compressed."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
