"""What is packed comes back as it was, or not at all; and it is short."""

import contextlib
import copy
import hashlib
import math
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from morphogen.density.darn import Darn, DarnShape
from morphogen.density.groups import Groups
from morphogen.density.likelihood import bound
from morphogen.errors import DataError
from morphogen.packing.coder import Coder, pop_even, push_even
from morphogen.packing.columns import fit_columns
from morphogen.packing.columns_json import from_json, to_json
from morphogen.packing.container import Container, read_container, write_container
from morphogen.packing.model import Plan, build, parts_of
from morphogen.packing.pack import pack, unpack, unpack_file
from morphogen.packing.rows import pop_rows, push_rows, schedule_for
from morphogen.packing.weights import pop_weights, push_weights, rounded

Make = Callable[[np.random.Generator, int], list[str]]


def _choice(*texts: str) -> Make:
    return lambda draws, rows: [texts[k] for k in draws.integers(0, len(texts), rows)]


def _numbers(form: str, scale: float) -> Make:
    return lambda draws, rows: [form % value for value in draws.normal(0, scale, rows)]


def _words(draws: np.random.Generator, rows: int) -> list[str]:
    letters = np.array([*string.ascii_letters, ",", '"', "\n", "ä", "漢", "😀", " "])
    return ["".join(draws.choice(letters, draws.integers(0, 12))) for _ in range(rows)]


MAKERS: dict[str, Make] = {
    "integers": _numbers("%d", 1000),
    "few integers": _numbers("%d", 3),
    "decimals": _numbers("%.2f", 50),
    "floats": lambda draws, rows: [repr(float(v)) for v in draws.normal(size=rows)],
    "large": lambda draws, rows: [str(v) for v in draws.integers(-(2**62), 2**62, rows)],
    "gaps": _choice("1.5", "2.25", "", "NA", "3.0", "-0.75", "4.125"),
    "strange": _choice("007", "+5", "1e5", "inf", "-0", "nan", "-inf", "1.", ".5", "12", "13"),
    "words": _words,
    "quotes": _choice('a,"b"', "new\nline", "ünï", "tab\t", " blank "),
    "bool": _choice("True", "False"),
    "dates": _choice("2024-01-31", "2024-02-29", "1999-12-31"),
    "constant": _choice("same"),
    "empty": _choice(""),
    "counter": lambda draws, rows: [str(3 + 7 * k) for k in range(rows)],
    "walk": lambda draws, rows: [str(v) for v in draws.integers(-2, 4, rows).cumsum()],
    "blank before": lambda draws, rows: [f" {v}" for v in draws.integers(0, 10**6, rows)],
    "float edges": _choice("1e308", "5e-324", "-1e308", "0.0", "-0.0", "1e-05", "123456.789"),
}


def random_table(seed: int) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    rows = int([1, 2, 7, 40, 150, 400][seed % 6])
    names = draws.permutation([*MAKERS])[: draws.integers(1, 9)]
    return pd.DataFrame({name: MAKERS[name](draws, rows) for name in names}, dtype=object)


