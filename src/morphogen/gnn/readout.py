"""One row of each scope from the rows of its nodes, of the last layer or of all of them: `Readout`.

Source: shaDow (see `gnn`), "subgraph pooling"; Xu et al., "Jumping Knowledge Networks", ICML 2018
(arXiv 1806.03536), for the layers; Zhang et al., "DGCNN", AAAI 2018, for sorting.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError
from morphogen.gnn.convolutions import row_norm

PoolingName = Literal["center", "mean", "max", "sum", "sort"]
ResidueName = Literal["none", "max", "sum", "concat"]

_LAYERS: Mapping[ResidueName, Callable[[Sequence[Tensor]], Tensor]] = {
    "none": lambda rows: rows[-1],
    "max": lambda rows: torch.stack(list(rows)).amax(0),
    "sum": lambda rows: torch.stack(list(rows)).sum(0),
    "concat": lambda rows: torch.cat(list(rows), 1),
}


class Readout(nn.Module):
    """pooling: of the nodes of a scope. residue: of the layers. features: of a row; so many come
    out. With the root of the last layer alone there is nothing to learn; else what roots and nodes
    say is joined by a layer of its own.

    layers: how many rows of each node come in. kept: nodes that "sort" keeps. pairs: what the two
    roots of a scope say is multiplied.
    """

    def __init__(
        self,
        features: int,
        layers: int,
        pooling: PoolingName = "center",
        residue: ResidueName = "none",
        kept: int = 25,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for argument, value, known in (
            ("pooling", pooling, get_args(PoolingName)),
            ("residue", residue, get_args(ResidueName)),
        ):
            if value not in known:
                raise ShapeError(f"{argument}={value!r}: unknown; choose one of {', '.join(known)}")
        self.pooling, self.residue, self.kept = pooling, residue, kept
        width = features * (layers if residue == "concat" else 1)
        self.sorted = (
            nn.Sequential(nn.Dropout(dropout), nn.Linear(kept * width, width), activation())
            if pooling == "sort"
            else None
        )
        self.joined = (
            None
            if (pooling, residue) == ("center", "none")
            else nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(width if pooling == "center" else 2 * width, features),
                activation(),
                row_norm(features),
            )
        )

    def forward(self, rows: Sequence[Tensor], starts: Tensor, roots: Tensor) -> Tensor:
        """rows: of each layer, (nodes, features). starts: (scopes + 1,). roots: (scopes, 1 or 2).
        Returns (scopes, features).
        """
        join = _LAYERS[self.residue]
        center = join([layer[roots].prod(1) for layer in rows])
        if self.joined is None:
            return center
        if len(roots) != len(starts) - 1 and self.pooling != "center":
            raise ShapeError(
                f"pooling={self.pooling!r}: {len(roots)} targets share {len(starts) - 1} scopes; "
                "give each its own, or pool by 'center'"
            )
        if self.pooling == "center":
            result: Tensor = self.joined(center)
            return result
        pooled = self._pooled(join(rows) if self.pooling == "sort" else rows, starts, join)
        result = self.joined(torch.cat([center, pooled], 1))
        return result

    def _pooled(
        self,
        rows: Tensor | Sequence[Tensor],
        starts: Tensor,
        join: Callable[[Sequence[Tensor]], Tensor],
    ) -> Tensor:
        if isinstance(rows, Tensor):
            assert self.sorted is not None
            result: Tensor = self.sorted(sort_pool(rows, starts, self.kept))
            return result
        return join([torch.segment_reduce(layer, self.pooling, offsets=starts) for layer in rows])


def sort_pool(rows: Tensor, starts: Tensor, kept: int) -> Tensor:
    """(scopes, kept * features): the `kept` nodes of each scope with the largest last feature, in
    falling order, zeros where there are fewer.
    """
    scopes = torch.repeat_interleave(starts.diff())
    falling = torch.argsort(rows[:, -1].detach(), descending=True, stable=True)
    order = falling[torch.argsort(scopes[falling], stable=True)]
    rank = torch.arange(len(rows), device=rows.device) - starts[scopes]
    best = rank < kept
    into = rows.new_zeros(len(starts) - 1, kept, rows.shape[1])
    return into.index_put((scopes[best], rank[best]), rows[order[best]]).flatten(1)
