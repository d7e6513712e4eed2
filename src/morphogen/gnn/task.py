"""What is to be predicted of the nodes of a graph: `NodeTask`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.data.csr_graph import CsrGraph
from morphogen.data.graph_sets import GraphSet
from morphogen.errors import DataError

TaskName = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class NodeTask:
    """x: (nodes, features) float32, standardised. y: (nodes,) int64 classes, or float32 values;
    what stands at nodes outside the parts is never read. train, valid, test: nodes. outputs:
    classes, 1 for values.
    """

    graph: CsrGraph
    x: Tensor
    y: Tensor
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    outputs: int

    @property
    def kind(self) -> TaskName:
        return "classification" if self.y.dtype == torch.int64 else "regression"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean over targets: cross entropy, or the squared error."""
        if self.kind == "regression":
            return F.mse_loss(outputs[:, 0], y)
        return F.cross_entropy(outputs, y)

    def answers(self, outputs: Tensor) -> np.ndarray:
        """Probabilities (n, classes) or values (n,)."""
        if self.kind == "regression":
            return outputs[:, 0].numpy()
        return torch.softmax(outputs.double(), 1).numpy()


def standardised(x: np.ndarray, nodes: np.ndarray | None = None) -> Tensor:
    """Features less their mean, by their deviation, both of `nodes` (None for all); those that do
    not vary become 0.

    Raises `DataError` for a value that is no number.
    """
    bad = ~np.isfinite(x)
    if bad.any():
        node, feature = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"x: {int(bad.sum())} values are NaN or infinite, the first is feature {feature} of "
            f"node {node}; fill or drop them"
        )
    seen = x if nodes is None else x[nodes]
    mean, deviation = seen.mean(0, dtype=np.float64), seen.std(0, dtype=np.float64)
    varies = deviation > 1e-6 * np.abs(mean).clip(1e-30)
    scaled = np.where(varies, (x - mean) / np.where(varies, deviation, 1), 0)
    return torch.from_numpy(scaled.astype(np.float32))


def task_of(given: GraphSet) -> NodeTask:
    """Of a named set, its features standardised over all nodes."""
    y = torch.from_numpy(given.y)
    x = standardised(given.x)
    return NodeTask(given.graph, x, y, given.train, given.valid, given.test, given.classes)
