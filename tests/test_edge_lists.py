"""Edges from files of every kind are the same edges; names of nodes become numbers; what is wrong
is said with its file and place.
"""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphogen.data import edge_lists
from morphogen.data.edge_lists import names_in, names_of, numbered, read_edges
from morphogen.errors import DataError

EDGES = np.random.default_rng(0).integers(0, 40, (100, 2))
WORDS = np.array([f"n{number}" for number in range(40)])


def rows(sign: str, header: str = "", words: bool = False, tail: str = "") -> str:
    given = WORDS[EDGES] if words else EDGES
    lines = [header] if header else []
    return "\n".join([*lines, *(f"{u}{sign}{v}{tail}" for u, v in given)]) + "\n"


def frame(words: bool = False) -> pd.DataFrame:
    given = WORDS[EDGES] if words else EDGES
    return pd.DataFrame({"weight": 1.5, "from": given[:, 0], "to": given[:, 1]})


SNAP = "# Directed graph\n# Nodes: 40 Edges: 100\n# FromNodeId\tToNodeId\n"
FILES: dict[str, Callable[[Path], object]] = {
    "header.csv": lambda p: p.write_text(rows(",", "source,target")),
    "plain.csv": lambda p: p.write_text(rows(",")),
    "weights.tsv": lambda p: p.write_text(rows("\t", "src\tdst\tw", tail="\t0.5")),
    "other order.csv": lambda p: frame().to_csv(p, index=False),
    "spaces.txt": lambda p: p.write_text(rows(" ")),
    "snap.txt": lambda p: p.write_text(SNAP + rows("\t")),
    "semicolon.csv": lambda p: p.write_text("\ufeff" + rows(";", "u;v"), encoding="utf-8"),
    "packed.csv.gz": lambda p: p.write_bytes(gzip.compress(rows(",").encode())),
    "table.parquet": lambda p: frame().to_parquet(p),
    "table.feather": lambda p: frame().to_feather(p),
    "rows.npy": lambda p: np.save(p, EDGES.astype(np.int32)),
    "edges.npz": lambda p: np.savez(p, edges=EDGES, other=[1]),
    "index.npz": lambda p: np.savez(p, edge_index=EDGES.T),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("most", [2**20, 7])
def test_edges_of_every_kind_of_file(
    name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_lists, "_ROWS", most)
    FILES[name](tmp_path / name)
    edges = read_edges(tmp_path / name)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(edges.chunks())), EDGES)
    names = names_in(edges)
    assert names.index.tolist() == sorted(set(EDGES.ravel().tolist()))
    found = np.concatenate(list(numbered(edges, names)()))
    np.testing.assert_array_equal(names.index.to_numpy()[found], EDGES)


@pytest.mark.parametrize("name", ["words.csv", "words.txt", "words.parquet", "words.npz"])
def test_nodes_may_be_called_by_words(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        frame(words=True).to_parquet(path)
    elif name.endswith("npz"):
        np.savez(path, edges=WORDS[EDGES])
    else:
        path.write_text(rows("," if name.endswith("csv") else " ", "from,to", words=True))
    if name.endswith("txt"):
        path.write_text(rows(" ", "from to", words=True))
    edges = read_edges(path)
    names = names_of(pd.Series(WORDS), "nodes")
    np.testing.assert_array_equal(np.concatenate(list(numbered(edges, names)())), EDGES)


def test_names_keep_their_order_whatever_they_are() -> None:
    plain = names_of(pd.Series(range(5)), "nodes")
    assert plain.plain
    assert plain.numbers(np.array([[4, 5], [-1, 0]])).tolist() == [[4, -1], [-1, 0]]
    large = names_of(pd.Series([10**12, 7, 3]), "nodes")
    assert large.numbers(np.array([3, 10**12, 8])).tolist() == [2, 0, -1]
    mixed = names_of(pd.Series(["7", "b"]), "nodes")
    assert mixed.numbers(np.array([7, 8])).tolist() == [0, -1], "7 is called '7'"
    assert mixed.numbers(np.array([7.0, 7.5])).tolist() == [0, -1]
    assert plain.numbers(np.array(["4", "x"], object)).tolist() == [4, -1]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    pd.DataFrame({"a": 1, "b": EDGES[:, 0], "c": EDGES[:, 1]}).to_csv(path, index=False)
    edges = read_edges(path, "b", "c")
    np.testing.assert_array_equal(np.concatenate(list(edges.chunks())), EDGES)
    for given, said in (
        (("b", "x"), "target='x': no such column; there are a, b, c"),
        (("b", "b"), "source and target are both 'b'"),
    ):
        with pytest.raises(DataError, match=said):
            read_edges(path, *given)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.csv", None, "there is no such file"),
        ("e.docx", b"x", "give a file that ends in"),
        ("e.csv", b"", "has 0 columns where an edge has two ends|cannot be read"),
        ("e.csv", b"a\n1\n2\n", "has 1 columns where an edge has two ends"),
        ("e.csv", b"source,target\n1,2\n3,\n", "1 edges have an empty end, the first is edge 1"),
        ("e.csv", b"a\x00b,c\n", "it is not text"),
        ("e.parquet", b"PAR1 no", "cannot be read"),
        ("e.npz", b"PK no", "cannot be read"),
        ("e.npy", b"\x93NUMPY", "cannot be read"),
    ],
)
def test_files_without_edges_are_refused(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(read_edges(path).chunks())
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [{"x": EDGES}, {"edges": EDGES[:, :1]}, {"edges": EDGES / 2}, {"edge_index": EDGES[:3]}],
)
def test_arrays_that_are_no_edges_are_refused(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(DataError, match=r"e.npz.*(holds x; name|give whole numbers)"):
        read_edges(tmp_path / "e.npz")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "e.csv.gz"
    noise = np.random.default_rng(0).integers(0, 10**9, (60_000, 2))
    content = gzip.compress("\n".join(f"{u},{v}" for u, v in noise).encode())
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(read_edges(whole).chunks())
    table = tmp_path / "e.parquet"
    frame().to_parquet(table)
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(read_edges(table).chunks())


def test_an_end_that_is_no_node_is_said_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_lists, "_ROWS", 3)
    path = tmp_path / "e.csv"
    path.write_text("source,target\na,b\nb,c\nc,a\na,zoe\n")
    names = names_of(pd.Series(["a", "b", "c"]), "nodes")
    with pytest.raises(DataError, match="first is edge 3, whose end is 'zoe'"):
        list(numbered(read_edges(path), names)())


@pytest.mark.parametrize(
    ("cells", "said"),
    [(["a", "b", "a"], "two nodes are called 'a'"), (["a", None], "node 1 has no name")],
)
def test_names_that_are_none_are_refused(cells: list[str | None], said: str) -> None:
    with pytest.raises(DataError, match=said):
        names_of(pd.Series(cells), "nodes")
