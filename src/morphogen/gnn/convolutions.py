"""What one layer makes of a node and those it hears: `CONVOLUTIONS`, modules of (x, adjacency).

x: (nodes, features). adjacency: of scopes, or of PyTorch Geometric's pairs by
`adjacency.from_edge_index`. Each ends with its activation and a normalisation of each row with a
learned scale and offset, as published for shaDow; dropout is before it.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from morphogen.errors import ShapeError
from morphogen.gnn.adjacency import Adjacency
from morphogen.gnn.attention import attention
from morphogen.gnn.neighbour_sums import neighbour_sums

ConvolutionName = Literal["gcn", "sage", "gat", "gin"]


def row_norm(features: int) -> nn.LayerNorm:
    """Each row less its mean, divided by its deviation; eps as published."""
    return nn.LayerNorm(features, eps=1e-9)


class Convolution(nn.Module):
    """inputs, outputs: features of a node before and after."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.dropout = nn.Dropout(dropout)
        self.activation = activation()

    @abstractmethod
    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor: ...


class GCN(Convolution):
    """D^-1/2 (A + I) D^-1/2 x W + b, D the degrees with the self-edges.

    Source: Kipf and Welling, ICLR 2017 (arXiv 1609.02907), equation 2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, outputs, activation, dropout)
        self.linear = nn.Linear(inputs, outputs)
        self.norm = row_norm(outputs)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        x = self.dropout(x)
        scale = (adjacency.degrees() + 1).to(x.dtype).rsqrt()

        def smooth(x: Tensor) -> Tensor:
            return neighbour_sums(adjacency, x, scale, scale) + (scale * scale)[:, None] * x

        result: Tensor = self.norm(self.activation(_smoothed(self.linear, x, smooth)))
        return result


class SAGE(Convolution):
    """What a node is itself, and the mean of what it hears, each with weights and a normalisation
    of its own, added.

    Source: Hamilton et al., NeurIPS 2017 (arXiv 1706.02216), with the mean. Differs: each part has
    its activation and norm, as in the published code of shaDow.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, outputs, activation, dropout)
        self.own, self.heard = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)
        self.own_norm, self.heard_norm = row_norm(outputs), row_norm(outputs)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        x = self.dropout(x)
        share = adjacency.degrees().clamp(min=1).to(x.dtype).reciprocal()
        heard = _smoothed(self.heard, x, lambda x: neighbour_sums(adjacency, x, share))
        own = self.own_norm(self.activation(self.own(x)))
        result: Tensor = own + self.heard_norm(self.activation(heard))
        return result


class GIN(Convolution):
    """A perceptron of (1 + eps) x + the sum of what a node hears, eps learned.

    Source: Xu et al., ICLR 2019 (arXiv 1810.00826), equation 4.1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(inputs, outputs, activation, dropout)
        self.epsilon = nn.Parameter(torch.zeros(()))
        self.first, self.second = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)
        self.norm = row_norm(outputs)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        x = self.dropout(x)

        def summed(x: Tensor) -> Tensor:
            return neighbour_sums(adjacency, x) + (1 + self.epsilon) * x

        hidden = torch.relu(_smoothed(self.first, x, summed))
        result: Tensor = self.norm(self.activation(self.second(hidden)))
        return result


class GAT(Convolution):
    """Attention over the node itself and those it hears, in `heads` that each have their part of
    the features.

    Source: Velickovic et al., ICLR 2018 (arXiv 1710.10903), with what the published code of shaDow
    adds: the node's own stream beside, the norm of each head, the mean of both. Differs from that
    code: the leaky ReLU is of the sum of both ends' parts, as in the paper; of each part by itself,
    as there, the hearing end cancels out in the softmax.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        heads: int = 4,
    ) -> None:
        if outputs % heads:
            raise ShapeError(
                f"GAT: outputs={outputs} cannot be shared among heads={heads}; give a multiple"
            )
        super().__init__(inputs, outputs, activation, dropout)
        self.heads = heads
        self.own, self.heard = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)
        self.hearing, self.speaking = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(heads, outputs // heads)))
            for _ in range(2)
        )
        self.own_norm, self.heard_norm = row_norm(outputs // heads), row_norm(outputs // heads)

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        x = self.dropout(x)
        own, heard = (
            self.activation(linear(x)).unflatten(1, (self.heads, -1))
            for linear in (self.own, self.heard)
        )
        to, of = (own * self.hearing).sum(2), (heard * self.speaking).sum(2)
        attended = attention(adjacency, to, of, heard)
        result: Tensor = ((self.own_norm(own) + self.heard_norm(attended)) / 2).flatten(1)
        return result


def _smoothed(linear: nn.Linear, x: Tensor, smooth: Callable[[Tensor], Tensor]) -> Tensor:
    """smooth(x) W + b, in the order that has fewer features to smooth."""
    if linear.in_features <= linear.out_features:
        result: Tensor = linear(smooth(x))
        return result
    narrow = smooth(nn.functional.linear(x, linear.weight))
    return narrow if linear.bias is None else narrow + linear.bias


CONVOLUTIONS: Mapping[ConvolutionName, type[Convolution]] = {
    "gcn": GCN,
    "sage": SAGE,
    "gat": GAT,
    "gin": GIN,
}


def convolution(
    name: ConvolutionName,
    inputs: int,
    outputs: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
) -> Convolution:
    """Raises `ShapeError` for an unknown name."""
    if name not in CONVOLUTIONS:
        raise ShapeError(
            f"convolution={name!r}: unknown; choose one of {', '.join(get_args(ConvolutionName))}"
        )
    return CONVOLUTIONS[name](inputs, outputs, activation, dropout)