def same(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    names = [str(name) for name in left.columns] == [*right.columns]
    cells = [left.iloc[:, k].tolist() == right.iloc[:, k].tolist() for k in range(left.shape[1])]
    return names and all(cells)


@pytest.mark.parametrize("seed", range(20))
def test_a_mixed_table_comes_back(seed: int, tmp_path: Path) -> None:
    frame = random_table(seed)
    pack(frame, tmp_path / "t.mpk", seconds=0.3)
    assert same(frame, unpack(tmp_path / "t.mpk"))


@pytest.mark.parametrize("name", MAKERS)
def test_a_column_comes_back(name: str) -> None:
    frame = pd.DataFrame({"a": MAKERS[name](np.random.default_rng(0), 300)}, dtype=object)
    columns = fit_columns(frame)
    assert from_json(to_json(columns)) == columns
    assert same(frame, columns.decode(columns.encode(frame)))


def test_types_and_gaps_of_a_frame_come_back(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    numbers = draws.normal(size=50)
    frame = pd.DataFrame(
        {
            "i": draws.integers(-5, 5, 50).astype(np.int8),
            "u": draws.integers(0, 2**63, 50).astype(np.uint64) * np.uint64(2),
            "f": np.where(numbers > 0, numbers, np.nan),
            "s": numbers.astype(np.float32),
            "e": np.array([np.inf, -np.inf, -0.0, 0.0, np.nan] * 10),
            "b": numbers > 0,
            "t": pd.Series(["a", None] * 25, dtype=object),
            "n": pd.Series([None] * 50, dtype=object),
        }
    )
    pack(frame, tmp_path / "t.mpk", seconds=0.2)
    back = unpack(tmp_path / "t.mpk")
    pd.testing.assert_frame_equal(back, frame)
    assert np.array_equal(np.signbit(back["e"]), np.signbit(frame["e"]))


FILES = {
    "plain": b"a,b\n1,x\n2,y\n3,x\n",
    "no end": b"a,b\n1,x\n2,y\n3,x",
    "blank lines at the end": b"a,b\n1,x\n2,y\n\n",
    "windows": b"a;b\r\n1;x\r\n2;y\r\n",
    "quoted header": b'"a","b"\n1,2\n3,4\n',
    "R": b'"a","b"\n1,"x"\n2,"y"\nNA,"z"\n',
    "all quoted": b'"a","b"\n"1","x"\n"2","y"\n',
    "needed": b'a,b\n"1,5","say ""hi"""\n2,"two\nlines"\n',
    "mark": "\ufeffa,b\n1,ü\n2,é\n".encode(),
    "latin": "a,b\n1,ü\n2,é\n".encode("latin-1"),
    "same names": b"a,a\n1,2\n3,4\n",
    "one column with gaps": b"a\n1\n\n2\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_back_byte_by_byte(name: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(FILES[name])
    assert pack(table, tmp_path / "t.mpk", seconds=0.1).exact
    unpack_file(tmp_path / "t.mpk", tmp_path / "back.csv")
    assert (tmp_path / "back.csv").read_bytes() == FILES[name]


def test_a_file_of_mixed_quotes_comes_back_cell_by_cell(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b'a,b\n1,"x"\n2,y\n"3",z\n')
    assert not pack(table, tmp_path / "t.mpk", seconds=0.1).exact
    unpack_file(tmp_path / "t.mpk", tmp_path / "back.csv")
    assert (tmp_path / "back.csv").read_bytes() == b'"a","b"\n"1","x"\n"2","y"\n"3","z"\n'


def test_the_command_says_what_it_saved(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from morphogen.cli.pack import pack as command
    from morphogen.cli.unpack import unpack as back

    table = tmp_path / "t.csv"
    table.write_bytes(FILES["plain"] * 9)
    command(table, seconds=0.1)
    out = capfdbinary.readouterr().out.decode()
    assert out.startswith("35 rows: 144 -> ")
    assert "bits a row, the model is" in out
    back(tmp_path / "t.csv.mpk", tmp_path / "back.csv")
    assert (tmp_path / "back.csv").read_bytes() == table.read_bytes()
    with pytest.raises(DataError, match="absent"):
        back(tmp_path / "absent")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"a": []}), "0 rows"),
        (pd.DataFrame({"a": [1]}, index=[5]), "reset_index"),
        (pd.DataFrame({"a": pd.to_datetime(["2024-01-01"])}), "datetime64.*astype"),
        (pd.DataFrame({"a": ["x", 5]}, dtype=object), "'a' has 5 in row 1"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    table: pd.DataFrame, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        pack(table, tmp_path / "t.mpk")
    assert not (tmp_path / "t.mpk").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"a,b\n", "no rows"), (b"", "no rows"), (b"a,b\n1\n", "row 2 has 1"), (b'a\n"x', "no CSV")],
)
def test_a_file_that_is_no_table_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(data)
    with pytest.raises(DataError, match=message):
        pack(table, tmp_path / "t.mpk")


@pytest.mark.parametrize("value", ["z", "7.5", None])
def test_a_value_that_the_columns_have_not_seen_is_refused(value: str | None) -> None:
    columns = fit_columns(pd.DataFrame({"a": [*"1234"] * 9, "b": [*"xyzx"] * 9}, dtype=object))
    with pytest.raises(DataError, match=f"column 'a' has the value {value!r}"):
        columns.encode(pd.DataFrame({"a": ["1", value], "b": ["x", "y"]}, dtype=object))


