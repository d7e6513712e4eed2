"""A table as a file that is as short as its distribution lets it be: `pack`, `unpack`.

The columns become bits and rests (`columns`), a density model is trained on all rows and rounded,
and rows, rests and weights go onto one ANS stack, by bits back where the model has stochastic bits.
The model travels along, so its bytes count.

Source: Townsend, Bird, Barber 2019 (arXiv 1901.04866).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from morphogen.density.groups import Groups
from morphogen.errors import DataError
from morphogen.packing.cells import DTYPES, cells_of
from morphogen.packing.choice import MOST_BITS, Chosen, choose
from morphogen.packing.coder import Coder
from morphogen.packing.columns import Coded, Columns, fit_columns
from morphogen.packing.columns_json import from_json, to_json
from morphogen.packing.container import (
    Container,
    digest_of,
    read_container,
    write_container,
)
from morphogen.packing.csv_file import Way, read_csv, way_of, write_csv
from morphogen.packing.model import Model, Plan, build
from morphogen.packing.rests import pop_rests, push_rests
from morphogen.packing.rows import Schedule, pop_rows, push_rows, schedule_for
from morphogen.packing.weights import MOST, Rounding, pop_weights, push_weights
from morphogen.record import write_atomic

MOST_CELLS = 1 << 27  # rows times columns
MOST_ENTRIES = 1 << 29  # rows times bits
_MOST_UNITS = 1024
_MOST_BATCH = 1 << 16
# words on the stack before anything else; one, so that it is empty only where a file is damaged
_SEEDS = (1, 4, 16, 128, 1024, 1 << 16)
# what numpy, torch and the coder raise at numbers that do not fit each other
_WRONG = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(TypeError, ValueError),
)


@dataclass(frozen=True)
class Packed:
    """What packing came to. before: bytes of the table as CSV. after: of the file. sizes: of the
    file's header, words and texts. chosen: the model, None where no column has two levels. exact:
    whether a file comes back byte by byte, and not only cell by cell. rows_bits: what the rows took
    on the stack, rests aside. seconds: that packing took.
    """

    rows: int
    before: int
    after: int
    sizes: tuple[int, int, int]
    chosen: Chosen | None
    exact: bool
    rows_bits: float
    seconds: float

    @property
    def bits_a_row(self) -> float:
        return 8 * self.after / self.rows

    @property
    def model_bytes(self) -> float:
        """Of the model's weights."""
        return self.chosen.model_bits / 8 if self.chosen else 0.0

    @property
    def bound_bits(self) -> float:
        """What the rows take by the model's likelihood."""
        return self.chosen.bits - self.chosen.model_bits if self.chosen else 0.0


def pack(
    table: pd.DataFrame | Path | str,
    out: Path | str,
    seconds: float = 45.0,
    seed: int = 0,
    columns: Columns | None = None,
) -> Packed:
    """Write a table, or the CSV file of one, to `out`. seconds: of training. columns: of another
    table, whose levels this one has.

    Of a DataFrame values, names as text, and types come back, rows numbered from 0; of a file every
    byte, unless `exact` says otherwise. Raises `DataError` for a table without rows, with cells
    that are neither numbers nor texts, or too large.
    """
    began = time.perf_counter()
    frame, way, before = _table(table)
    columns = columns or fit_columns(frame)
    coded = columns.encode(frame)
    groups = columns.groups
    if coded.rows * groups.bits > MOST_ENTRIES:
        raise DataError(
            f"table has {coded.rows} rows of {groups.bits} bits: at most {MOST_ENTRIES} together; "
            "pack parts of it"
        )
    x = torch.from_numpy(coded.bits)
    chosen = choose(x, groups, seconds, seed) if len(groups) else None
    words, rows_bits = _words(columns, coded, chosen)
    header = _header(columns, coded.rows, chosen, way)
    content = Container(header, words, [*coded.texts.values()], _digest(frame))
    data = write_container(content)
    # whoever packs may delete the table: only what has come back once is written
    _read(data)
    _write(Path(out), data)
    sizes = read_container(data).sizes
    exact = way is None or way.exact
    spent = time.perf_counter() - began
    return Packed(coded.rows, before, len(data), sizes, chosen, exact, rows_bits, spent)


def _table(table: pd.DataFrame | Path | str) -> tuple[pd.DataFrame, Way | None, int]:
    """(table, the way its file was written, bytes as CSV)."""
    if not isinstance(table, pd.DataFrame):
        frame, way = read_csv(Path(table))
        return _small(frame), way, Path(table).stat().st_size
    if not table.index.equals(pd.RangeIndex(len(table))):
        raise DataError("frame has an index of its own, which would be lost: use reset_index()")
    _small(table)
    return table, None, len(write_csv(_texts(table), Way()))


def _small(frame: pd.DataFrame) -> pd.DataFrame:
    if frame.size > MOST_CELLS:
        raise DataError(f"table has {frame.size} cells: at most {MOST_CELLS}; pack parts of it")
    return frame


def unpack(path: Path | str) -> pd.DataFrame:
    """The table that was packed. Raises `DataError` for a file that is none, or is damaged."""
    return _read(_bytes(path))[0]


def unpack_bytes(path: Path | str) -> tuple[bytes, int]:
    """(the CSV file that was packed, or that of the packed table, its rows)."""
    frame, way = _read(_bytes(path))
    if way is None:
        return write_csv(_texts(frame), Way(header="all", body="all")), len(frame)
    return write_csv(frame, way), len(frame)


def unpack_file(path: Path | str, out: Path | str) -> int:
    """Write the CSV file. Returns its rows."""
    data, rows = unpack_bytes(path)
    _write(Path(out), data)
    return rows


