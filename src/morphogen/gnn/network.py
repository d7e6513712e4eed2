"""A graph network on scopes: `ShaDow`, whose depth has nothing to do with how far a scope reaches.

Features (with how far each node is from the target), layers of one kind, a readout of each scope,
scaled to length 1; of several scopes of a target a mean with learned weights; one linear layer.

Source: shaDow (see `gnn`), section 3, settings of its published code.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from morphogen.errors import ShapeError
from morphogen.gnn.adjacency import Adjacency, drop_edges
from morphogen.gnn.convolutions import ConvolutionName, convolution, row_norm
from morphogen.gnn.induced import UNREACHED
from morphogen.gnn.readout import PoolingName, Readout, ResidueName
from morphogen.gnn.scopes import Scopes, structural_labels
from morphogen.layers.depth import LearnedDepth

ActivationName = Literal["relu", "elu", "prelu"]
ACTIVATIONS: Mapping[ActivationName, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
}
FARTHEST = 5  # hops that have an embedding of their own
LABELS = 26  # of pairs


class Inputs(NamedTuple):
    """A batch of scopes as the network reads it. x: (nodes, features). starts: (scopes + 1,).
    roots: (scopes, 1), or (scopes, 2) for pairs. hops: (nodes, 1 or 2) uint8.
    """

    x: Tensor
    adjacency: Adjacency
    starts: Tensor
    roots: Tensor
    hops: Tensor


def inputs(scopes: Scopes, features: Tensor) -> Inputs:
    """features: of every node of the graph, (nodes, features)."""
    x = features[scopes.nodes]
    return Inputs(x, scopes.adjacency, scopes.starts, scopes.roots, scopes.hops)


@dataclass(frozen=True)
class ShaDowShape:
    """layers: how often nodes hear each other, the first layer included; with learned_depth that is
    where the search begins. distances: how far a node is from the target is added to its features,
    as an embedding that starts at 0. branches: scopes of each target, by one extractor each, all
    read by one network. drop_edge: share of the edges that each training step leaves out.
    """

    convolution: ConvolutionName = "sage"
    layers: int = 5
    hidden: int = 256
    activation: ActivationName = "relu"
    dropout: float = 0.0
    drop_edge: float = 0.0
    pooling: PoolingName = "center"
    residue: ResidueName = "none"
    sorted_nodes: int = 25
    distances: bool = True
    branches: int = 1
    learned_depth: bool = False


class ShaDow(nn.Module):
    """features: of a node. outputs: classes, or numbers to predict. pairs: a target is a pair of
    nodes. normalised: each row of outputs is normalised, with a learned scale and offset.

    Differs: two outputs or one are never normalised: of two, nothing but the sign would be left.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        shape: ShaDowShape | None = None,
        pairs: bool = False,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.shape = shape = shape or ShaDowShape()
        self.features, self.outputs, self.pairs = features, outputs, pairs
        self.normalised = normalised
        _check(shape)
        activation = ACTIVATIONS[shape.activation]

        def layer(given: int) -> nn.Module:
            return convolution(shape.convolution, given, shape.hidden, activation, shape.dropout)

        self.distance = (
            nn.Embedding(LABELS if pairs else FARTHEST + 3, features) if shape.distances else None
        )
        if self.distance is not None:
            nn.init.zeros_(self.distance.weight)
        self.first = layer(features)
        self.depth = (
            LearnedDepth(
                lambda _: layer(shape.hidden),
                nn.Identity(),
                float(shape.layers - 1),
                floor=0.1,
                lookahead=True,
            )
            if shape.learned_depth
            else None
        )
        self.further = nn.ModuleList(
            [] if shape.learned_depth else [layer(shape.hidden) for _ in range(shape.layers - 1)]
        )
        self.readout = Readout(
            shape.hidden,
            shape.layers,
            shape.pooling,
            shape.residue,
            shape.sorted_nodes,
            activation,
            shape.dropout,
        )
        self.joint = Ensemble(shape.hidden, activation) if shape.branches > 1 else None
        self.last = nn.Linear(shape.hidden, outputs)
        self.output_norm = row_norm(outputs) if normalised and outputs > 2 else None

    @property
    def layers(self) -> float:
        """How often nodes hear each other; a real number where that is learned."""
        return 1 + (len(self.further) if self.depth is None else self.depth.depth)

    def forward(self, *branches: Inputs) -> Tensor:
        """Logits or values, (scopes, outputs). branches: a batch of each extractor, of the same
        targets in the same order.
        """
        if len(branches) != self.shape.branches:
            raise ShapeError(
                f"branches: {len(branches)} batches of scopes where the network reads "
                f"{self.shape.branches}; give one for each extractor"
            )
        each = [self.embedding(branch) for branch in branches]
        joint = each[0] if self.joint is None else self.joint(torch.stack(each, 1))
        result: Tensor = self.last(joint)
        return result if self.output_norm is None else self.output_norm(result)

    def embedding(self, given: Inputs) -> Tensor:
        """One row of length 1 for each scope, (scopes, hidden)."""
        x, adjacency = given.x, given.adjacency
        if self.distance is not None:
            x = x + self.distance(_distances(given.hops))
        if self.training and self.shape.drop_edge > 0:
            adjacency = drop_edges(adjacency, self.shape.drop_edge)
        x = self.first(x, adjacency)
        rows = [x]
        for layer in self.further if self.depth is None else [self.depth]:
            x = layer(x, adjacency)
            rows.append(x)
        return F.normalize(self.readout(rows, given.starts, given.roots), dim=1)


class Ensemble(nn.Module):
    """A mean of what several scopes of a target say, whose weights are learned: softmax over them
    of q . act(W x + b).

    Source: shaDow (see `gnn`), "subgraph ensemble".
    """

    def __init__(self, features: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(features, features), activation(), nn.Linear(features, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (scopes, branches, features). Returns (scopes, features)."""
        weights = torch.softmax(self.score(x), 1)
        return (weights * x).sum(1)


def _distances(hops: Tensor) -> Tensor:
    """(nodes,) int64: of one root, 0 for a node that is not reached, then 1 + hops, those too far
    as one; of two, the label of a pair, those too large as 0.
    """
    if hops.shape[1] == 2:
        labels = structural_labels(hops)
        return torch.where(labels < LABELS, labels, 0)
    far = hops[:, 0].long()
    return torch.where(far == UNREACHED, 0, far.clamp(max=FARTHEST + 1) + 1)


def _check(shape: ShaDowShape) -> None:
    for argument in ("layers", "hidden", "sorted_nodes", "branches"):
        if (value := getattr(shape, argument)) < 1:
            raise ShapeError(f"{argument}={value}; give at least 1")
    if shape.activation not in ACTIVATIONS:
        raise ShapeError(
            f"activation={shape.activation!r}: unknown; choose one of {', '.join(ACTIVATIONS)}"
        )
    for argument in ("dropout", "drop_edge"):
        if not 0 <= (share := getattr(shape, argument)) < 1:
            raise ShapeError(f"{argument}={share}; give a share from 0 to below 1")
    if shape.learned_depth and shape.residue != "none":
        raise ShapeError(
            f"residue={shape.residue!r}: with learned_depth the number of layers changes; use "
            "'none'"
        )
    if shape.learned_depth and shape.layers < 2:
        raise ShapeError("layers=1: with learned_depth give at least 2")
