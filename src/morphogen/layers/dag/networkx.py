"""A `Dag` as a graph of networkx, and any directed acyclic graph as a `Dag`."""

from collections.abc import Hashable, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from morphogen.errors import ShapeError
from morphogen.layers.dag.module import Dag


def to_networkx(dag: Dag) -> "nx.DiGraph[Any]":
    """Nodes ("x", i) for inputs and ("h", i) for nodes, these with their `bias`; an edge from
    source to reader for each weight, as `weight`, of linked nodes the pair (for g(z), for g(-z)).
    """
    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_nodes_from(("x", i) for i in range(dag.in_features))
    graph.add_nodes_from((("h", i), {"bias": bias}) for i, bias in enumerate(dag.bias.tolist()))
    node_of, row_of = dag.entries()
    width = dag.layout.width
    halves: dict[tuple[Hashable, Hashable], list[float]] = {}
    for node, row, weight in zip(
        node_of.tolist(), row_of.tolist(), dag.weight.tolist(), strict=True
    ):
        origin = ("x", row) if row < dag.in_features else ("h", (row - dag.in_features) // width)
        halves.setdefault((origin, ("h", node)), []).append(weight)
    for (source, reader), weights in halves.items():
        graph.add_edge(source, reader, weight=weights[0] if len(weights) == 1 else tuple(weights))
    return graph


def from_networkx(
    graph: "nx.DiGraph[Any]",
    inputs: Sequence[Hashable],
    out_features: int | None = None,
    **options: Any,
) -> tuple[Dag, list[Hashable]]:
    """(a sparse `Dag` wired as `graph`, the graph's nodes in the order of the Dag's), for any
    directed acyclic graph.

    inputs: the nodes that stand for the inputs, in their order; nothing may lead to them. Where
    every edge has a `weight`, the weights are those (numbers, or pairs for linked nodes), else they
    are drawn; a node's `bias` is taken where it has one. options: of `Dag`, its wiring aside.
    Errors: `ShapeError` for a cycle, an input that is read into, no nodes beside inputs.
    """
    if not nx.is_directed_acyclic_graph(graph):
        raise ShapeError(
            f"from_networkx: the graph has a cycle, {nx.find_cycle(graph)[:3]}; give one without"
        )
    known = {node: row for row, node in enumerate(inputs)}
    if missing := [node for node in inputs if node not in graph]:
        raise ShapeError(f"from_networkx: inputs {missing[:3]} are no nodes of the graph")
    if read := [node for node in inputs if graph.in_degree(node)]:
        raise ShapeError(f"from_networkx: edges lead to the inputs {read[:3]}; an input has none")
    order = [node for node in nx.topological_sort(graph) if node not in known]
    if not order or not inputs:
        raise ShapeError(
            f"from_networkx: {len(inputs)} inputs and {len(order)} other nodes; give at least one "
            "of each"
        )
    dag = Dag(len(inputs), len(order), out_features, "random", fan_in=1, **options)
    width = dag.layout.width
    known |= {node: dag.in_features + width * number for number, node in enumerate(order)}
    rows: list[int] = []
    weights: list[float] = []
    indptr = [0]
    weighted = all("weight" in data for _, _, data in graph.edges(data=True))
    for node in order:
        for source in sorted(graph.predecessors(node), key=lambda source: known[source]):
            halves = range(width if known[source] >= dag.in_features else 1)
            rows += [known[source] + half for half in halves]
            weight = graph.edges[source, node].get("weight", 0.0)
            weights += weight if isinstance(weight, (tuple, list)) else [weight]
        indptr.append(len(rows))
    dag.weight.data = dag.weight.new_empty(len(rows))
    dag.rearrange(dag.layout, torch.tensor(rows, dtype=torch.int64), torch.tensor(indptr))
    dag.reset_parameters(options.get("generator"))
    with torch.no_grad():
        if weighted:
            dag.weight.copy_(_checked(weights, len(rows)))
        for number, node in enumerate(order):
            if dag.bias.requires_grad:
                dag.bias[number] = graph.nodes[node].get("bias", 0.0)
    dag.fan_in = max(1, round(len(rows) / (width * len(order))))
    return dag, order


def _checked(weights: list[float], count: int) -> Tensor:
    if len(weights) != count:
        raise ShapeError(
            f"from_networkx: {len(weights)} weights for {count} places; a linked source has a pair"
        )
    return torch.tensor(weights)
