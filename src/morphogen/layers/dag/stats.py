"""How far apart the nodes of a DAG are: `stats(dag)`.

Closed forms that a test holds this to. Mean path, each step going to a source at random: 1 + ln(1 +
n / d) for n nodes over d inputs, whatever the fan-in. Nodes that no node reads: 1 / (N + 1) of a
random wiring of fan-in N. Shortest ways: half of the nodes are within two hops of the last for N =
sqrt(n), a / (1 + a) for a = N^2 / n.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from morphogen.layers.dag.module import Dag


@dataclass(frozen=True)
class Stats:
    """levels: nodes on the longest way, the steps that must follow each other. sinks: the share of
    nodes that no other node reads. reach: the share of earlier nodes from which a way leads to the
    last node. hops: how many nodes, after 1, 2, ... steps of a shortest way to the last node.
    mean_hops: of those that reach it. path: steps from the last node back to an input, each step to
    a source at random; energy_path: in proportion to the squared weights.
    """

    nodes: int
    weights: int
    levels: int
    sinks: float
    reach: float
    hops: tuple[int, ...]
    mean_hops: float
    path: float
    energy_path: float

    def within(self, steps: int) -> float:
        """The share of earlier nodes within so many hops of the last node."""
        return sum(self.hops[:steps]) / max(1, self.nodes - 1)


def stats(dag: "Dag") -> Stats:
    """Of a DAG's wiring and weights, by one pass over its weights."""
    n = dag.nodes
    d = dag.in_features
    width = dag.layout.width
    level = np.zeros(n, dtype=np.int64)
    read = np.zeros(n, dtype=bool)
    # steps from a row of values back to an input; an input has none
    steps = np.zeros(d + width * n)
    weighted = np.zeros(d + width * n)
    for node, (indices, weights) in enumerate(_rows(dag)):
        nodes = (indices[indices >= d] - d) // width
        level[node] = 1 + (level[nodes].max() if len(nodes) else 0)
        read[nodes] = True
        at = slice(d + width * node, d + width * (node + 1))
        if len(indices):
            second_moment = weights**2
            total = second_moment.sum()
            steps[at] = 1 + steps[indices].mean()
            weighted[at] = 1 + (second_moment @ weighted[indices] / total if total else 0.0)
    hops = _hops(dag)
    reached = sum(hops)
    return Stats(
        n,
        dag.weight.numel(),
        int(level.max()),
        float(1 - read[:-1].mean()) if n > 1 else 0.0,
        reached / max(1, n - 1),
        hops,
        sum((i + 1) * count for i, count in enumerate(hops)) / reached if reached else math.nan,
        float(steps[-1]),
        float(weighted[-1]),
    )


def _rows(dag: "Dag") -> "list[tuple[np.ndarray, np.ndarray]]":
    """(rows of values, weights) that each node reads."""
    weight = dag.weight.detach().double().cpu().numpy()
    if dag.indices is not None and dag.indptr is not None:
        indices = dag.indices.cpu().numpy()
        indptr = dag.indptr.cpu().numpy()
        cuts = indptr[1:-1]
        return list(zip(np.split(indices, cuts), np.split(weight, cuts), strict=True))
    rows = []
    for part in dag.layout.parts(dag.weight.detach()):
        panel = part.panel.double().cpu().numpy()
        triangle = part.triangle.double().cpu().numpy()
        first = 0
        for row in range(part.size):
            inner = dag.layout.width * row if dag.layout.inner else 0
            weights = np.concatenate([panel[row], triangle[first : first + inner]])
            rows.append((np.arange(part.before + inner), weights))
            first += inner
    return rows


def _hops(dag: "Dag") -> tuple[int, ...]:
    """How many nodes are 1, 2, ... steps before the last one."""
    d = dag.in_features
    width = dag.layout.width
    n = dag.nodes
    if dag.indices is None or dag.indptr is None:
        # whatever the last node can come from it reads itself
        return (n - 1 if dag.layout.inner else n - dag.layout.blocks[-1],)
    indices = dag.indices.cpu().numpy()
    indptr = dag.indptr.cpu().numpy()
    distance = np.full(n, -1)
    distance[-1] = 0
    front = np.array([n - 1])
    counts: list[int] = []
    while len(front):
        entries = np.concatenate([indices[indptr[node] : indptr[node + 1]] for node in front])
        reached = np.unique((entries[entries >= d] - d) // width)
        front = reached[distance[reached] < 0]
        distance[front] = len(counts) + 1
        counts.append(len(front))
    return tuple(counts[:-1])
