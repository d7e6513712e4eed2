"""Files that hold tables, whole and damaged."""

import gzip
from pathlib import Path

import pandas as pd
import pytest

from morphogen.data.tables import read_table
from morphogen.errors import DataError

FRAME = pd.DataFrame({"a": [1.5, None, 2.0], "b c": ["x", None, "y"]})


TEXTS = {
    "comma": "a,b c\n1.5,x\n,\n2.0,y\n",
    "BOM, blanks and ?": "\ufeffa, b c\n1.5, x\n?, ?\n2.0, y\n",
    "semicolon": "a;b c\n1.5;x\n;\n2;y",
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
            "t.xlsx",
            b"",
            r"cannot read 't.xlsx': give a file that ends in .csv, .csv.gz, .*\.parquet",
        ),
        ("t.csv", b"", "is an empty table: give a file with a header and rows"),
        (
            "t.csv",
            b"a,b\n1,2\n3,4,5\n",
            "cannot read .* as .csv .*Expected 2 fields in line 3, saw 3",
        ),
        ("t.csv", b"a,b\n1,2,\n3,4,\n", "its rows have more cells than its header"),
        ("t.csv", b"a,b\n\xff\xfe,1\n", "cannot read .* as .csv .*utf-8"),
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
