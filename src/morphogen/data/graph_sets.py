"""Graphs whose nodes have features and classes, by name: `graph_set("cora")`.

From `graphs/` of the data folder: Cora and Citeseer in their public split (Yang et al. 2016), the
heterophilous graphs in their ten splits (Platonov et al. 2023; Pei et al. 2020), two of the
facebook100 networks with the five splits of half, a quarter and a quarter that are drawn here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix

from morphogen.data.build_graph import build_graph
from morphogen.data.csr_graph import CsrGraph
from morphogen.data.folders import find, searched
from morphogen.errors import DataError

GraphName = Literal[
    "actor",
    "chameleon",
    "chameleon-filtered",
    "citeseer",
    "cora",
    "cornell",
    "cornell5",
    "johns-hopkins55",
    "minesweeper",
    "squirrel",
    "squirrel-filtered",
    "texas",
    "tolokers",
    "wisconsin",
]
GRAPH_SETS: tuple[str, ...] = get_args(GraphName)


@dataclass(frozen=True, eq=False)
class GraphSet:
    """x: (nodes, features) float32, as they are: not standardised. y: (nodes,) int64 classes, -1
    where unknown. train, valid, test: nodes. classes: how many.
    """

    name: str
    graph: CsrGraph
    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    classes: int


def graph_set(name: GraphName, split: int = 0) -> GraphSet:
    """split: which of the splits; modulo how many there are.

    Raises `DataError` for an unknown name, or where the data folder does not have the file.
    """
    if name not in GRAPH_SETS:
        raise DataError(f"name={name!r}: unknown; choose one of {', '.join(GRAPH_SETS)}")
    file, read = _FILES[name]
    paths = find(f"graphs/{file}.npz")
    if not paths:
        folders = ", ".join(repr(str(folder)) for folder in searched())
        raise DataError(
            f"{name}: there is no graphs/{file}.npz in {folders}; set MORPHOGEN_DATA to its folder"
        )
    return read(name, _arrays(paths[0]), split)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _set(
    name: str, edges: np.ndarray, x: np.ndarray, y: np.ndarray, parts: Sequence[np.ndarray]
) -> GraphSet:
    classes = int(y.max()) + 1
    graph = build_graph(edges, len(y)).graph
    train, valid, test = parts
    return GraphSet(
        name, graph, x.astype(np.float32), y.astype(np.int64), train, valid, test, classes
    )


def _planetoid(name: str, arrays: Mapping[str, np.ndarray], split: int) -> GraphSet:
    shape = tuple(arrays["x_shape"])
    x = csr_matrix((arrays["x_data"], arrays["x_indices"], arrays["x_indptr"]), shape).toarray()
    parts = tuple(arrays[part] for part in ("train", "val", "test"))
    return _set(name, arrays["edges"], x, arrays["y"], parts)


def _masked(name: str, arrays: Mapping[str, np.ndarray], split: int) -> GraphSet:
    masks = (arrays[f"{part}_masks"] for part in ("train", "val", "test"))
    parts = tuple(np.flatnonzero(mask[split % len(mask)]) for mask in masks)
    return _set(name, arrays["edges"], arrays["node_features"], arrays["node_labels"], parts)


def _facebook(name: str, arrays: Mapping[str, np.ndarray], split: int) -> GraphSet:
    """Column 1, the gender, is the class; the others are categories, one bit a level."""
    about = arrays["local_info"]
    y = about[:, 1].astype(np.int64) - 1
    x = np.concatenate(
        [_levels(about[:, column]) for column in range(about.shape[1]) if column != 1], 1
    )
    known = np.random.default_rng(split % 5).permutation(np.flatnonzero(y >= 0))
    half, most = len(known) // 2, 3 * len(known) // 4
    parts = (known[:half], known[half:most], known[most:])
    return _set(name, arrays["edges"], x, y, tuple(map(np.sort, parts)))


def _levels(cells: np.ndarray) -> np.ndarray:
    _, codes = np.unique(cells, return_inverse=True)
    return np.eye(codes.max() + 1, dtype=np.float32)[codes]


Read = Callable[[str, Mapping[str, np.ndarray], int], GraphSet]
_FILES: Mapping[str, tuple[str, Read]] = {
    "cora": ("planetoid/cora", _planetoid),
    "citeseer": ("planetoid/citeseer", _planetoid),
    "cornell5": ("facebook100/Cornell5", _facebook),
    "johns-hopkins55": ("facebook100/Johns_Hopkins55", _facebook),
    **{
        name: (f"heterophilous/{name.replace('-', '_')}", _masked)
        for name in GRAPH_SETS
        if name not in ("cora", "citeseer", "cornell5", "johns-hopkins55")
    },
}
