"""Graph networks on scopes: each layer is its formula, scopes do not see each other, and what the
paper claims of small graphs holds.
"""

import itertools
from dataclasses import replace
from typing import get_args

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from morphogen.data.build_graph import build_graph
from morphogen.data.csr_graph import CsrGraph
from morphogen.errors import ShapeError
from morphogen.gnn.adjacency import Adjacency, drop_edges, from_edge_index, symmetric
from morphogen.gnn.convolutions import CONVOLUTIONS, GAT, GCN, GIN, SAGE, convolution
from morphogen.gnn.extractors import Neighbourhood, PageRank
from morphogen.gnn.network import Inputs, ShaDow, ShaDowShape, inputs
from morphogen.gnn.readout import PoolingName, Readout, ResidueName, sort_pool
from morphogen.gnn.scopes import scopes
from morphogen.layers.depth import LearnedDepth

F64 = torch.float64


def a_graph(nodes: int = 60, seed: int = 1) -> CsrGraph:
    whole = nx.barabasi_albert_graph(nodes - 2, 2, seed=seed)
    return build_graph(np.array(whole.edges), nodes).graph


def adjacency_of(graph: CsrGraph) -> Adjacency:
    return symmetric(torch.tensor(graph.indptr), torch.tensor(graph.indices))


def dense(adjacency: Adjacency) -> Tensor:
    """A[u, v]: how often u hears v."""
    result = torch.zeros(adjacency.nodes, adjacency.nodes, dtype=F64)
    for u, (low, high) in enumerate(itertools.pairwise(adjacency.indptr.tolist())):
        for v in adjacency.indices[low:high].tolist():
            result[u, v] += 1
    return result


def gcn(layer: GCN, x: Tensor, a: Tensor) -> Tensor:
    loops = a + torch.eye(len(a), dtype=F64)
    scale = loops.sum(1).rsqrt()
    return layer.norm(layer.activation(layer.linear(scale[:, None] * loops * scale @ x)))


def sage(layer: SAGE, x: Tensor, a: Tensor) -> Tensor:
    mean = a / a.sum(1, keepdim=True).clamp(min=1) @ x
    own, heard = layer.activation(layer.own(x)), layer.activation(layer.heard(mean))
    return layer.own_norm(own) + layer.heard_norm(heard)


def gin(layer: GIN, x: Tensor, a: Tensor) -> Tensor:
    hidden = layer.first(a @ x + (1 + layer.epsilon) * x).relu()
    return layer.norm(layer.activation(layer.second(hidden)))


def gat(layer: GAT, x: Tensor, a: Tensor) -> Tensor:
    loops = a + torch.eye(len(a), dtype=F64)
    outs = []
    own, heard = layer.activation(layer.own(x)), layer.activation(layer.heard(x))
    for head, (one, other) in enumerate(
        zip(own.chunk(layer.heads, 1), heard.chunk(layer.heads, 1), strict=True)
    ):
        logits = (one @ layer.hearing[head])[:, None] + (other @ layer.speaking[head])[None]
        weights = nn.functional.leaky_relu(logits, 0.2).exp() * loops
        attended = weights / weights.sum(1, keepdim=True) @ other
        outs.append((layer.own_norm(one) + layer.heard_norm(attended)) / 2)
    return torch.cat(outs, 1)


FORMULAS = {"gcn": gcn, "sage": sage, "gin": gin, "gat": gat}


def test_every_convolution_has_a_formula() -> None:
    assert CONVOLUTIONS.keys() == FORMULAS.keys()


def wirings() -> list[Adjacency]:
    draw = torch.Generator().manual_seed(0)
    directed = torch.randint(0, 20, (2, 60), generator=draw)
    return [adjacency_of(a_graph()), from_edge_index(directed, 22)]


