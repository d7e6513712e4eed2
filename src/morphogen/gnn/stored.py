"""Node sets of many targets, extracted once and kept: in memory, or in a folder that they are
mapped from. Edges are not among them: `scopes.joined` finds them anew.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morphogen.data.csr_graph import CsrGraph
from morphogen.errors import DataError
from morphogen.gnn.extractors import Extractor, NodeSets, scopes_of

_AT_ONCE = 4096  # targets


@dataclass(frozen=True, eq=False)
class Stored:
    """targets: sorted, each once. sets: of each of them."""

    targets: np.ndarray
    sets: NodeSets

    def of(self, targets: np.ndarray) -> NodeSets:
        """Raises `DataError` for a target that is not among them."""
        places = np.searchsorted(self.targets, targets).clip(max=max(0, len(self.targets) - 1))
        if len(targets) and (not len(self.targets) or (self.targets[places] != targets).any()):
            missing = targets[~np.isin(targets, self.targets)][0]
            raise DataError(f"targets: the scope of node {missing} is not kept")
        return self.sets.rows(places)


def store(
    graph: CsrGraph, targets: np.ndarray, extractor: Extractor, folder: Path | None = None
) -> Stored:
    """Extract the scopes of targets, in any order. folder: where they are written; None keeps them
    in memory.
    """
    targets = np.unique(targets)
    chunks = np.split(targets, range(_AT_ONCE, len(targets), _AT_ONCE))
    parts = (scopes_of(graph, chunk, extractor) for chunk in chunks)
    if folder is None:
        known = list(parts)
        sizes = [np.diff(part.starts) for part in known]
        nodes = np.concatenate([part.nodes for part in known])
        return Stored(targets, NodeSets(_starts(sizes), nodes, sum(p.visits for p in known)))
    folder.mkdir(parents=True, exist_ok=True)
    sizes, visits = [], 0
    with (folder / "nodes.int32").open("wb") as out:
        for part in parts:
            part.nodes.tofile(out)
            sizes.append(np.diff(part.starts))
            visits += part.visits
    starts = _starts(sizes)
    shape = (int(starts[-1]),)
    nodes = np.empty(0, np.int32)
    if shape[0]:  # nothing cannot be mapped
        nodes = np.memmap(folder / "nodes.int32", np.int32, "r", shape=shape).view(np.ndarray)
    return Stored(targets, NodeSets(starts, nodes, visits))


def _starts(sizes: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes), dtype=np.int64)])
