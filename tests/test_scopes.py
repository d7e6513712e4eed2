"""Scopes: what the extractors promise, against an exact solve and networkx; edges, distances and
labels; the same for any number of threads.
"""

import networkx as nx
import numpy as np
import pytest
import torch

from morphogen.data.build_graph import build_graph
from morphogen.data.csr_graph import CsrGraph, subgraph
from morphogen.errors import ShapeError
from morphogen.gnn import pagerank
from morphogen.gnn.extractors import (
    Alone,
    Extractor,
    Neighbourhood,
    NodeSets,
    PageRank,
    WeightedPageRank,
    scopes_of,
)
from morphogen.gnn.induced import UNREACHED
from morphogen.gnn.scopes import Scopes, joined, scopes, structural_labels
from morphogen.gnn.slots import slots_of
from morphogen.threads import threads

EXTRACTORS: list[Extractor] = [
    PageRank(12, 0.0, 1e-4),
    PageRank(30, 0.05, 1e-3),
    WeightedPageRank(8, 24, 1e-4),
    Neighbourhood(2, 3),
    Neighbourhood(2, 3, replace=False),
    Neighbourhood(2, None),
    Alone(),
]


def a_graph(nodes: int = 120, seed: int = 0) -> CsrGraph:
    """With hubs, three isolated nodes at the end, and parts that do not touch."""
    whole = nx.barabasi_albert_graph(nodes - 23, 3, seed=seed)
    apart = nx.cycle_graph(20)
    edges = np.array([*whole.edges, *(np.array(apart.edges) + nodes - 23)])
    return build_graph(edges, nodes).graph


def as_networkx(graph: CsrGraph) -> nx.Graph:
    other = nx.empty_graph(graph.nodes)
    other.add_edges_from((u, int(v)) for u in range(graph.nodes) for v in graph.neighbours(u))
    return other


def exact(graph: CsrGraph, root: int, teleport: float) -> np.ndarray:
    """p = c e + (1 - c) p D^-1 A, solved."""
    dense = np.zeros((graph.nodes, graph.nodes))
    for u in range(graph.nodes):
        dense[u, graph.neighbours(u)] = 1
    walk = dense / np.maximum(dense.sum(1, keepdims=True), 1)
    start = np.zeros(graph.nodes)
    start[root] = teleport
    return np.linalg.solve(np.eye(graph.nodes) - (1 - teleport) * walk.T, start)


def pushed(graph: CsrGraph, root: int, teleport: float, epsilon: float) -> tuple[np.ndarray, int]:
    size = pagerank.room(graph.nodes, teleport, epsilon)
    touched, state = np.empty(size, np.int32), np.empty((size, 4))
    queue = np.empty(size, np.int32)
    with slots_of(graph.nodes) as slots:
        count, visits = pagerank.push(
            graph.indptr, graph.indices, root, teleport, epsilon, slots, touched, state, queue
        )
        slots[touched[:count]] = -1
    scores = np.zeros(graph.nodes)
    scores[touched[:count]] = state[:count, 2]
    return scores, visits


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("teleport", [pagerank.EAGER, 0.15, 0.6])
def test_a_push_is_within_its_error_of_the_exact_solve(teleport: float, epsilon: float) -> None:
    graph = a_graph()
    for root in range(0, graph.nodes - 3, 7):
        scores, visits = pushed(graph, root, teleport, epsilon)
        behind = exact(graph, root, teleport) - scores
        assert (behind >= -1e-12).all()
        assert (behind <= epsilon * graph.degrees + 1e-12).all()
        assert visits <= 1 / (teleport * epsilon)


def test_a_walk_that_never_rests_has_the_lazy_vector() -> None:
    """Andersen et al. keep half of what a node holds: p = c e + (1 - c) p (I + D^-1 A) / 2."""
    graph = a_graph()
    dense = np.zeros((graph.nodes, graph.nodes))
    for u in range(graph.nodes):
        dense[u, graph.neighbours(u)] = 1
    lazy = (np.eye(graph.nodes) + dense / np.maximum(dense.sum(1, keepdims=True), 1)) / 2
    start = np.zeros(graph.nodes)
    start[5] = pagerank.LAZY
    wanted = np.linalg.solve(np.eye(graph.nodes) - (1 - pagerank.LAZY) * lazy.T, start)
    np.testing.assert_allclose(exact(graph, 5, pagerank.EAGER), wanted, atol=1e-12)


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=str)
def test_scopes_are_the_induced_graphs_with_their_distances(extractor: Extractor) -> None:
    graph = a_graph()
    whole = as_networkx(graph)
    targets = np.array([5, 0, 119, 5, 77, 101])
    batch = scopes(graph, targets, extractor, seed=3, epoch=2)
    assert len(batch) == len(targets)
    assert batch.nodes[batch.roots[:, 0]].tolist() == targets.tolist()
    check_induced(batch, whole)
    if not isinstance(extractor, Neighbourhood) or not extractor.budget:
        sizes = batch.starts.diff()
        assert sizes[2] == 1, "an isolated target is a scope of its own"
        assert sizes[0] == sizes[3]
    most = getattr(extractor, "most", graph.nodes)
    assert int(batch.starts.diff().max()) <= most


