"""Training on scopes: kept scopes are the extracted ones, a stopped training ends as it would have,
and what only neighbours know is learned.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

from morphogen.data.build_graph import build_graph
from morphogen.errors import DataError, RunError
from morphogen.gnn.batches import Extraction, ScopeBatches, ahead, outputs_of
from morphogen.gnn.extractors import (
    Extractor,
    Neighbourhood,
    PageRank,
    WeightedPageRank,
    Whole,
    scopes_of,
)
from morphogen.gnn.learn import Round, Training, learn
from morphogen.gnn.network import Inputs, ShaDow, ShaDowShape
from morphogen.gnn.stored import store
from morphogen.gnn.task import NodeTask, standardised
from morphogen.layers.depth import LearnedDepth

SMALL = ShaDowShape(layers=2, hidden=16)
SHORT = Training(rate=1e-2, batch=32, patience=3, falls=1, rounds=8)


def a_task(seed: int = 0, values: bool = False) -> NodeTask:
    """Three groups that are linked inside; one node of three shows its group in its feature."""
    whole = nx.planted_partition_graph(3, 40, 0.15, 0.01, seed=seed)
    draw = np.random.default_rng(seed)
    groups = np.arange(120) // 40
    x = np.eye(3, dtype=np.float32)[groups] * (draw.random((120, 1)) < 0.3)
    graph = build_graph(np.array(whole.edges), 120).graph
    order = draw.permutation(120)
    y = torch.tensor(groups)
    if values:
        y = (
            torch.tensor([-1.0, 0.5, 1.0])[y]
            + 0.1 * torch.tensor(draw.standard_normal(120)).float()
        )
    return NodeTask(
        graph, standardised(x), y, order[:60], order[60:80], order[80:], 1 if values else 3
    )


def test_kept_scopes_are_the_extracted_ones(tmp_path: Path) -> None:
    task = a_task()
    how = PageRank(10)
    targets = np.array([5, 100, 3, 3, 77])
    for folder in (None, tmp_path / "scopes"):
        kept = store(task.graph, np.array([77, 3, 5, 100, 3, 9]), how, folder)
        assert len(kept.targets) == 5
        one, other = kept.of(targets), scopes_of(task.graph, targets, how)
        np.testing.assert_array_equal(one.starts, other.starts)
        np.testing.assert_array_equal(one.nodes, other.nodes)
        with pytest.raises(DataError, match="the scope of node 4 is not kept"):
            kept.of(np.array([3, 4]))
    assert not len(store(task.graph, np.empty(0, int), how, tmp_path / "none").targets)


def test_batches_are_the_scopes_of_their_targets_in_the_order_of_the_seed() -> None:
    task = a_task()
    task = replace(task, x=torch.arange(120.0)[:, None])
    for how in (PageRank(10), WeightedPageRank(6, 12), Neighbourhood(2, 3)):
        extractors = [how, Neighbourhood(1, None)]
        kept = ScopeBatches(Extraction(task, extractors, task.train), 16)
        fresh = ScopeBatches(Extraction(task, extractors), 16)
        assert kept.per_epoch == 3
        for (one, y), (other, z) in zip(kept.range(2, 7), fresh.range(2, 7), strict=True):
            assert torch.equal(y, z)
            assert len(one) == 2
            for a, b in zip(one, other, strict=True):
                assert torch.equal(a.x, b.x)
                assert torch.equal(a.adjacency.indices, b.adjacency.indices)
                assert torch.equal(a.roots, b.roots)
        for step, (one, _) in enumerate(kept.range(0, 7)):
            (a,) = Extraction(task, [how])(targets_of(task, one[0]), step // 3)
            assert torch.equal(one[0].x, a.x), "drawn for its epoch"


def targets_of(task: NodeTask, given: Inputs) -> np.ndarray:
    """Found by their features: those of the task here are numbered."""
    return given.x[given.roots[:, 0], 0].long().numpy()


def test_a_fault_in_the_other_thread_is_raised_here() -> None:
    def made() -> Iterator[tuple[tuple[()], torch.Tensor]]:
        yield (), torch.ones(1)
        raise ValueError("no scope")

    coming = ahead(made())
    assert next(coming)[1] == 1
    with pytest.raises(ValueError, match="no scope"):
        next(coming)


@pytest.mark.parametrize("values", [False, True])
def test_what_only_neighbours_know_is_learned(values: bool) -> None:
    task = a_task(values=values)
    how = replace(SHORT, rounds=20)
    alone = learn(ShaDow(3, task.outputs, SMALL), task, [Neighbourhood(1, 1, False)], how)
    torch.manual_seed(0)
    found = learn(ShaDow(3, task.outputs, SMALL), task, [PageRank(20)], how)
    best = found.rounds[found.best - 1]
    assert best.valid < 0.35 if values else best.valid > 0.9
    assert best.merit > max(one.merit for one in alone.rounds)
    outputs = outputs_of(found.model, Extraction(task, [PageRank(20)]), task.test)
    right = task.y[task.test]
    if values:
        assert (outputs[:, 0] - right).square().mean().sqrt() < 0.4
    else:
        assert (outputs.argmax(1) == right).float().mean() > 0.85


def test_full_batches_see_what_boundless_scopes_see() -> None:
    """Two layers reach two edges: the whole graph and all within two edges give the same."""
    task = a_task()
    torch.manual_seed(0)
    model = ShaDow(3, 3, replace(SMALL, convolution="gin", distances=False))
    whole = outputs_of(model, Extraction(task, [Whole()]), task.test)
    reach = outputs_of(model, Extraction(task, [Neighbourhood(2, None)]), task.test)
    torch.testing.assert_close(whole, reach, rtol=1e-4, atol=1e-4)


CASES: list[tuple[ShaDowShape, list[Extractor]]] = [
    (SMALL, [PageRank(10)]),
    (replace(SMALL, dropout=0.3, drop_edge=0.2), [WeightedPageRank(6, 12)]),
    (replace(SMALL, branches=2), [PageRank(8), Neighbourhood(1, 3)]),
    (replace(SMALL, learned_depth=True), [PageRank(10)]),
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("at", [1, 4])
def test_a_stopped_training_ends_as_it_would_have(case: int, at: int, tmp_path: Path) -> None:
    shape, extractors = CASES[case]
    task = a_task()
    torch.manual_seed(0)
    model = ShaDow(3, 3, shape)
    how = replace(SHORT, depth_rate=60.0, patience=2)
    wanted = learn(model, task, extractors, how)
    seen: list[Round] = []

    def stop(one: Round) -> None:
        seen.append(one)
        if one.number == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(model, task, extractors, how, stop, kept=tmp_path / "kept")
    found = learn(model, task, extractors, how, kept=tmp_path / "kept")
    plain = [replace(one, seconds=0) for one in wanted.rounds]
    assert [replace(one, seconds=0) for one in found.rounds] == plain
    for (name, one), (_, other) in zip(
        wanted.model.state_dict().items(), found.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    if shape.learned_depth:
        assert isinstance(wanted.model.depth, LearnedDepth)
        assert len({round(one.layers, 3) for one in wanted.rounds}) > 1, "the depth moves"


def test_a_kept_training_of_another_network_is_refused(tmp_path: Path) -> None:
    task = a_task()
    learn(ShaDow(3, 3, SMALL), task, [PageRank(10)], replace(SHORT, rounds=3), kept=tmp_path)
    with pytest.raises(RunError, match="belongs to another base model"):
        learn(
            ShaDow(3, 3, replace(SMALL, hidden=8)),
            task,
            [PageRank(10)],
            replace(SHORT, rounds=3),
            kept=tmp_path,
        )


def test_training_leaves_the_random_state_and_the_given_network() -> None:
    task = a_task()
    model = ShaDow(3, 3, SMALL)
    before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    learn(model, task, [PageRank(10)], replace(SHORT, rounds=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())


def test_parts_without_nodes_and_features_that_are_no_numbers_are_refused() -> None:
    task = a_task()
    with pytest.raises(DataError, match="valid: has no nodes"):
        learn(ShaDow(3, 3, SMALL), replace(task, valid=np.empty(0, int)), [PageRank(10)])
    with pytest.raises(DataError, match="2 values are NaN .* the first is feature 1 of node 2"):
        standardised(np.array([[0, 1], [0, 1], [0, np.nan], [np.inf, 2]]))
