"""A DAG that grows by stages, of which the last alone learns: `Cascade`, and
`edit.dag.add_stage`, which begins the next.

Source: cascade correlation, Fahlman & Lebiere 1990. Differs: a stage has as many nodes as it is
given, not one, and they learn by the loss, as everything does, not by their correlation with what
is left of it.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError
from morphogen.layers.dag.module import Dag


class Cascade(nn.Module):
    """Rows x (batch, in_features) -> (batch, out_features). Each stage is a `Dag` that reads the
    inputs and every node of the stages before it; a linear readout sees them all.

    nodes: of the first stage. how: of every stage's wiring, see `Dag`. Source: Fahlman & Lebiere
    1990.
    """

    def __init__(self, in_features: int, nodes: int, out_features: int, **how: Any) -> None:
        super().__init__()
        self.in_features = in_features
        self.how = how
        self.stages = nn.ModuleList([Dag(in_features, nodes, **how)])
        self.readout = nn.Linear(self.features, out_features)

    @property
    def features(self) -> int:
        """Values that the next stage, and the readout, read."""
        stages = cast(Iterable[Dag], self.stages)
        return self.in_features + sum(stage.layout.width * stage.nodes for stage in stages)

    def new_stage(self, nodes: int, generator: torch.Generator | None = None) -> Dag:
        """A stage that fits behind the last one."""
        like = self.readout.weight
        return Dag(self.features, nodes, **{**self.how, "generator": generator}).to(
            like.device, like.dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"Cascade: input of shape {tuple(x.shape)}; the last dimension must be "
                f"in_features={self.in_features}"
            )
        for stage in self.stages:
            x = torch.cat([x, stage(x)], -1)
        out: Tensor = self.readout(x)
        return out