def check_induced(batch: Scopes, whole: nx.Graph) -> None:
    nodes, indptr = batch.nodes.tolist(), batch.adjacency.indptr.tolist()
    columns = batch.adjacency.indices.tolist()
    for scope in range(len(batch)):
        first, last = batch.starts[scope : scope + 2].tolist()
        own = nodes[first:last]
        assert own == sorted(set(own))
        induced = whole.subgraph(own)
        for place in range(first, last):
            heard = columns[indptr[place] : indptr[place + 1]]
            assert heard == sorted(heard)
            assert [nodes[other] for other in heard] == sorted(induced[nodes[place]])
            assert all(first <= other < last for other in heard), "scopes never touch"
        root = nodes[int(batch.roots[scope, 0])]
        far = nx.single_source_shortest_path_length(induced, root)
        assert batch.hops[first:last, 0].tolist() == [far.get(node, UNREACHED) for node in own]


def test_threshold_is_of_the_second_best_score() -> None:
    graph = a_graph()
    for root in (4, 40, 99):
        scores, _ = pushed(graph, root, pagerank.EAGER, 1e-5)
        second = np.sort(scores)[-2]
        for share in (0.05, 0.3, 1.0):
            found = scopes_of(graph, np.array([root]), PageRank(1000, share, 1e-5)).nodes
            wanted = np.flatnonzero((scores >= share * second) & (scores > 0))
            assert found.tolist() == sorted({*wanted.tolist(), root})


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=str)
def test_scopes_do_not_depend_on_threads_or_neighbours_in_the_batch(extractor: Extractor) -> None:
    graph = a_graph(400)
    targets = np.arange(0, 377)
    with threads(1):
        one = scopes_of(graph, targets, extractor, 1, 4)
        batch = joined(graph, targets, one)
    with threads(3):
        other = scopes_of(graph, targets, extractor, 1, 4)
        same = joined(graph, targets, other)
    for name in ("starts", "nodes", "visits"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert torch.equal(batch.adjacency.indices, same.adjacency.indices)
    assert torch.equal(batch.adjacency.indptr, same.adjacency.indptr)
    assert torch.equal(batch.hops, same.hops)
    assert torch.equal(batch.roots, same.roots)
    few = scopes_of(graph, targets[[9, 300, 4]], extractor, 1, 4)
    np.testing.assert_array_equal(few.nodes, one.rows(np.array([9, 300, 4])).nodes)


def test_draws_differ_by_epoch_and_seed_alone() -> None:
    graph = a_graph(400)
    targets = np.arange(200)

    def drawn(extractor: Extractor, seed: int, epoch: int) -> list[int]:
        return scopes_of(graph, targets, extractor, seed, epoch).nodes.tolist()

    for extractor in (WeightedPageRank(8, 24), Neighbourhood(2, 2)):
        assert drawn(extractor, 0, 1) == drawn(extractor, 0, 1)
        assert drawn(extractor, 0, 1) != drawn(extractor, 0, 2)
        assert drawn(extractor, 0, 1) != drawn(extractor, 1, 1)
    for extractor in (PageRank(8), Neighbourhood(1, None)):
        assert drawn(extractor, 0, 1) == drawn(extractor, 5, 2)


def test_weighted_draws_follow_the_scores() -> None:
    """The first of k draws without replacement is in proportion to the scores."""
    graph = a_graph()
    root = 30
    scores, _ = pushed(graph, root, pagerank.EAGER, 1e-4)
    scores[root] = 0
    pool = np.argsort(-scores)[:10]
    counts = np.zeros(graph.nodes)
    for epoch in range(4000):
        found = scopes_of(graph, np.array([root]), WeightedPageRank(2, 11), 0, epoch).nodes
        assert root in found
        counts[found] += 1
    share = counts[pool] / 4000
    wanted = scores[pool] / scores[pool].sum()
    assert abs(share - wanted).max() < 4 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("replace", [True, False])
def test_neighbours_are_drawn_evenly(replace: bool) -> None:
    star = build_graph(np.array([[0, leaf] for leaf in range(1, 21)]), 21).graph
    counts = np.zeros(21)
    for epoch in range(3000):
        found = scopes_of(star, np.array([0]), Neighbourhood(1, 4, replace), 0, epoch).nodes
        counts[found] += 1
        assert len(found) <= 5 if replace else len(found) == 5
    share = counts[1:] / 3000
    wanted = 1 - 0.95**4 if replace else 0.2
    assert abs(share - wanted).max() < 4.5 * np.sqrt(0.2 * 0.8 / 3000)


def test_pairs_join_their_scopes_without_the_edge_between_them() -> None:
    graph = a_graph()
    whole = as_networkx(graph)
    edges = [(u, v) for u, v in whole.edges if u < 90][:12]
    targets = np.array(edges)
    batch = scopes(graph, targets, PageRank(10))
    single = [scopes_of(graph, targets[:, side], PageRank(10)) for side in (0, 1)]
    labels = structural_labels(batch.hops)
    for scope, (x, y) in enumerate(edges):
        first, last = batch.starts[scope : scope + 2].tolist()
        own = batch.nodes[first:last].tolist()
        both = [one.rows(np.array([scope])).nodes.tolist() for one in single]
        assert own == sorted({*both[0], *both[1]})
        induced = nx.Graph(whole.subgraph(own))
        induced.remove_edge(x, y)
        place = batch.roots[scope].tolist()
        columns = batch.adjacency.indices[
            batch.adjacency.indptr[place[0]] : batch.adjacency.indptr[place[0] + 1]
        ]
        assert place[1] not in columns.tolist()
        far = [
            nx.single_source_shortest_path_length(induced.subgraph([*set(own) - {other}]), root)
            for root, other in ((x, y), (y, x))
        ]
        for node, hops, label in zip(
            own, batch.hops[first:last].tolist(), labels[first:last].tolist(), strict=True
        ):
            if node in (x, y):
                assert label == 1
                continue
            assert hops == [each.get(node, UNREACHED) for each in far]
            if UNREACHED in hops:
                assert label == 0
            else:
                d = sum(hops)
                assert label == 1 + min(hops) + d // 2 * (d // 2 + d % 2 - 1)


def test_hubs_are_searched_by_halving_to_the_same_edges() -> None:
    """A row that is much longer than the scope takes the other way."""
    star = nx.star_graph(3000)
    star.add_edges_from((leaf, leaf + 1) for leaf in range(1, 3000, 7))
    graph = build_graph(np.array(star.edges), 3001).graph
    targets = np.array([0, 1, 5])
    sets = NodeSets(
        np.array([0, 4, 8, 12]), np.array([0, 1, 2, 9, 0, 1, 2, 8, 0, 5, 8, 9], np.int32)
    )
    check_induced(joined(graph, targets, sets), star)


def test_subgraph_is_the_induced_one() -> None:
    graph = a_graph()
    nodes = np.arange(0, graph.nodes, 2)
    part = subgraph(graph, nodes)
    wanted = as_networkx(graph).subgraph(nodes.tolist())
    assert part.edges == wanted.number_of_edges()
    for u in range(part.nodes):
        assert nodes[part.neighbours(u)].tolist() == sorted(wanted[nodes[u]])


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (np.array([3, 120]), "targets: 120 is no node"),
        (np.array([-1]), "targets: -1 is no node"),
        (np.array([0.5]), "targets: float64"),
        (np.zeros((2, 3), int), r"targets: int64 of shape \(2, 3\)"),
    ],
)
def test_targets_that_do_not_exist_are_refused(targets: np.ndarray, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        scopes_of(a_graph(), targets, PageRank())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: PageRank(0), "PageRank: most=0"),
        (lambda: PageRank(epsilon=0.0), "PageRank: epsilon=0.0"),
        (lambda: PageRank(threshold=2.0), "PageRank: threshold=2.0"),
        (lambda: WeightedPageRank(pool=0), "WeightedPageRank: pool=0"),
        (lambda: Neighbourhood(0), "Neighbourhood: depth=0"),
        (lambda: Neighbourhood(budget=0), "Neighbourhood: budget=0"),
    ],
)
def test_settings_without_sense_are_refused(build: object, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        build()  # type: ignore[operator]


def test_no_targets_give_no_scopes() -> None:
    batch = scopes(a_graph(), np.empty(0, int), PageRank())
    assert len(batch) == 0
    assert batch.nodes.shape == (0,)
