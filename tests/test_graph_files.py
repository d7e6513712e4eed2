"""Graphs from edges and from folders: what is built is what was given, in memory or sorted on disk;
what is damaged is refused.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from morphogen.data.build_graph import build_graph
from morphogen.data.csr_graph import CsrGraph, open_graph, save_graph
from morphogen.errors import DataError


def edges_of(count: int, nodes: int, seed: int = 0) -> np.ndarray:
    """With self-loops, repeated edges and both directions of some; the last node has none."""
    draw = np.random.default_rng(seed)
    edges = (nodes - 1) * draw.random((count, 2)) ** 2
    return np.concatenate([edges.astype(np.int64), edges[: count // 5, ::-1].astype(np.int64)])


def rows(graph: CsrGraph) -> list[set[int]]:
    result = [graph.neighbours(node).tolist() for node in range(graph.nodes)]
    assert all(row == sorted(set(row)) for row in result)
    return [set(row) for row in result]


def wanted(edges: np.ndarray, nodes: int) -> list[set[int]]:
    result: list[set[int]] = [set() for _ in range(nodes)]
    for u, v in edges.tolist():
        if u != v:
            result[u].add(v)
            result[v].add(u)
    return result


@pytest.mark.parametrize("memory", [None, 2**30, 20_000, 32])
def test_a_graph_is_its_edges_once_in_both_directions(memory: int | None, tmp_path: Path) -> None:
    edges, nodes = edges_of(3000, 200), 200
    if memory is None:
        built = build_graph(edges, nodes)
    else:
        built = build_graph(edges, nodes, tmp_path / "g", memory)
    assert rows(built.graph) == wanted(edges, nodes)
    distinct = {tuple(sorted(e)) for e in edges.tolist() if e[0] != e[1]}
    loops = int((edges[:, 0] == edges[:, 1]).sum())
    assert built.graph.edges == len(distinct)
    assert built.self_loops == loops > 0
    assert built.repeated == len(edges) - loops - len(distinct) > 0
    assert f"{loops} self-loops" in built.note
    if memory is not None:
        again = open_graph(tmp_path / "g")
        np.testing.assert_array_equal(again.indices, built.graph.indices)
        assert sorted(p.name for p in (tmp_path / "g").iterdir()) == [
            "graph.json",
            "indices.npy",
            "indptr.npy",
        ]


def test_edges_come_in_chunks(tmp_path: Path) -> None:
    edges = edges_of(1000, 50)

    def chunks() -> Iterator[np.ndarray]:
        for begin in range(0, len(edges), 77):
            yield edges[begin : begin + 77].astype(np.int32)

    assert rows(build_graph(chunks, 50).graph) == wanted(edges, 50)
    assert rows(build_graph(chunks, 50, tmp_path / "g", 4000).graph) == wanted(edges, 50)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("nodes", [0, 1, 5])
def test_no_edges_are_a_graph_too(nodes: int, folder: bool, tmp_path: Path) -> None:
    built = build_graph(np.empty((0, 2), int), nodes, tmp_path / "g" if folder else None)
    assert built.graph.nodes == nodes
    assert built.graph.edges == 0
    assert built.note == ""


def test_a_graph_cannot_be_written_to() -> None:
    graph = build_graph(np.array([[0, 1]]), 2).graph
    with pytest.raises(ValueError, match="read-only"):
        graph.indices[0] = 0


def test_saved_is_read_back(tmp_path: Path) -> None:
    graph = build_graph(edges_of(500, 40), 40).graph
    save_graph(graph, tmp_path / "g")
    again = open_graph(tmp_path / "g")
    assert again.folder == tmp_path / "g"
    np.testing.assert_array_equal(again.indptr, graph.indptr)
    np.testing.assert_array_equal(again.indices, graph.indices)
    with pytest.raises(DataError, match="holds a graph already"):
        save_graph(graph, tmp_path / "g")
    with pytest.raises(DataError, match="holds a graph already"):
        build_graph(np.array([[0, 1]]), 2, tmp_path / "g")


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        (np.array([[0, 1], [2, 7], [1, 2]]), "1 of them name a node .* edge 1, 2 - 7"),
        (np.array([[0, -1]]), "edge 0, 0 - -1"),
        (np.array([[0.0, 1.0]]), "float64 of shape"),
        (np.array([0, 1]), r"int64 of shape \(2,\)"),
        (np.array([[0, 1, 2]]), r"shape \(1, 3\)"),
    ],
)
def test_edges_that_are_none_are_refused(edges: np.ndarray, said: str, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "g"):
        with pytest.raises(DataError, match=said):
            build_graph(edges, 5, folder)
    assert not (tmp_path / "g" / "graph.json").exists()


def damaged(folder: Path, how: str) -> None:
    indices = folder / "indices.npy"
    if how == "cut off":
        indices.write_bytes(indices.read_bytes()[:-7])
    elif how == "cut in its header":
        indices.write_bytes(indices.read_bytes()[:20])
    elif how == "missing":
        indices.unlink()
    elif how == "shorter":
        np.save(indices, np.load(indices)[:-4])
    elif how == "of another kind":
        np.save(indices, np.load(indices).astype(np.float32))
    elif how == "objects":
        np.save(indices, np.array([{}], dtype=object), allow_pickle=True)
    elif how == "stopped":
        (folder / "graph.json").unlink()
    elif how == "another format":
        (folder / "graph.json").write_text(json.dumps({"format": "x", "nodes": 1, "entries": 1}))
    elif how == "no manifest":
        (folder / "graph.json").write_text("{")
    else:
        (folder / "graph.json").write_text(
            json.dumps({"format": "morphogen graph 1", "nodes": 3.5, "entries": -1})
        )


@pytest.mark.parametrize(
    "how",
    [
        "cut off",
        "cut in its header",
        "missing",
        "shorter",
        "of another kind",
        "objects",
        "stopped",
        "another format",
        "no manifest",
        "no counts",
    ],
)
def test_a_damaged_folder_is_refused_with_its_name(how: str, tmp_path: Path) -> None:
    save_graph(build_graph(edges_of(300, 30), 30).graph, tmp_path / "g")
    damaged(tmp_path / "g", how)
    with pytest.raises(DataError, match=str(tmp_path / "g")):
        open_graph(tmp_path / "g")


def test_a_failed_build_leaves_no_scratch_and_can_be_done_again(tmp_path: Path) -> None:
    edges = edges_of(500, 40)
    calls = iter(range(2))

    def stops() -> Iterator[np.ndarray]:
        yield edges
        if next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_graph(stops, 40, tmp_path / "g", 2000)
    assert not list((tmp_path / "g").iterdir())
    with pytest.raises(DataError, match="no graph, or one whose building was stopped"):
        open_graph(tmp_path / "g")
    assert rows(build_graph(edges, 40, tmp_path / "g", 2000).graph) == wanted(edges, 40)
