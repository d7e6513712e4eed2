"""A table of nodes and a file of edges become a graph, features and a target; nothing is dropped
without a word.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphogen.data.edge_lists import read_edges
from morphogen.data.node_table import NodeTable, node_table
from morphogen.errors import DataError

NODES = pd.DataFrame(
    {
        "id": ["ann", "bob", "cat", "dan", "eve", "fay"],
        "age": [20.0, 30, np.nan, 50, 60, 70],
        "team": ["x", "y", "x", "y", "x", "x"],
        "role": ["a", "b", "a", "b", None, "b"],
    }
)
EDGES = "source,target\nann,bob\nbob,cat\ncat,bob\ndan,dan\neve,ann\n"


def made(where: Path, nodes: pd.DataFrame = NODES, edges: str = EDGES, **how: object) -> NodeTable:
    (where / "edges.csv").write_text(edges)
    target = how.pop("target", "role")
    return node_table(read_edges(where / "edges.csv"), nodes, target, **how)  # type: ignore[arg-type]


def test_rows_are_nodes_and_edges_name_them(tmp_path: Path) -> None:
    table = made(tmp_path)
    assert table.graph.nodes == 6
    assert [table.graph.neighbours(u).tolist() for u in range(6)] == [
        [1, 4],
        [0, 2],
        [1],
        [],
        [0],
        [],
    ]
    assert table.task == "classification"
    assert table.classes == ("a", "b")
    assert table.known.tolist() == [0, 1, 2, 3, 5]
    assert table.y[table.known].tolist() == [0, 1, 0, 1, 1]
    assert table.prepare is not None
    assert table.prepare.columns == ("age", "team")
    assert len(table.x) == 6
    assert np.isfinite(table.x).all()
    said = "\n".join(table.notes)
    for part in (
        "left out 1 self-loops and 1 edges that stood there already",
        "1 of 6 nodes have no 'role'",
        "2 of 6 nodes have no edge",
    ):
        assert part in said, said


def test_without_an_id_a_row_is_called_by_its_number(tmp_path: Path) -> None:
    nodes = NODES.drop(columns="id")
    table = made(tmp_path, nodes, "0,1\n1,2\n5,0\n")
    assert table.graph.neighbours(0).tolist() == [1, 5]
    named = made(tmp_path, NODES.rename(columns={"id": "who"}), ident="who")
    np.testing.assert_array_equal(named.graph.indices, made(tmp_path).graph.indices)


def test_a_table_without_features_has_degrees(tmp_path: Path) -> None:
    table = made(tmp_path, NODES[["id", "role"]])
    assert table.prepare is None
    np.testing.assert_allclose(table.x[:, 0], np.log1p([2, 2, 1, 0, 1, 0]), rtol=1e-6)
    assert "each has its degree" in "\n".join(table.notes)


def test_a_number_is_regressed(tmp_path: Path) -> None:
    table = made(tmp_path, target="age", task="regression")
    assert table.task == "regression"
    assert table.classes == ()
    assert table.y[table.known].tolist() == [20, 30, 50, 60, 70]
    assert 2 not in table.known


def test_the_graph_can_be_on_disk(tmp_path: Path) -> None:
    table = made(tmp_path, folder=tmp_path / "graph")
    assert table.graph.folder == tmp_path / "graph"
    np.testing.assert_array_equal(table.graph.indices, made(tmp_path).graph.indices)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"target": "rolle"}, "rolle"),
        ({"ident": "who"}, "who"),
        ({"edges": "source,target\nann,zoe\n"}, "whose end is 'zoe'"),
        ({"nodes": NODES.assign(id="ann"), "ident": "id"}, "two nodes are called 'ann'"),
        ({"nodes": NODES.assign(role=None)}, "has no value at any node"),
        ({"nodes": NODES.assign(role="a")}, "constant"),
        ({"nodes": NODES[:0]}, "an empty table"),
        ({"nodes": NODES.assign(age=np.inf)}, "age"),
        ({"drop": ("age", "team")}, "no column is left"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(
    how: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        made(tmp_path, **how)  # type: ignore[arg-type]
