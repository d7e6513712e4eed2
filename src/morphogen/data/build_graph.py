"""A `CsrGraph` from edges, in memory or by external sorting: `build_graph(edges, nodes)`.

Edges are read twice, a chunk at a time: once to count, once to lay each with both of its directions
into the bucket of its row. A bucket holds consecutive rows and fits in memory, where it is sorted
and freed of what stands in it twice; buckets one after the other are the graph.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from morphogen.data.csr_graph import MANIFEST, CsrGraph, fixed, open_graph, seal
from morphogen.errors import DataError

Chunks = Callable[[], Iterable[np.ndarray]]
"""Each call gives all edges anew, (any number, 2) whole numbers at a time."""

# bytes of a direction while its bucket is sorted: the pair, its key, the sorted keys, the result
_SORTING = 32
_MOST_NODES = 2**31 - 1


@dataclass(frozen=True)
class Built:
    """A graph and what was left out of the edges given: `self_loops` and edges that stood more than
    once, in either direction (`repeated` counts each further time).
    """

    graph: CsrGraph
    self_loops: int
    repeated: int

    @property
    def note(self) -> str:
        """What was left out in words, "" for nothing."""
        said = []
        if self.self_loops:
            said.append(f"{self.self_loops:,} self-loops")
        if self.repeated:
            said.append(f"{self.repeated:,} edges that stood there already")
        return f"left out {' and '.join(said)}" if said else ""


def build_graph(
    edges: np.ndarray | Chunks,
    nodes: int,
    folder: Path | str | None = None,
    memory: int = 2**30,
) -> Built:
    """Every edge counts in both directions and once.

    edges: (edges, 2) whole numbers below `nodes`, or a function that gives them in chunks, for more
    than fit in memory. folder: where the graph is written and mapped from; None keeps it in memory.
    memory: bytes that sorting may take at a time.

    Raises `DataError` for an edge to a node that does not exist, more nodes than an int32 can
    number, and a folder that holds a graph already.
    """
    if not 0 <= nodes <= _MOST_NODES:
        raise DataError(f"nodes={nodes}: give a count from 0 to {_MOST_NODES}")
    chunks = _of_array(edges) if isinstance(edges, np.ndarray) else edges
    counts, self_loops = _counted(chunks, nodes)
    if folder is None:
        keys = _distinct(np.concatenate([*_directions(chunks), np.empty((0, 2), np.int64)]), nodes)
        degrees = np.bincount(keys // max(nodes, 1), minlength=nodes)
        graph = fixed(_starts(degrees), (keys % max(nodes, 1)).astype(np.int32))
    else:
        graph = _on_disk(chunks, counts, Path(folder), memory)
    return Built(graph, self_loops, (int(counts.sum()) - len(graph.indices)) // 2)


def _of_array(edges: np.ndarray) -> Chunks:
    return lambda: [edges]


def _counted(chunks: Chunks, nodes: int) -> tuple[np.ndarray, int]:
    """How often each node stands in an edge to another, and how many self-loops there are."""
    counts = np.zeros(nodes, np.int64)
    self_loops = 0
    before = 0
    for chunk in chunks():
        _check(chunk, nodes, before)
        before += len(chunk)
        others = chunk[:, 0] != chunk[:, 1]
        self_loops += len(chunk) - int(others.sum())
        for side in (0, 1):
            counts += np.bincount(chunk[others, side], minlength=nodes)
    return counts, self_loops


def _check(chunk: np.ndarray, nodes: int, before: int) -> None:
    if chunk.ndim != 2 or chunk.shape[1] != 2 or chunk.dtype.kind not in "iu":
        raise DataError(
            f"edges: {chunk.dtype} of shape {chunk.shape}; give whole numbers of shape (edges, 2)"
        )
    bad = ((chunk < 0) | (chunk >= nodes)).any(1)
    if bad.any():
        first = int(bad.argmax())
        raise DataError(
            f"edges: {int(bad.sum())} of them name a node that does not exist, the first is edge "
            f"{before + first}, {chunk[first, 0]} - {chunk[first, 1]}; nodes are 0 to {nodes - 1}"
        )


def _directions(chunks: Chunks) -> Iterator[np.ndarray]:
    """(u, v) and (v, u) of every edge that is no self-loop."""
    for chunk in chunks():
        kept = chunk[chunk[:, 0] != chunk[:, 1]]
        yield np.concatenate([kept, kept[:, ::-1]])


def _distinct(pairs: np.ndarray, nodes: int) -> np.ndarray:
    """row * nodes + column of each pair, sorted, each once."""
    keys: np.ndarray = pairs[:, 0].astype(np.int64)
    keys *= nodes
    keys += pairs[:, 1]
    keys.sort()
    if not len(keys):
        return keys
    first = np.concatenate([[True], keys[1:] != keys[:-1]])
    distinct: np.ndarray = keys[first]
    return distinct


def _starts(degrees: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(degrees, dtype=np.int64)])


def _on_disk(chunks: Chunks, counts: np.ndarray, folder: Path, memory: int) -> CsrGraph:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists():
        raise DataError(f"folder={folder}: holds a graph already; choose another")
    nodes = len(counts)
    bounds = _bounds(counts, memory)
    degrees = np.zeros(nodes, np.int64)
    entries = 0
    with tempfile.TemporaryDirectory(dir=folder, prefix="sorting-") as scratch:
        paths = [Path(scratch) / str(number) for number in range(len(bounds) - 1)]
        _distribute(chunks, bounds, paths)
        plain = Path(scratch) / "indices"
        with plain.open("wb") as out:
            for path, (first, last) in zip(paths, pairwise(bounds.tolist()), strict=True):
                keys = _distinct(np.fromfile(path, np.int32).reshape(-1, 2), nodes)
                path.unlink()
                degrees[first:last] += np.bincount(keys // nodes - first, minlength=last - first)
                keys %= nodes
                keys.astype(np.int32).tofile(out)
                entries += len(keys)
        np.save(folder / "indptr.npy", _starts(degrees))
        _with_header(plain, folder / "indices.npy", entries)
    seal(folder, nodes, entries)
    return open_graph(folder)


def _bounds(counts: np.ndarray, memory: int) -> np.ndarray:
    """Rows where a bucket begins, and the number of rows: so that each bucket fits, but for a row
    that is too long by itself.
    """
    if not len(counts):
        return np.zeros(1, np.int64)
    before = np.cumsum(counts)
    most = max(1, memory // _SORTING)
    bounds = [0]
    while bounds[-1] < len(counts):
        done = before[bounds[-1] - 1] if bounds[-1] else 0
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(before, done + most, "right"))))
    return np.array(bounds)


def _distribute(chunks: Chunks, bounds: np.ndarray, paths: list[Path]) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for pairs in _directions(chunks):
            bucket = np.searchsorted(bounds, pairs[:, 0], "right") - 1
            order = np.argsort(bucket, kind="stable")
            ends = np.cumsum(np.bincount(bucket, minlength=len(paths)))
            ordered = pairs[order].astype(np.int32)
            for file, (begin, end) in zip(files, pairwise([0, *ends.tolist()]), strict=True):
                ordered[begin:end].tofile(file)


def _with_header(plain: Path, path: Path, entries: int) -> None:
    """The bytes of an array as an npy file, without a copy of them in memory."""
    with path.open("wb") as out, plain.open("rb") as given:
        about = {"descr": "<i4", "fortran_order": False, "shape": (entries,)}
        np.lib.format.write_array_header_1_0(out, about)
        while block := given.read(2**24):
            out.write(block)