# ---- damaged and hostile files


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, bytes]:
    draws = np.random.default_rng(0)
    names = ("integers", "gaps", "quotes", "words", "bool", "walk")
    frame = pd.DataFrame({name: MAKERS[name](draws, 200) for name in names}, dtype=object)
    out = tmp_path_factory.mktemp("packed") / "t.mpk"
    pack(frame, out, seconds=0.3)
    return frame, out.read_bytes()


def sealed(data: bytes) -> bytes:
    """With the digest that a forger would write."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def test_damage_is_refused(packed: tuple[pd.DataFrame, bytes], tmp_path: Path) -> None:
    _, data = packed
    draws = np.random.default_rng(0)
    path = tmp_path / "t.mpk"
    for place in draws.integers(0, len(data), 50):
        flipped = bytearray(data)
        flipped[place] ^= 1 << draws.integers(8)
        for broken in (bytes(flipped), data[:place], data + data[:place]):
            path.write_bytes(broken)
            with pytest.raises(DataError):
                unpack(path)


def test_a_forged_file_gives_no_wrong_rows(
    packed: tuple[pd.DataFrame, bytes], tmp_path: Path
) -> None:
    frame, data = packed
    draws = np.random.default_rng(1)
    path = tmp_path / "t.mpk"
    for place in draws.integers(0, len(data) - 32, 50):
        flipped = bytearray(data)
        flipped[place] ^= 1 << draws.integers(8)
        path.write_bytes(sealed(bytes(flipped)))
        with contextlib.suppress(DataError):
            assert same(frame, unpack(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 10**12}, "claims 1000000000000 rows"),
        ({"rows": -1}, "claims -1 rows"),
        ({"rows": 10**7}, "its texts have others"),
        ({"rows": "x"}, "does not describe|claims"),
        ({"columns": [{"kind": "levels", "bins": {"steps": [0]}}]}, "size is below 1"),
        ({"columns": [{"dtype": "datetime64[ns]"}]}, "datetime64"),
        ({"columns": [{"other": 1}]}, "other"),
        ({"model": {}}, "plan"),
        ({"model": {"plan": {"hidden": 10**9, "head": "made"}, "roundings": []}}, "too large"),
        ({"model": {"plan": {"head": "nade"}, "roundings": []}}, "none of ours"),
    ],
)
def test_a_header_that_claims_too_much_is_refused(
    change: dict[str, object], message: str, packed: tuple[pd.DataFrame, bytes], tmp_path: Path
) -> None:
    content = read_container(packed[1])
    forged = Container({**content.header, **change}, content.words, content.texts, content.digest)
    (tmp_path / "t.mpk").write_bytes(write_container(forged))
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "t.mpk")


def places(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Where anything is in JSON."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


def test_a_forged_header_gives_no_wrong_rows(
    packed: tuple[pd.DataFrame, bytes], tmp_path: Path
) -> None:
    frame, data = packed
    content = read_container(data)
    draws = np.random.default_rng(2)
    others = [0, -1, 2, 7, 2**31, 2**64, "x", "row", "float", None, [], {}, [1], 1.5, True]
    every = [*places(content.header)]
    near = [path for path in every if len(path) < 4]
    for number in range(60):
        paths = near if number % 2 else every
        *above, last = paths[draws.integers(len(paths))]
        forged = copy.deepcopy(content.header)
        inner = forged
        for key in above:
            inner = inner[key]
        inner[last] = others[draws.integers(len(others))]
        changed = Container(forged, content.words, content.texts, content.digest)
        (tmp_path / "t.mpk").write_bytes(write_container(changed))
        with contextlib.suppress(DataError):
            assert same(frame, unpack(tmp_path / "t.mpk"))


def test_rows_that_the_stack_does_not_hold_are_refused(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draws.integers(0, 2, 99), "b": draws.integers(0, 5, 99)})
    pack(frame, tmp_path / "t.mpk", seconds=0.2)
    content = read_container((tmp_path / "t.mpk").read_bytes())
    forged = Container({**content.header, "rows": 10**7}, content.words, [], content.digest)
    (tmp_path / "t.mpk").write_bytes(write_container(forged))
    with pytest.raises(DataError, match="ends before its rows"):
        unpack(tmp_path / "t.mpk")


def test_another_digest_of_rows_is_refused(
    packed: tuple[pd.DataFrame, bytes], tmp_path: Path
) -> None:
    data = bytearray(packed[1])
    data[-40] ^= 1
    (tmp_path / "t.mpk").write_bytes(sealed(bytes(data)))
    with pytest.raises(DataError, match="not those that were packed"):
        unpack(tmp_path / "t.mpk")


# ---- the coder


def random_model(plan: Plan, groups: Groups, seed: int = 0) -> torch.nn.Module:
    """Weights that are whole numbers of eighths."""
    model = build(groups, plan)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in parts_of(model):
            drawn = torch.randn(part.tensor.shape, generator=generator)
            part.tensor.copy_((drawn * 8 * part.mask).round() / 8)
    return model.eval()


PLANS = {
    "independent": Plan(head="independent"),
    "linear": Plan(),
    "above": Plan(above=True),
    "made": Plan(head="made", hidden=5),
    "stochastic": Plan(units=4),
}


@pytest.mark.parametrize("name", PLANS)
def test_rows_and_weights_come_off_the_stack(name: str) -> None:
    groups = Groups((1, 3, 1, 5, 1, 4))
    model = random_model(PLANS[name], groups).double()
    source = Darn(groups, DarnShape((), 0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = source.sample(700).numpy()
    coder = Coder(np.arange(1, 40, dtype=np.uint32))
    start = coder.get_compressed().tolist()
    found = [rounded(part, 3) for part in parts_of(model)]
    roundings, numbers = zip(*found, strict=True)
    assert push_rows(coder, model, x)
    push_weights(coder, model, roundings, numbers)
    other = build(groups, PLANS[name]).double().eval()
    pop_weights(coder, other, roundings)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    masks = [part.mask for part in parts_of(model)]
    assert all(bool(((a - b) * m == 0).all()) for (a, b), m in zip(pairs, masks, strict=True))
    assert (pop_rows(coder, other, len(x), schedule_for(len(x))) == x).all()
    # what was there before is there again
    assert coder.get_compressed().tolist() == start


@pytest.mark.parametrize("name", ["linear", "stochastic"])
def test_rows_take_what_the_bound_says(name: str) -> None:
    groups = Groups.of_bits(60)
    model = random_model(PLANS[name], groups)
    assert isinstance(model, Darn)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = model.sample(4000)
        expected = bound(model, x, 4) * len(x) / math.log(2)
    coder = Coder(np.arange(1, 9, dtype=np.uint32))
    before = coder.num_valid_bits()
    assert push_rows(coder, model.double(), x.numpy())
    assert abs(coder.num_valid_bits() - before - expected) < 0.01 * expected + 128


def test_large_even_numbers_come_off_the_stack() -> None:
    draws = np.random.default_rng(0)
    sizes = np.array([1, 2, 3, 65535, 65536, 65537, 10**9, 2**40 + 5, 2**63, 2**64 - 1] * 20, "u8")
    numbers = (draws.random(len(sizes)) * sizes.astype(np.float64) * 0.999).astype("u8") % sizes
    coder = Coder()
    push_even(coder, numbers, sizes)
    assert (pop_even(coder, sizes) == numbers).all()
    assert coder.is_empty()


def test_a_table_with_structure_is_short(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    kind = draws.integers(0, 3, 3000)
    shade = (kind[:, None] * 2 + draws.integers(0, 2, (3000, 8))) % 5
    columns = {f"c{k}": [f"shade {v}" for v in shade[:, k]] for k in range(8)}
    packed = pack(pd.DataFrame(columns, dtype=object), tmp_path / "t.mpk", seconds=3)
    # log2(3) bits for the kind and one for each of the columns, where independent ones take 2.2
    assert packed.bits_a_row < 1.15 * (math.log2(3) + 8) + 1
    assert abs(packed.rows_bits / packed.bound_bits - 1) < 0.01
