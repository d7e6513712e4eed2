"""Edges from a file, a chunk at a time: `read_edges(path)` gives pairs of what nodes are called.

Text with any delimiter, with or without a header or comments (as in SNAP's files), Parquet, other
tables, npz and npy arrays. What stands beside the two ends, such as a weight, is left alone.
"""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet as parquet

from morphogen.data.tables import read_table, table_ending
from morphogen.data.text_table import TextForm, form_of
from morphogen.errors import DataError

_ROWS = 2**20  # of a chunk
_SAMPLE = 2**16  # bytes that say how a text is written
_ENDS = (
    ("source", "target"),
    ("src", "dst"),
    ("from", "to"),
    ("fromnodeid", "tonodeid"),
    ("u", "v"),
    ("node1", "node2"),
    ("id1", "id2"),
    ("node_1", "node_2"),
    ("id_1", "id_2"),
)


@dataclass(frozen=True, eq=False)
class EdgeList:
    """columns: what the two ends are called. chunks: each call gives all edges anew, (any number,
    2) of what nodes are called: whole numbers or text.
    """

    name: str
    columns: tuple[str, str]
    chunks: Callable[[], Iterable[np.ndarray]]


def read_edges(path: Path | str, source: str | None = None, target: str | None = None) -> EdgeList:
    """source, target: columns of the ends; by default those with a usual name, else the first two.

    Raises `DataError` for a file that is missing, of another ending or damaged, a column that is
    not there, and an end that is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"edges={str(path)!r}: there is no such file; check the path")
    ending = table_ending(path)
    with _said(path):
        if path.suffix.lower() in (".npz", ".npy"):
            return _of_arrays(path)
        if ending == ".parquet":
            known = parquet.ParquetFile(path).schema_arrow.names
            ends = _ends(known, source, target)
            return _checked(path, ends, lambda: _parquet(path, ends))
        if ending in (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"):
            form = form_of(_beginning(path))
            ends = _ends(form.columns, source, target)
            return _checked(path, ends, lambda: _text(path, form, ends))
    frame = read_table(path, numbers=True)
    ends = _ends([str(name) for name in frame], source, target)
    return _checked(path, ends, lambda: [frame[list(ends)]])


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Faults with the name of the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"edges={str(path)!r}: {error}") from error
    except (OSError, EOFError, ValueError, KeyError, zlib.error, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"edges={str(path)!r}: cannot be read ({reason}); the file may be damaged or cut off"
        ) from error


def _ends(known: Sequence[str], source: str | None, target: str | None) -> tuple[str, str]:
    """The columns of the two ends."""
    for argument, name in (("source", source), ("target", target)):
        if name is not None and name not in known:
            raise DataError(f"{argument}={name!r}: no such column; there are {', '.join(known)}")
    if len(known) < 2:
        raise DataError(f"has {len(known)} columns where an edge has two ends; give both")
    lower = {name.lower().replace(" ", ""): name for name in reversed(known)}
    usual = next(((lower[a], lower[b]) for a, b in _ENDS if a in lower and b in lower), known[:2])
    one = usual[0] if source is None else source
    other = usual[1] if target is None else target
    if one == other:
        raise DataError(f"source and target are both {one!r}; name two columns")
    return one, other


def _checked(
    path: Path, ends: tuple[str, str], frames: Callable[[], Iterable[pd.DataFrame]]
) -> EdgeList:
    def chunks() -> Iterator[np.ndarray]:
        before = 0
        with _said(path):
            for frame in frames():
                gaps = frame.isna().any(axis=1).to_numpy()
                if gaps.any():
                    raise DataError(
                        f"{int(gaps.sum())} edges have an empty end, the first is edge "
                        f"{before + int(gaps.argmax())}; drop or fill them"
                    )
                before += len(frame)
                yield frame.to_numpy()

    return EdgeList(path.name, ends, chunks)


def _parquet(path: Path, ends: tuple[str, str]) -> Iterator[pd.DataFrame]:
    for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=list(ends)):
        yield batch.to_pandas()[list(ends)]


def _beginning(path: Path) -> bytes:
    """Its first whole lines."""
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        sample = file.read(_SAMPLE)
    cut = sample.rfind(b"\n")
    return sample if len(sample) < _SAMPLE or cut < 0 else sample[: cut + 1]


def _text(path: Path, form: TextForm, ends: tuple[str, str]) -> Iterator[pd.DataFrame]:
    parts = pd.read_csv(
        path,
        sep=r"\s+" if form.delimiter == " " else form.delimiter,
        header=0 if form.header else None,
        names=list(form.columns),
        usecols=list(ends),
        comment=form.comment or None,
        skipinitialspace=True,
        na_values=["?"],
        chunksize=_ROWS,
        compression="infer",
    )
    with parts:
        for part in parts:
            yield part[list(ends)]


def _of_arrays(path: Path) -> EdgeList:
    """An npy of (edges, 2), or an npz with "edges" (edges, 2) or "edge_index" (2, edges)."""
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with np.load(path, allow_pickle=False) as arrays:
            if "edges" in arrays:
                array = arrays["edges"]
            elif "edge_index" in arrays:
                array = arrays["edge_index"].T
            else:
                raise DataError(
                    f"holds {', '.join(arrays)}; name the edges 'edges', of shape (edges, 2), or "
                    "'edge_index', of shape (2, edges)"
                )
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuUS":
        raise DataError(
            f"its edges are {array.dtype} of shape {array.shape}; give whole numbers or text of "
            "shape (edges, 2)"
        )
    return EdgeList(
        path.name,
        ("0", "1"),
        lambda: (array[at : at + _ROWS] for at in range(0, len(array), _ROWS)),
    )


@dataclass(frozen=True, eq=False)
class NodeNames:
    """What nodes are called, in the order of their numbers: whole numbers, or text. plain: they are
    the numbers themselves.
    """

    index: pd.Index
    plain: bool

    def numbers(self, names: np.ndarray) -> np.ndarray:
        """The numbers of names, of any shape; -1 for a name that no node has."""
        given = np.asarray(names)
        if self.plain and given.dtype.kind in "iu":
            return np.where((given >= 0) & (given < len(self.index)), given, -1)
        flat = given.ravel()
        if self.index.dtype == object:
            flat = np.array([_text_of(name) for name in flat], object)
        elif flat.dtype == object:
            flat = pd.to_numeric(pd.Series(flat), errors="coerce").fillna(-1).to_numpy()
        return np.asarray(self.index.get_indexer(flat)).reshape(given.shape)


def names_of(cells: pd.Series, argument: str) -> NodeNames:
    """Of a column with one cell a node.

    Raises `DataError` for an empty cell and for a name that two nodes have.
    """
    if cells.isna().any():
        row = int(cells.isna().to_numpy().argmax())
        raise DataError(f"{argument}: node {row} has no name; fill it")
    whole = pd.api.types.is_integer_dtype(cells)
    index = pd.Index(cells if whole else [_text_of(cell) for cell in cells])
    index = index if whole else index.astype(object)
    if not index.is_unique:
        twice = index[index.duplicated()][0]
        raise DataError(f"{argument}: two nodes are called {twice!r}; give each its own name")
    plain = whole and bool((index == np.arange(len(index))).all())
    return NodeNames(index, plain)


def names_in(edges: EdgeList) -> NodeNames:
    """Every name that stands in the edges, sorted."""
    known: set[Any] = set()
    for chunk in edges.chunks():
        known.update(pd.unique(pd.Series(chunk.ravel())).tolist())
    whole = all(isinstance(name, int) for name in known)
    cells = pd.Series(sorted(known if whole else map(_text_of, known)))
    return names_of(cells, f"edges={edges.name!r}")


def numbered(edges: EdgeList, names: NodeNames) -> Callable[[], Iterator[np.ndarray]]:
    """The chunks with the numbers of nodes in the place of their names.

    They raise `DataError` for an end that is called as no node is.
    """

    def chunks() -> Iterator[np.ndarray]:
        before = 0
        for chunk in edges.chunks():
            found = names.numbers(chunk)
            bad = (found < 0).any(1)
            if bad.any():
                first = int(bad.argmax())
                unknown = chunk[first][found[first] < 0][0]
                raise DataError(
                    f"edges={edges.name!r}: {int(bad.sum())} of the {len(chunk)} edges from edge "
                    f"{before} on name a node that is not among the {len(names.index)} nodes; the "
                    f"first is edge {before + first}, whose end is {_text_of(unknown)!r}. Add that "
                    "node, or drop the edge"
                )
            before += len(chunk)
            yield found

    return chunks


def _text_of(name: Any) -> str:
    """As it was written: a whole number that a gap beside it has made a float is one still."""
    if isinstance(name, (float, np.floating)) and float(name).is_integer():
        return str(int(name))
    return str(name)