@pytest.mark.parametrize("which", [0, 1], ids=["undirected", "directed, with double edges"])
@pytest.mark.parametrize("sizes", [(4, 8), (8, 4)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_its_formula(name: str, sizes: tuple[int, int], which: int) -> None:
    adjacency = wirings()[which]
    torch.manual_seed(0)
    layer = convolution(name, *sizes, nn.ELU).double()  # type: ignore[arg-type]
    if name == "gin":
        nn.init.constant_(layer.epsilon, 0.3)
    x = torch.randn(adjacency.nodes, sizes[0], dtype=F64, requires_grad=True)
    found = layer(x, adjacency)
    wanted = FORMULAS[name](layer, x, dense(adjacency))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    above = torch.randn_like(found)
    names = [name for name, _ in layer.named_parameters()]
    leaves = (x, *layer.parameters())
    for leaf, one, other in zip(
        ("x", *names),
        torch.autograd.grad(found, leaves, above),
        torch.autograd.grad(wanted, leaves, above),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=leaf)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_in_single_precision_is_that_in_double(name: str) -> None:
    adjacency = wirings()[0]
    torch.manual_seed(0)
    layer = convolution(name, 5, 8)  # type: ignore[arg-type]
    x = torch.randn(adjacency.nodes, 5)
    found = layer(x, adjacency)
    torch.testing.assert_close(
        found.double(), layer.double()(x.double(), adjacency), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("edge_index", [torch.zeros(3, 4).long(), torch.zeros(2, 4)])
def test_pairs_of_another_shape_are_refused(edge_index: Tensor) -> None:
    with pytest.raises(ShapeError, match="edge_index: .* give int64 of shape"):
        from_edge_index(edge_index, 5)


def test_pairs_of_unknown_nodes_are_refused() -> None:
    with pytest.raises(ShapeError, match="names nodes 0 to 5 where nodes=5"):
        from_edge_index(torch.tensor([[0, 5], [1, 1]]), 5)


def test_dropped_edges_go_in_both_directions() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, 300, (2, 4000), generator=draw)
    directed = from_edge_index(pairs, 300)
    undirected = from_edge_index(torch.cat([pairs, pairs.flip(0)], 1), 300)
    undirected = symmetric(undirected.indptr, undirected.indices)
    torch.manual_seed(3)
    for adjacency in (directed, undirected):
        shares = []
        for _ in range(5):
            dropped = drop_edges(adjacency, 0.3)
            transposed = Adjacency(*dropped[2:], *dropped[:2])
            assert torch.equal(dense(transposed), dense(dropped).T)
            assert (dense(dropped) <= dense(adjacency)).all()
            shares.append(len(dropped.indices) / len(adjacency.indices))
        assert abs(np.mean(shares) - 0.7) < 0.03
        assert len(set(shares)) > 1, "drawn anew each time"


SHAPES = [
    ShaDowShape(name, 3, 8, activation, pooling=pooling, residue=residue, sorted_nodes=4)
    for (name, activation), (pooling, residue) in zip(
        itertools.cycle(
            [("gcn", "relu"), ("sage", "elu"), ("gat", "prelu"), ("gin", "relu"), ("sage", "relu")]
        ),
        itertools.product(get_args(PoolingName), get_args(ResidueName)),
        strict=False,
    )
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.convolution}-{s.pooling}-{s.residue}")
def test_a_target_does_not_see_the_others_of_its_batch(shape: ShaDowShape) -> None:
    graph = a_graph()
    features = torch.randn(graph.nodes, 5, dtype=F64)
    torch.manual_seed(0)
    model = ShaDow(5, 3, shape).double().eval()
    nn.init.normal_(model.distance.weight)
    targets = np.array([4, 59, 12, 30, 12])
    together = model(inputs(scopes(graph, targets, PageRank(12)), features))
    for number, target in enumerate(targets):
        alone = model(inputs(scopes(graph, np.array([target]), PageRank(12)), features))
        torch.testing.assert_close(together[number], alone[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.convolution}-{s.pooling}-{s.residue}")
def test_how_nodes_are_numbered_does_not_matter(shape: ShaDowShape) -> None:
    graph = a_graph()
    order = np.random.default_rng(0).permutation(graph.nodes)
    rows = np.repeat(np.arange(graph.nodes), graph.degrees)
    other = build_graph(np.stack([order[rows], order[graph.indices]], 1), graph.nodes).graph
    features = torch.randn(graph.nodes, 5, dtype=F64)
    renumbered = torch.empty_like(features)
    renumbered[order] = features
    torch.manual_seed(0)
    model = ShaDow(5, 3, shape).double().eval()
    targets = np.arange(0, graph.nodes, 9)
    how = Neighbourhood(2, None)
    one = model(inputs(scopes(graph, targets, how), features))
    two = model(inputs(scopes(other, order[targets], how), renumbered))
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_readouts_are_what_they_are_called() -> None:
    starts = torch.tensor([0, 3, 4, 9])
    roots = torch.tensor([[1], [3], [8]])
    layers = [torch.randn(9, 4, dtype=F64) for _ in range(2)]
    parts = [[layer[a:b] for a, b in itertools.pairwise(starts.tolist())] for layer in layers]
    for pooling, residue in itertools.product(get_args(PoolingName), get_args(ResidueName)):
        readout = Readout(4, 2, pooling, residue, 2).double()
        found = readout(layers, starts, roots)
        assert found.shape == (3, 4)
        join = {
            "none": lambda rows: rows[-1],
            "max": lambda rows: torch.maximum(*rows),
            "sum": lambda rows: rows[0] + rows[1],
            "concat": lambda rows: torch.cat(rows, 1),
        }[residue]
        center = join([layer[roots[:, 0]] for layer in layers])
        if (pooling, residue) == ("center", "none"):
            torch.testing.assert_close(found, center)
        elif pooling == "center":
            torch.testing.assert_close(found, readout.joined(center))
        elif pooling != "sort":
            pool = {"mean": lambda p: p.mean(0), "max": lambda p: p.amax(0)}.get(
                pooling, lambda p: p.sum(0)
            )
            pooled = join([torch.stack([pool(part) for part in layer]) for layer in parts])
            torch.testing.assert_close(found, readout.joined(torch.cat([center, pooled], 1)))


def test_sorted_nodes_are_the_largest_by_their_last_feature() -> None:
    rows = torch.tensor([[1.0, 5], [2, 7], [3, 6], [4, 0], [5, 9]])
    found = sort_pool(rows, torch.tensor([0, 3, 4, 5]), 2)
    wanted = [[2, 7, 3, 6], [4, 0, 0, 0], [5, 9, 0, 0]]
    assert found.tolist() == wanted


def test_distances_matter_once_they_are_learned() -> None:
    graph = a_graph()
    given = inputs(scopes(graph, np.arange(20), PageRank(12)), torch.ones(graph.nodes, 5))
    model = ShaDow(5, 3, ShaDowShape(layers=2, hidden=8)).eval()
    without = ShaDow(5, 3, ShaDowShape(layers=2, hidden=8, distances=False)).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k != "distance.weight"})
    assert torch.equal(model(given), without(given)), "the embedding starts at 0"
    loss = model(given).square().sum()
    (gradient,) = torch.autograd.grad(loss, model.distance.weight)
    used = {0 if h == 255 else min(h, 6) + 1 for h in given.hops.flatten().tolist()}
    assert {int(i) for i in gradient.abs().sum(1).nonzero()} <= used
    assert gradient.abs().sum() > 0


def test_pairs_multiply_what_their_ends_say() -> None:
    graph = a_graph()
    features = torch.randn(graph.nodes, 5)
    model = ShaDow(5, 1, ShaDowShape(layers=2, hidden=8), pairs=True).eval()
    pairs = np.array([[0, 1], [4, 9], [58, 59]])
    found = model(inputs(scopes(graph, pairs, PageRank(12)), features))
    turned = model(inputs(scopes(graph, pairs[:, ::-1], PageRank(12)), features))
    assert found.shape == (3, 1)
    torch.testing.assert_close(found, turned)
    assert model.output_norm is None, "one number that is normalised says nothing"


def test_several_scopes_of_a_target_are_weighed() -> None:
    graph = a_graph()
    features = torch.randn(graph.nodes, 5, dtype=F64)
    shape = ShaDowShape(layers=2, hidden=8, branches=2)
    model = ShaDow(5, 3, shape).double().eval()
    one, two = (
        inputs(scopes(graph, np.arange(6), how), features)
        for how in (PageRank(12), Neighbourhood(1, None))
    )
    rows = [model.embedding(branch) for branch in (one, two)]
    scores = torch.stack([model.joint.score(row) for row in rows])
    weights = scores.exp() / scores.exp().sum(0)
    wanted = model.output_norm(model.last(weights[0] * rows[0] + weights[1] * rows[1]))
    torch.testing.assert_close(model(one, two), wanted)
    with pytest.raises(ShapeError, match="branches: 1 batches .* reads 2"):
        model(one)


def test_depth_can_be_learned() -> None:
    """Every block is given who hears whom, and the gradient of the depth says whether one more
    would help.
    """
    graph = a_graph()
    given = inputs(scopes(graph, np.arange(20), PageRank(12)), torch.randn(graph.nodes, 5))
    torch.manual_seed(0)
    model = ShaDow(5, 3, ShaDowShape(layers=3, hidden=8, learned_depth=True))
    depth = model.depth
    assert isinstance(depth, LearnedDepth)
    assert depth.active_blocks == 2
    model(given).square().sum().backward()
    assert depth.w.grad is not None
    assert depth.w.grad != 0
    plain = ShaDow(5, 3, ShaDowShape(layers=1, hidden=8))
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("depth")}
    )
    x = model.first(given.x, given.adjacency)
    for block, gate in zip(depth.blocks, depth.gates()[:2], strict=False):
        x = x + gate * block(x, given.adjacency)
    row = nn.functional.normalize(x[given.roots[:, 0]], dim=1)
    torch.testing.assert_close(model(given), plain.output_norm(plain.last(row)))


