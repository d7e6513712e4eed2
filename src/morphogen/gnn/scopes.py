"""A batch of scopes as one graph of parts that do not touch: `scopes(graph, targets, extractor)`.

A node that stands in two scopes stands twice in the batch, so no target sees what another one sees.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from morphogen.data.csr_graph import CsrGraph
from morphogen.gnn.adjacency import Adjacency, symmetric
from morphogen.gnn.extractors import Extractor, NodeSets, checked, scopes_of
from morphogen.gnn.induced import UNREACHED, induce
from morphogen.gnn.slots import in_parts


@dataclass(frozen=True, eq=False)
class Scopes:
    """nodes: (entries,) int64, each one's number in the graph. starts: (scopes + 1,) int64, where
    each scope begins. roots: (scopes, 1), or (scopes, 2) for pairs, places of the targets among the
    entries. hops: (entries, roots of each) uint8, the distance from each target inside the scope,
    `UNREACHED` for none. adjacency: of the entries.
    """

    nodes: Tensor
    starts: Tensor
    roots: Tensor
    hops: Tensor
    adjacency: Adjacency

    def __len__(self) -> int:
        return len(self.roots)

    @property
    def membership(self) -> Tensor:
        """(entries,) the scope of each entry."""
        return torch.repeat_interleave(self.starts.diff())


def scopes(
    graph: CsrGraph, targets: np.ndarray, extractor: Extractor, seed: int = 0, epoch: int = 0
) -> Scopes:
    """Extract and join the scopes of targets: (n,) nodes, or (n, 2) pairs, between whose ends the
    edge is left out.

    Raises `ShapeError` for a target that does not exist.
    """
    return joined(graph, targets, scopes_of(graph, targets, extractor, seed, epoch))


def joined(graph: CsrGraph, targets: np.ndarray, sets: NodeSets) -> Scopes:
    """The batch of node sets that are known, each holding its targets."""
    roots = checked(graph, targets)

    def part(begin: int, end: int, slots: np.ndarray) -> tuple[np.ndarray, ...]:
        first, last = sets.starts[begin], sets.starts[end]
        return tuple(
            induce(
                graph.indptr,
                graph.indices,
                sets.starts[begin : end + 1] - first,
                sets.nodes[first:last],
                roots[begin:end],
                slots,
                roots.shape[1] > 1,
            )
        )

    parts = in_parts(part, len(roots), graph.nodes)
    nodes = np.cumsum([0, *(len(row_starts) - 1 for row_starts, *_ in parts)])
    entries = np.cumsum([0, *(len(columns) for _, columns, *_ in parts)])
    row_starts = [p[0][1:] + before for p, before in zip(parts, entries, strict=False)]
    columns = [p[1] + np.int32(before) for p, before in zip(parts, nodes, strict=False)]
    places = [p[2] + before for p, before in zip(parts, nodes, strict=False)]
    adjacency = symmetric(
        torch.from_numpy(np.concatenate([[0], *row_starts])),
        torch.from_numpy(np.concatenate(columns)),
    )
    return Scopes(
        torch.from_numpy(sets.nodes.astype(np.int64)),
        torch.from_numpy(sets.starts),
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate([p[3] for p in parts])),
        adjacency,
    )


def shared_by(graph: CsrGraph, targets: np.ndarray) -> Scopes:
    """The whole graph as one scope that all targets share, (n,) nodes: full batches. There is no
    distance from them.
    """
    arrays = (torch.from_numpy(array.copy()) for array in (graph.indptr, graph.indices))
    return Scopes(
        torch.arange(graph.nodes),
        torch.tensor([0, graph.nodes]),
        torch.from_numpy(checked(graph, targets)),
        torch.full((graph.nodes, 1), UNREACHED, dtype=torch.uint8),
        symmetric(*arrays),
    )


def structural_labels(hops: Tensor) -> Tensor:
    """(entries,) int64 of a batch of pairs: 1 at the pair itself, 0 where either end is not
    reached, else 1 + min(x, y) + d // 2 (d // 2 + d % 2 - 1) with the distances x, y and d = x + y.

    hops: (entries, 2). Source: Zhang and Chen, "Link Prediction Based on Graph Neural Networks",
    NeurIPS 2018 (SEAL), double-radius node labelling; distances on paths around the other end.
    """
    x, y = hops.long().unbind(1)
    half, odd = (x + y) // 2, (x + y) % 2
    labels = 1 + torch.minimum(x, y) + half * (half + odd - 1)
    labels = torch.where((x == 0) | (y == 0), 1, labels)
    unreached = (x == UNREACHED) | (y == UNREACHED)
    return torch.where(unreached & (x != 0) & (y != 0), 0, labels)
