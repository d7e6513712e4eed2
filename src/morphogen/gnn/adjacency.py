"""Which entries are whose neighbours, as compressed sparse rows with their transpose, in tensors.

A named tuple of tensors, so that a network that is given one can be traced.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from morphogen.errors import ShapeError


class Adjacency(NamedTuple):
    """The neighbours that node u hears are indices[indptr[u] : indptr[u + 1]].

    indptr: (nodes + 1,) int64. indices: (entries,) int32. into_indptr, into_indices: the same of
    the transpose, those that hear u; the very same tensors where the graph is symmetric.
    """

    indptr: Tensor
    indices: Tensor
    into_indptr: Tensor
    into_indices: Tensor

    @property
    def nodes(self) -> int:
        return self.indptr.shape[0] - 1

    def degrees(self) -> Tensor:
        """(nodes,) int64, how many each hears."""
        return self.indptr.diff()

    def to(self, device: torch.device | str) -> "Adjacency":
        return Adjacency(*(tensor.to(device) for tensor in self))


def symmetric(indptr: Tensor, indices: Tensor) -> Adjacency:
    """Of a graph in which v is a neighbour of u where u is one of v."""
    return Adjacency(indptr, indices, indptr, indices)


def from_edge_index(edge_index: Tensor, nodes: int) -> Adjacency:
    """Of PyTorch Geometric's pairs: node edge_index[1, e] hears edge_index[0, e].

    edge_index: (2, edges) int64, in any order; an edge that stands twice is heard twice. Raises
    `ShapeError` for another shape and for a node that does not exist.
    """
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ShapeError(
            f"edge_index: {edge_index.dtype} of shape {tuple(edge_index.shape)}; give int64 of "
            "shape (2, edges)"
        )
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < nodes:
        raise ShapeError(
            f"edge_index: names nodes {int(edge_index.min())} to {int(edge_index.max())} where "
            f"nodes={nodes}"
        )
    source, target = edge_index
    return Adjacency(*_rows(target, source, nodes), *_rows(source, target, nodes))


def _rows(row: Tensor, column: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    # sorted by row, and inside a row by column
    order = torch.argsort(row * nodes + column, stable=True)
    indptr = row.new_zeros(nodes + 1)
    torch.cumsum(torch.bincount(row, minlength=nodes), 0, out=indptr[1:])
    return indptr, column[order].to(torch.int32)


def drop_edges(adjacency: Adjacency, share: float) -> Adjacency:
    """Without a share of the edges, drawn from torch's global generator; both directions of an edge
    go together.

    Source: Rong et al., "DropEdge", ICLR 2020 (arXiv 1907.10903). Differs: edges go by a hash of
    their ends, so that the transpose loses the same ones.
    """
    key = torch.randint(2**31, ())
    rows = _kept(adjacency.indptr, adjacency.indices, share, key)
    if adjacency.into_indptr is adjacency.indptr:
        return symmetric(*rows)
    return Adjacency(*rows, *_kept(adjacency.into_indptr, adjacency.into_indices, share, key))


def _kept(indptr: Tensor, indices: Tensor, share: float, key: Tensor) -> tuple[Tensor, Tensor]:
    row, column = torch.repeat_interleave(indptr.diff()), indices.long()
    low, high = torch.minimum(row, column), torch.maximum(row, column)
    kept = _hashed(low * (indptr.shape[0] - 1) + high, key.to(indptr.device)) >= share
    before = torch.nn.functional.pad(torch.cumsum(kept, 0), (1, 0))
    return before[indptr], indices[kept]


def _hashed(values: Tensor, key: Tensor) -> Tensor:
    """A number in [0, 1) of each: two rounds of multiplying and folding, modulo 2^64."""
    z = (values + 1) * -7046029254386353131 + key * 0x2545F4914F6CDD1D
    for factor in (-4658895280553007687, -7723592293110705685):
        z = (z ^ (z >> 30 & (1 << 34) - 1)) * factor
    return (z >> 40 & (1 << 24) - 1) / 2.0**24