def test_edges_are_dropped_in_training_alone() -> None:
    graph = a_graph()
    given = inputs(scopes(graph, np.arange(20), PageRank(12)), torch.randn(graph.nodes, 5))
    model = ShaDow(5, 3, ShaDowShape(layers=2, hidden=8, drop_edge=0.5))
    assert not torch.equal(model(given), model(given))
    model.eval()
    assert torch.equal(model(given), model(given))


def test_a_network_can_be_exported() -> None:
    graph = a_graph()
    features = torch.randn(graph.nodes, 5)
    for name in CONVOLUTIONS:
        model = ShaDow(5, 3, ShaDowShape(name, 3, 8, pooling="mean")).eval()  # type: ignore[arg-type]
        one = inputs(scopes(graph, np.arange(8), PageRank(12)), features)
        program = torch.export.export(model, (one,), strict=False)
        torch.testing.assert_close(program.module()(one), model(one))


def test_scopes_tell_apart_what_one_walk_over_all_cannot() -> None:
    """Two graphs whose nodes all have three neighbours look the same to every message passing
    network with equal features; the scopes of one node within one edge do not.

    Source: shaDow, theorem 3.5: a prism (triangles) and K3,3 (none).
    """
    prism, bipartite = nx.circular_ladder_graph(3), nx.complete_bipartite_graph(3, 3)
    torch.manual_seed(0)
    model = ShaDow(1, 4, ShaDowShape("gin", 2, 16, distances=False)).double().eval()
    whole, scoped = [], []
    for shape in (prism, bipartite):
        graph = build_graph(np.array(nx.convert_node_labels_to_integers(shape).edges), 6).graph
        ones = torch.ones(6, 1, dtype=F64)
        everything = Inputs(
            ones,
            adjacency_of(graph),
            torch.tensor([0, 6]),
            torch.arange(6)[:, None],
            torch.zeros(6, 1, dtype=torch.uint8),
        )
        whole.append(model(everything))
        scoped.append(model(inputs(scopes(graph, np.arange(6), Neighbourhood(1, None)), ones)))
    torch.testing.assert_close(*whole)
    assert (scoped[0] - scoped[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"convolution": "chebyshev"}, "convolution='chebyshev': unknown; choose one of gcn"),
        ({"convolution": "gat", "hidden": 10}, "outputs=10 cannot be shared among heads=4"),
        ({"layers": 0}, "layers=0"),
        ({"activation": "tanh"}, "activation='tanh': unknown"),
        ({"pooling": "median"}, "pooling='median': unknown"),
        ({"residue": "mean"}, "residue='mean': unknown"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"learned_depth": True, "residue": "max"}, "residue='max': with learned_depth"),
        ({"learned_depth": True, "layers": 1}, "layers=1: with learned_depth"),
    ],
)
def test_shapes_without_sense_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        ShaDow(5, 3, replace(ShaDowShape(), **changes))  # type: ignore[arg-type]
