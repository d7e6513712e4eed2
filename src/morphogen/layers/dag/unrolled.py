"""A DAG of neurons as ordinary layers, level by level: `by_levels(dag)`."""

from collections import OrderedDict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from morphogen.layers.dag.sparse import levels
from morphogen.layers.linked_op import KINDS
from morphogen.random_state import undrawn

if TYPE_CHECKING:
    from morphogen.layers.dag.module import Dag


def by_levels(dag: "Dag") -> nn.Module:
    """The same function from `nn.Linear`, activations and `torch.cat`: one linear layer for each
    level, which reads everything before it, zeros where the wiring has no weight; then the readout,
    in an `nn.Sequential`.

    A block wiring has as many levels as blocks, the full wiring as many as nodes: export it, but
    train the `Dag`.
    """
    with torch.no_grad():
        return _built(dag)


def _built(dag: "Dag") -> nn.Module:
    matrix = dag.matrix()
    bias = dag.bias.detach()
    root = nn.Module()
    graph = Graph()
    root.add_module("activation", KINDS[dag.activation].module())
    known = graph.placeholder("x")
    order = list(range(dag.in_features))  # the row of values that each column of `known` is
    for number, nodes in enumerate(_levels(dag), start=1):
        name = f"level{number}"
        root.add_module(name, _linear(matrix[nodes][:, order], bias[nodes]))
        sums = graph.call_module(name, (known,))
        parts = [graph.call_module("activation", (sums,))]
        if dag.linked:
            parts.append(
                graph.call_module("activation", (graph.call_function(torch.neg, (sums,)),))
            )
        known = graph.call_function(torch.cat, ([known, *parts], -1))
        width = dag.layout.width
        order += [dag.in_features + width * node + half for half in range(width) for node in nodes]
    if dag.readout is None:
        # as the module puts them out: nodes in order, the positive halves first
        rows = (
            torch.arange(dag.in_features, dag.layout.values)
            .unflatten(0, (-1, dag.layout.width))
            .T.flatten()
        )
        place = torch.empty(dag.layout.values, dtype=torch.int64)
        place[order] = torch.arange(dag.layout.values)
        root.register_buffer("order", place[rows].to(matrix.device))
        known = graph.call_function(torch.index_select, (known, -1, graph.get_attr("order")))
    graph.output(known)
    levels = GraphModule(root, graph, "ByLevels")
    if dag.readout is None:
        return levels
    readout = _linear(dag.readout.weight[:, order], dag.readout.bias)
    return nn.Sequential(OrderedDict(levels=levels, readout=readout))


def _levels(dag: "Dag") -> list[list[int]]:
    """The nodes of each level."""
    if dag.indices is None or dag.indptr is None:
        ends = range(dag.nodes + 1) if dag.layout.inner else accumulate((0, *dag.layout.blocks))
        return [list(range(first, last)) for first, last in pairwise(ends)]
    level_of = levels(dag.indices.cpu(), dag.indptr.cpu(), dag.in_features, dag.layout.width)
    highest = int(level_of.max())
    return [torch.where(level_of == level)[0].tolist() for level in range(1, highest + 1)]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = undrawn(
        nn.Linear, weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype
    )
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
