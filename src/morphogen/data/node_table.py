"""Nodes with features and a target, and the edges between them: `node_table(edges, nodes, target)`.

A node is a row of the table, called by its id column where there is one. Rows without a target are
nodes as any other, which are heard and not learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from morphogen.data.build_graph import build_graph
from morphogen.data.choices import Choices, require
from morphogen.data.columns import as_numbers, check_finite
from morphogen.data.csr_graph import CsrGraph
from morphogen.data.edge_lists import EdgeList, NodeNames, names_of, numbered
from morphogen.data.preparation import Preparation, fit_preparation
from morphogen.data.target import class_indices, classes_of, decide_task, rare_note, target_numbers
from morphogen.errors import DataError
from morphogen.record import Task

_IDS = ("id", "node", "node_id", "nodeid", "name")


@dataclass(frozen=True, eq=False)
class NodeTable:
    """names: of the nodes, in the order of the rows. x: (nodes, features) float32. y: (nodes,)
    int64 places in `classes`, or float64 numbers; what stands at a node outside `known` means
    nothing. known: nodes that have a target, sorted. prepare: what turned the columns into x, None
    where there are none: x is then the logarithm of one more than the degree. notes: what the user
    should be told.
    """

    name: str
    graph: CsrGraph
    names: NodeNames
    x: np.ndarray
    y: np.ndarray
    known: np.ndarray
    task: Task
    classes: tuple[str, ...]
    target: str
    prepare: Preparation | None
    notes: tuple[str, ...]


def node_table(
    edges: EdgeList,
    nodes: pd.DataFrame,
    target: str,
    *,
    ident: str | None = None,
    task: Task | None = None,
    folder: Path | None = None,
    **choices: Any,
) -> NodeTable:
    """ident: the column with what the edges call a node; by default one with a usual name, else the
    number of the row. folder: where the graph is written and mapped from, None for memory. choices:
    those of `Choices` that are about columns.

    Raises `DataError` for a column that is not there, an edge to no node, two nodes of one name,
    and a target that cannot be predicted.
    """
    frame = nodes.rename(columns=str).reset_index(drop=True)
    if frame.empty:
        raise DataError(f"nodes: an empty table ({frame.shape[1]} columns); give one with rows")
    require(frame, target, "target", "the table of nodes")
    ident = _ident(frame, ident, target)
    cells = pd.Series(range(len(frame))) if ident is None else frame[ident]
    names = names_of(cells, "nodes")
    built = build_graph(numbered(edges, names), len(frame), folder)
    y, known, decided, classes, notes = _target(frame[target], task)
    if built.note:
        notes = (f"edges: {built.note}", *notes)
    if alone := int((built.graph.degrees == 0).sum()):
        notes = (*notes, f"{alone:,} of {len(frame):,} nodes have no edge")
    apart = {target, *([] if ident is None else [ident])}
    if set(frame.columns) <= apart:
        x, prepare = np.log1p(built.graph.degrees)[:, None].astype(np.float32), None
        notes = (*notes, "nodes have no columns to learn from: each has its degree")
    else:
        x, prepare = _features(frame, apart, choices)
        notes = (*notes, *prepare.notes)
    return NodeTable(
        edges.name, built.graph, names, x, y, known, decided, classes, target, prepare, notes
    )


def _ident(frame: pd.DataFrame, given: str | None, target: str) -> str | None:
    if given is not None:
        require(frame, given, "ident", "the table of nodes")
        return given
    usual = (c for c in frame if c.lower() in _IDS and c != target and frame[c].is_unique)
    return next(usual, None)


def _target(
    column: pd.Series, task: Task | None
) -> tuple[np.ndarray, np.ndarray, Task, tuple[str, ...], tuple[str, ...]]:
    """(y, known, task, classes, notes)."""
    cells, note = as_numbers(column)
    check_finite(cells.to_frame())
    known = np.flatnonzero(cells.notna())
    if not len(known):
        raise DataError(f"target {column.name!r} has no value at any node: choose another column")
    there = cells.iloc[known]
    decided, notes = decide_task(there, task)
    classes = classes_of(there) if decided == "classification" else ()
    values = class_indices(there, classes) if classes else target_numbers(there)
    y = np.zeros(len(cells), values.dtype)
    y[known] = values
    if note:
        notes = (f"target {column.name!r} {note}", *notes)
    if missing := len(cells) - len(known):
        notes += (f"{missing:,} of {len(cells):,} nodes have no {column.name!r}: heard alone",)
    return y, known, decided, classes, notes + rare_note(values, classes, str(column.name))


def _features(
    frame: pd.DataFrame, apart: set[str], choices: dict[str, Any]
) -> tuple[np.ndarray, Preparation]:
    chosen = Choices(**choices)
    features: Sequence[str] = chosen.features(frame, apart)
    check_finite(frame[list(features)])
    kinds = {column: kind for column, kind in chosen.kinds.items() if column in features}
    # bins would be many more features for every node of a scope
    prepare = fit_preparation(frame[list(features)], 0, kinds)
    return prepare(frame), prepare
