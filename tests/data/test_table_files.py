"""Files that hold tables, whole and damaged."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow
import pytest

from morphogen.data.load import load_data
from morphogen.data.tables import read_table
from morphogen.errors import DataError

FRAME = pd.DataFrame({"a": [1.5, None, 2.0], "b c": ["x", None, "y"]})


TEXTS = {
    "comma": "a,b c\n1.5,x\n,\n2.0,y\n",
    "BOM, blanks and ?": "\ufeffa, b c\n1.5, x\n?, ?\n2.0, y\n",
    "semicolon": "a;b c\n1.5;x\n;\n2;y",
    "bar": "a|b c\n1.5|x\n|\n2|y",
    "caret": "a^b c\n1.5^x\n^\n2^y",
    "comments": "# made in 2020, by hand\na,b c\n1.5,x\n# half\n,\n2.0,y\n",
    "names in a comment": "% by hand\n% a;b c\n1.5;x\n;\n2.0;y\n",
    "tab": "a\tb c\n1.5\tx\n\t\n2\ty\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".CSV"])
def test_text(tmp_path: Path, text: str, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if ending.endswith("gz") else text.encode()
    )
    pd.testing.assert_frame_equal(read_table(path), FRAME, check_dtype=False)


def test_parquet(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), FRAME, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.xls",
            b"",
            r"cannot read 't.xls': give a file that ends in .csv, .*\.parquet",
        ),
        ("t.csv", b"", "is an empty table: give a file with a header and rows"),
        (
            "t.csv",
            b"a,b\n1,2\n3,4,5\n",
            "cannot read .* as .csv .*Expected 2 fields in line 3, saw 3",
        ),
        ("t.csv", b"a,b\n1,2,\n3,4,\n", "its rows have more cells than its header"),
        ("t.csv", b"a,b,a\n1,2,3\n", "has 2 columns 'a': rename all but one"),
        ("t.csv.zst", b"a,b\n1,2\n", "cannot read .* as .csv.zst .*the file may be damaged"),
        ("t.xz", b"", r"cannot read 't.xz': give a file that ends in .* followed by .gz, .bz2"),
        ("t.csv.xz", b"a,b\n1,2\n", "cannot read .* as .csv.xz .*the file may be damaged"),
        ("t.zip", b"a,b\n1,2\n", "cannot read .* as .zip .*the file may be damaged"),
        ("t.xlsx", b"no sheet", "cannot read .* as .xlsx .*the file may be damaged"),
        ("t.jsonl", b'{"a": 1}\n{"a"', "cannot read .* as .jsonl .*the file may be damaged"),
        ("t.jsonl", b'{"a": [1, 2]}\n', "has lists or objects in column 'a'"),
        ("t.csv", b"\0\0\0\0", "it is not text"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot read .* as .csv.gz .*the file may be damaged"),
        (
            "t.csv.gz",
            gzip.compress(b"a,b\n" + b"1,2\n" * 999, mtime=0)[:-20],
            "cannot read .* as .csv.gz",
        ),
        (
            "t.parquet",
            b"PAR1 and nothing else",
            "cannot read .* as .parquet .*the file may be damaged",
        ),
    ],
)
def test_faults(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file '.*t.csv': check the path"):
        read_table(tmp_path / "t.csv")


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_packed(tmp_path: Path, packed: str, ending: str) -> None:
    content = TEXTS["comma"] if ending == ".csv" else FRAME.to_json(orient="records", lines=True)
    path = tmp_path / f"t{ending}{packed}"
    path.write_bytes(PACK[packed](content.encode()))
    pd.testing.assert_frame_equal(read_table(path), FRAME, check_dtype=False)


def test_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("inside.csv", TEXTS["comma"])
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.zip"), FRAME, check_dtype=False)
    with zipfile.ZipFile(tmp_path / "t.zip", "a") as archive:
        archive.writestr("other.csv", TEXTS["comma"])
    with pytest.raises(DataError, match="holds 2 files: give an archive with a single table"):
        read_table(tmp_path / "t.zip")


def test_feather_json_lines_and_excel(tmp_path: Path) -> None:
    FRAME.to_feather(tmp_path / "t.feather")
    FRAME.to_json(tmp_path / "t.ndjson", orient="records", lines=True)
    pytest.importorskip("openpyxl")
    FRAME.to_excel(tmp_path / "t.xlsx", index=False)
    for ending in ("feather", "ndjson", "xlsx"):
        read = read_table(tmp_path / f"t.{ending}")
        # an empty row of a sheet is no row
        expected = FRAME.dropna(how="all").reset_index(drop=True) if ending == "xlsx" else FRAME
        pd.testing.assert_frame_equal(read, expected, check_dtype=False)


def test_excel_without_openpyxl_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("no openpyxl")

    (tmp_path / "t.xlsx").write_bytes(b"PK")
    monkeypatch.setattr(pd, "read_excel", absent)
    with pytest.raises(DataError, match=r"openpyxl is needed: pip install 'morphogen\[excel\]'"):
        read_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("größe,b\n1,é\n2,x\n".encode(encoding))
    frame = read_table(tmp_path / "t.csv")
    assert list(frame.columns) == ["größe", "b"]
    assert frame["b"].tolist() == ["é", "x"]
    notes = ("the file is not UTF-8: read as cp1252",) if encoding == "cp1252" else ()
    assert frame.attrs["notes"] == notes


def test_semicolons_with_decimal_commas(tmp_path: Path) -> None:
    lines = [f"{i},5;{i % 3};{'ja' if i % 2 else 'nein'}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["x;g;y", *lines]))
    data = load_data(str(tmp_path / "t.csv"), target="y")
    assert data.x_train.shape[1] == 2
    assert data.prepare is not None
    assert data.prepare.numbers[0].mark == ","
    assert "column 'x' holds numbers written as text, such as" in data.notes[0]


def test_labels_with_quotes_and_delimiters(tmp_path: Path) -> None:
    labels = ['say "hi"', "it's, so"] * 50
    pd.DataFrame({"x": range(100), "y": labels}).to_csv(tmp_path / "t.csv", index=False)
    assert load_data(str(tmp_path / "t.csv"), target="y").classes == ("it's, so", 'say "hi"')


def test_spaces_and_aligned_columns(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a   b\n1.5  2\n3    4\n")
    frame = read_table(tmp_path / "t.txt")
    assert frame.to_dict("list") == {"a": [1.5, 3], "b": [2, 4]}
