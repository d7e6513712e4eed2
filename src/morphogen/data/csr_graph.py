"""A graph as compressed sparse rows: a value of two arrays, in memory or mapped from a folder.

The folder holds `graph.json`, `indptr.npy` and `indices.npy`; nothing in it is code. `build_graph`
writes one from edges.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.errors import DataError

MANIFEST = "graph.json"
FORMAT = "morphogen graph 1"
_ARRAYS = {"indptr": np.int64, "indices": np.int32}


@dataclass(frozen=True, eq=False)
class CsrGraph:
    """The neighbours of node u are indices[indptr[u] : indptr[u + 1]], sorted, each once, u itself
    not among them; v is one of u where u is one of v.

    indptr: (nodes + 1,) int64. indices: (entries,) int32; every edge is two entries. Both cannot be
    written to. folder: where they are mapped from.
    """

    indptr: np.ndarray
    indices: np.ndarray
    folder: Path | None = None

    @property
    def nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def edges(self) -> int:
        """Undirected ones."""
        return len(self.indices) // 2

    @cached_property
    def degrees(self) -> np.ndarray:
        """(nodes,) int64."""
        return np.diff(self.indptr)

    def neighbours(self, node: int) -> np.ndarray:
        return self.indices[self.indptr[node] : self.indptr[node + 1]]

    def __repr__(self) -> str:
        where = f", {self.folder}" if self.folder else ""
        return f"CsrGraph({self.nodes:,} nodes, {self.edges:,} edges{where})"


def fixed(indptr: np.ndarray, indices: np.ndarray, folder: Path | None = None) -> CsrGraph:
    """A graph of arrays that are as they should be already."""
    # without the class of a memory map, whose every slice costs microseconds
    indptr, indices = (np.asarray(array).view(np.ndarray) for array in (indptr, indices))
    indptr.flags.writeable = indices.flags.writeable = False
    return CsrGraph(indptr, indices, folder)


def subgraph(graph: CsrGraph, nodes: np.ndarray) -> CsrGraph:
    """Those nodes and the edges between them; node i of it is nodes[i].

    nodes: (count,) numbers, sorted, each once. Training nodes alone, for a graph whose other nodes
    come later (inductive).
    """
    number = np.full(graph.nodes, -1, np.int32)
    number[nodes] = np.arange(len(nodes), dtype=np.int32)
    rows = np.repeat(np.arange(graph.nodes), graph.degrees)
    kept = (number[rows] >= 0) & (number[graph.indices] >= 0)
    counts = np.bincount(number[rows[kept]], minlength=len(nodes))
    return fixed(np.concatenate([[0], np.cumsum(counts)]), number[graph.indices[kept]])


def save_graph(graph: CsrGraph, folder: Path) -> None:
    """Raises `DataError` where the folder holds a graph already."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists():
        raise DataError(f"folder={folder}: holds a graph already; choose another")
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(graph, name))
    seal(folder, graph.nodes, len(graph.indices))


def seal(folder: Path, nodes: int, entries: int) -> None:
    """Says that the arrays are whole; written last."""
    said = {"format": FORMAT, "nodes": nodes, "entries": entries}
    (folder / MANIFEST).write_text(json.dumps(said, indent=1) + "\n")


def open_graph(folder: Path | str) -> CsrGraph:
    """A graph mapped from a folder: pages are read as they are needed.

    Raises `DataError` where the folder holds no whole graph.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"folder={folder}: there is no {MANIFEST} in it: no graph, or one whose building was "
            "stopped; build it again"
        )
    about = _manifest(folder / MANIFEST)
    indptr, indices = (_mapped(folder / f"{name}.npy", kind) for name, kind in _ARRAYS.items())
    wanted = (about["nodes"] + 1, about["entries"])
    found = (len(indptr), len(indices))
    if found != wanted or indptr[0] != 0 or indptr[-1] != len(indices):
        raise DataError(
            f"folder={folder}: its arrays have {found[0]} and {found[1]} entries where {wanted[0]} "
            f"and {wanted[1]} were written; copy or build it again"
        )
    return fixed(indptr, indices, folder)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
        whole = all(type(about[key]) is int and about[key] >= 0 for key in ("nodes", "entries"))
    except (ValueError, KeyError, TypeError):
        about, whole = {}, False
    if not whole or about.get("format") != FORMAT:
        raise DataError(f"{path}: is no manifest of the format {FORMAT!r}; build the graph again")
    return dict(about)


def _mapped(path: Path, kind: type) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}): missing or cut off; copy or build the graph again"
        ) from error
    if array.dtype != kind or array.ndim != 1:
        raise DataError(
            f"{path}: holds {array.dtype} of {array.ndim} dimensions where {np.dtype(kind)} of 1 "
            "was expected; build the graph again"
        )
    return array