def _bytes(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _write(out: Path, data: bytes) -> None:
    try:
        write_atomic(out, data)
    except OSError as error:
        raise DataError(f"out={out}: cannot be written ({error.strerror})") from error


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every cell as text, a missing one empty."""
    cells = [cells_of(frame, number) for number in range(frame.shape[1])]
    columns = {k: ["" if cell is None else cell for cell in own] for k, own in enumerate(cells)}
    texts = pd.DataFrame(columns, dtype=object)
    texts.columns = frame.columns
    return texts


def _digest(frame: pd.DataFrame) -> bytes:
    every = range(frame.shape[1])
    return digest_of(
        [(str(frame.columns[k]), str(frame.dtypes.iloc[k]), cells_of(frame, k)) for k in every]
    )


def _header(columns: Columns, rows: int, chosen: Chosen | None, way: Way | None) -> dict[str, Any]:
    header: dict[str, Any] = {"rows": rows, "columns": to_json(columns)}
    if chosen:
        roundings = [[rounding.digits, rounding.most] for rounding in chosen.roundings]
        header["model"] = {"plan": asdict(chosen.plan), "roundings": roundings}
        header["schedule"] = asdict(schedule_for(rows))
    if way:
        header["way"] = way.to_json()
    return header


# ---- onto the stack: seed, rests, rows, weights


def _words(columns: Columns, coded: Coded, chosen: Chosen | None) -> tuple[np.ndarray, float]:
    """(the stack, bits that the rows took of it)."""
    own = 0.0
    for seed in _SEEDS:
        coder = _seeded(seed)
        push_rests(coder, columns, coded)
        if chosen is None:
            break
        exact = chosen.model.double()
        before = coder.num_valid_bits()
        if push_rows(coder, exact, coded.bits):
            own = coder.num_valid_bits() - before
            push_weights(coder, exact, chosen.roundings, chosen.numbers)
            break
    return np.asarray(coder.get_compressed()), own


def _seeded(words: int) -> Coder:
    # the last must not be 0, and is so large that it does not vanish before all is popped
    drawn = np.random.default_rng(0).integers(1 << 31, 1 << 32, words, dtype=np.uint32)
    return Coder(drawn)


# ---- and off it


def _read(data: bytes) -> tuple[pd.DataFrame, Way | None]:
    content = read_container(data)
    try:
        head = _checked(content.header)
        frame = _decoded(content, head)
        digest = _digest(frame)
    except DataError:
        raise
    except _WRONG as error:
        raise DataError(f"the packed file does not describe a table: {error}") from error
    if digest != content.digest:
        raise DataError(
            "the rows that came out are not those that were packed: this machine rounds otherwise "
            "than the one that packed them, or the file was altered; unpack it there"
        )
    return frame, head.way


@dataclass(frozen=True)
class _Head:
    """What a header says, once it has been checked."""

    columns: Columns
    rows: int
    model: Model | None
    roundings: Sequence[Rounding]
    schedule: Schedule
    way: Way | None


def _checked(header: Any) -> _Head:
    rows = header["rows"]
    count = len(header["columns"])
    if type(rows) is not int or not 0 < rows * max(count, 1) <= MOST_CELLS:
        raise DataError(f"the packed file claims {rows} rows: at most {MOST_CELLS} cells are read")
    columns = from_json(header["columns"])
    unknown = [column.dtype for column in columns.columns if column.dtype not in DTYPES]
    if unknown:
        raise DataError(f"the packed file has a column of type {unknown[0]!r}: it is none of ours")
    groups = columns.groups
    if rows * groups.bits > MOST_ENTRIES:
        raise DataError(f"the packed file claims {rows} rows of {groups.bits} bits: too many")
    way = way_of(header["way"]) if "way" in header else None
    if not len(groups):
        return _Head(columns, rows, None, (), schedule_for(rows), way)
    plan = _plan(header["model"]["plan"], groups)
    roundings = [Rounding(*pair) for pair in header["model"]["roundings"]]
    if any(not 0 <= own.digits <= 30 or not 0 <= own.most <= MOST for own in roundings):
        raise DataError("the packed file has weights that are too large")
    schedule = Schedule(**header["schedule"])
    if not 0 < schedule.batch <= _MOST_BATCH or not 0 < schedule.strip <= rows:
        raise DataError(f"the packed file has {schedule} of {rows} rows: it is damaged")
    return _Head(columns, rows, build(groups, plan), roundings, schedule, way)


def _plan(described: Any, groups: Groups) -> Plan:
    plan = Plan(**described)
    if plan.head not in ("independent", "linear", "made"):
        raise DataError(f"the packed file has a model with head {plan.head!r}: it is none of ours")
    large = not 0 <= plan.hidden <= _MOST_UNITS or not 0 <= plan.units <= _MOST_UNITS
    if large or (groups.bits > MOST_BITS and plan != Plan(head="independent")):
        raise DataError(f"the packed file has a model of {plan}: too large")
    return plan


def _decoded(content: Container, head: _Head) -> pd.DataFrame:
    columns, rows, model = head.columns, head.rows, head.model
    numbers = [k for k, column in enumerate(columns.columns) if column.kind == "text"]
    texts = dict(zip(numbers, content.texts, strict=True))
    if any(len(cells) != rows for cells in texts.values()):
        raise DataError(f"the packed file claims {rows} rows, its texts have others")
    coder = Coder(content.words) if len(content.words) else Coder()
    bits = np.zeros((rows, 0), dtype=np.float32)
    if model is not None:
        model = model.double().eval()
        pop_weights(coder, model, head.roundings)
        bits = pop_rows(coder, model, rows, head.schedule)
    levels = columns.levels_of(bits)
    rests = pop_rests(coder, columns, levels, rows)
    return columns.decode(Coded(rows, bits, levels, rests, texts))
