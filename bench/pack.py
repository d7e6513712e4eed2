"""Tables packed by `morphogen.packing.pack` beside xz -9, zstd -19 and Parquet with zstd.

    python bench/pack.py                      # all; goes on where it was stopped
    python bench/pack.py --only nltcs,adult --seconds 30

Needs `pip install zstandard` for the column of zstd, which is empty without it. Binary tables are
written as CSV of 0 and 1 with a line of names; xz and zstd are given the shortest of that, the bits
packed row by row, and the bits packed in one run. Every packed file is unpacked and compared byte
by byte. Sizes count everything, the model and the names too. The bound is what the rows cost under
the very model that travels along, by its likelihood (a bound where it has stochastic bits), rests
aside.
Results are kept after each table in results/pack.json, and results/pack.md is made from them.
"""

import argparse
import csv
import gzip
import importlib
import io
import json
import lzma
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

from morphogen.data.folders import find
from morphogen.environment import environment
from morphogen.packing.choice import name_of
from morphogen.packing.pack import pack, unpack_file

RESULTS = Path(__file__).parent / "results" / "pack.json"
BINARY = (
    *("nltcs", "mushrooms", "dna", "adult", "connect4", "plants", "ocr_letters", "baudio"),
    *("pumsb_star", "accidents"),
)
MIXED: Mapping[str, str] = {
    "adult (mixed)": "tabular/adult/adult.data.gz",
    "diamonds": "tabular/diamonds/diamonds.csv.gz",
    "california": "tabular/california_housing/housing.csv.gz",
    "credit-default": "tabular/credit_default/UCI_Credit_Card.csv.gz",
}
Squeeze = Callable[[bytes], bytes]


def load(name: str) -> tuple[bytes, list[bytes]]:
    """(CSV, other forms in which others may compress it)."""
    path = MIXED.get(name, f"density_binary/{name}.npz")
    paths = find(path)
    if not paths:
        raise FileNotFoundError(f"{path} is in no data folder")
    if name in MIXED:
        return gzip.decompress(paths[0].read_bytes()), []
    held = np.load(paths[0])
    width = int(held["dim"])
    parts = [np.unpackbits(held[part], axis=1) for part in ("train", "valid", "test")]
    bits = np.concatenate(parts)[:, :width]
    lines = [",".join(f"b{k}" for k in range(width))]
    lines += [",".join(map(str, row)) for row in bits.tolist()]
    forms = [np.packbits(bits, axis=1).tobytes(), np.packbits(bits.ravel()).tobytes()]
    return ("\n".join(lines) + "\n").encode(), forms


def _zstd() -> Squeeze | None:
    if importlib.util.find_spec("zstandard") is None:
        return None
    compressor = importlib.import_module("zstandard").ZstdCompressor(level=19)
    return lambda data: bytes(compressor.compress(data))


def others(text: bytes, forms: Sequence[bytes]) -> dict[str, int | None]:
    """Bytes by each of the others."""
    zstd = _zstd()
    every = [text, *forms]
    return {
        "xz": min(len(lzma.compress(form, preset=9)) for form in every),
        "zstd": min(len(zstd(form)) for form in every) if zstd else None,
        "parquet": _parquet(text),
    }


def _parquet(text: bytes) -> int:
    """Of the table as pandas reads it, so that numbers are numbers."""
    out = io.BytesIO()
    frame = pd.read_csv(io.BytesIO(text))
    frame.to_parquet(out, compression="zstd", compression_level=19, index=False)
    return len(out.getvalue())


def measure(text: bytes, forms: Sequence[bytes], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        table, packed, back = (Path(folder) / name for name in ("t.csv", "t.mpk", "back.csv"))
        table.write_bytes(text)
        result = pack(table, packed, seconds)
        began = time.perf_counter()
        unpack_file(packed, back)
        unpacking = time.perf_counter() - began
        same = back.read_bytes() == text
    return {
        "rows": result.rows,
        "columns": len(next(csv.reader([text[: text.index(b"\n")].decode()]))),
        "csv": result.before,
        "packed": result.after,
        **others(text, forms),
        "bits_a_row": result.bits_a_row,
        "model": result.model_bytes,
        "header": result.sizes[0],
        "plan": name_of(result.chosen.plan) if result.chosen else "none",
        "rows_bits": result.rows_bits,
        "bound_bits": result.bound_bits,
        "seconds_pack": result.seconds,
        "seconds_unpack": unpacking,
        "same_bytes": same,
        "tried": result.chosen.tried if result.chosen else {},
    }


def summary(results: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        "# Packed tables, in bytes, everything counted",
        "",
        "ANS / bound: bits of the rows on the stack over what the model's likelihood says of them.",
        "",
        "| table | rows | columns | CSV | packed | xz -9 | zstd -19 | Parquet | packed / xz | "
        "bits a row | model bytes | model | ANS / bound | s to pack | s to unpack | rows a second, "
        "unpacked | same bytes |",
        f"|---|{'--:|' * 10}---|{'--:|' * 4}---|",
    ]
    for name, row in results.items():
        ratio = row["packed"] / row["xz"]
        over = row["rows_bits"] / row["bound_bits"] if row["bound_bits"] else 1.0
        speed = row["rows"] / row["seconds_unpack"]
        zstd = f"{row['zstd']:,}" if row["zstd"] else ""
        lines.append(
            f"| {name} | {row['rows']:,} | {row['columns']} | {row['csv']:,} | {row['packed']:,} | "
            f"{row['xz']:,} | {zstd} | {row['parquet']:,} | {ratio:.3f} | "
            f"{row['bits_a_row']:.1f} | {row['model']:,.0f} | {row['plan']} | {over:.4f} | "
            f"{row['seconds_pack']:.0f} | {row['seconds_unpack']:.1f} | {speed:,.0f} | "
            f"{'yes' if row['same_bytes'] else 'NO'} |"
        )
    missed = [name for name, row in results.items() if row["packed"] >= row["xz"]]
    lines += ["", f"Not shorter than xz -9: {', '.join(missed) or 'none'}."]
    return "\n".join([*lines, "", f"{environment('cpu')}", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of tables, with commas")
    parser.add_argument("--seconds", type=float, default=45.0, help="of training")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    names = given.only.split(",") if given.only else [*BINARY, *MIXED]
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    torch.set_num_threads(1)
    for name in names:
        if name in results:
            continue
        try:
            text, forms = load(name)
        except FileNotFoundError as error:
            print(f"{name}: left out ({error})", flush=True)
            continue
        results[name] = measure(text, forms, given.seconds)
        given.results.write_text(json.dumps(results, indent=1) + "\n")
        given.results.with_suffix(".md").write_text(summary(results))
        print(name, results[name], flush=True)


if __name__ == "__main__":
    main()
