"""What the network of a finished run says about new rows.

    predict("runs/customers", frame)              class names, or the target in its own unit
    predict_file("runs/customers", "new.csv")     the same of a file, in parts

The network is run by onnxruntime, from `model.onnx`, whose metadata has the classes and the
columns: it loads in a tenth of torch's time, and no code of the folder is run.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd

from morphogen.data.apply_preparation import floats, prepare, readable, unread
from morphogen.errors import DataError, RunError
from morphogen.fitting.row_parts import row_parts

_AT_ONCE = 2**23  # numbers that the network reads of one part of a file
_MOST_ROWS = 100_000


@dataclass(frozen=True)
class Scorer:
    """A finished run that can be asked. constants: of the preparation, None where the network was
    trained on arrays; then a table has its features in their order. features: of one row, as the
    network reads it.
    """

    session: onnxruntime.InferenceSession
    task: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    constants: dict[str, Any] | None
    features: tuple[int, ...]

    @property
    def columns(self) -> tuple[str, ...] | None:
        """That a table must have; None where it has the features in their order."""
        return None if self.constants is None else tuple(_named(self.constants))

    @property
    def texts(self) -> frozenset[str]:
        """Columns whose cells are names, even where they look like numbers."""
        if self.constants is None:
            return frozenset()
        kinds = ("categories", "hashed", "words")
        return frozenset(column["name"] for kind in kinds for column in self.constants[kind])


@dataclass
class Strays:
    """Text cells where numbers belong, which were read as gaps: how many, and the first, by
    column.
    """

    seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, more: dict[str, tuple[int, str]]) -> None:
        for name, (count, first) in more.items():
            before, earlier = self.seen.get(name, (0, first))
            self.seen[name] = (before + count, earlier)

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"column {name!r}: {count:,} cell{'s' if count > 1 else ''} that cannot be read, "
            f"such as {first!r}: read as missing"
            for name, (count, first) in self.seen.items()
        )


def predict(run: str | Path, table: pd.DataFrame, proba: bool = False) -> pd.DataFrame:
    """What a finished run says about the rows of a table, (rows, targets): columns named after the
    targets, of class names or numbers in their own unit. proba: (rows, classes), a column a class.

    Gaps and unknown categories are read as in training, text where training had numbers as a gap;
    further columns are ignored. Raises `RunError` where the folder holds no finished run, and
    `DataError` where columns are missing, or `proba` is asked of a regression.
    """
    scorer = load_scorer(run)
    return pd.concat(scored(scorer, _slices(table, rows_at_once(scorer)), Strays(), proba))


def predict_file(
    run: str | Path, path: str | Path, strays: Strays, proba: bool = False
) -> Iterator[pd.DataFrame]:
    """`predict` of a table in a file, part by part: CSV and Parquet are not held as a whole."""
    scorer = load_scorer(run)
    parts = row_parts(Path(path), rows_at_once(scorer), scorer.columns, scorer.texts)
    return scored(scorer, parts, strays, proba)


def scored(
    scorer: Scorer, parts: Iterator[pd.DataFrame], strays: Strays, proba: bool
) -> Iterator[pd.DataFrame]:
    """The predictions of one part after the other."""
    if proba and scorer.task == "regression":
        raise DataError("proba=True: a regression has no probabilities; leave it out")
    for part in parts:
        yield _named_result(scorer, outputs(scorer, part, strays), part.index, proba)


def outputs(scorer: Scorer, table: pd.DataFrame, strays: Strays) -> np.ndarray:
    """What the network makes of a table, (rows, outputs): logits, or the target."""
    x = _inputs(scorer, table, strays)
    (given,) = scorer.session.get_inputs()
    try:
        (result,) = scorer.session.run(None, {given.name: x})
    except Exception as error:  # onnxruntime raises kinds of its own
        raise RunError(f"onnxruntime cannot run model.onnx ({_first_line(error)})") from error
    return np.asarray(result)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def load_scorer(run: str | Path) -> Scorer:
    """A finished run from its folder. Raises `RunError` where there is none, or an older one."""
    folder = Path(run)
    path = folder / "model.onnx"
    if not path.is_file():
        raise RunError(
            f"{folder} holds no finished run (there is no model.onnx in it); give the folder that "
            "fit wrote"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, and said once
    try:
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises kinds of its own
        raise RunError(f"{path} cannot be read ({_first_line(error)}); run fit again") from error
    about = session.get_modelmeta().custom_metadata_map
    try:
        task = about["task"]
        classes = tuple(map(str, json.loads(about["classes"])))
        prepared = json.loads(about["columns"]) is not None
        targets = tuple(map(str, json.loads(about["targets"])))
    except (KeyError, ValueError) as error:
        raise RunError(
            f"{path} does not say what it was trained for (it lacks {error}): an older version "
            "wrote it; run fit again"
        ) from error
    constants = _read_constants(folder) if prepared else None
    features = tuple(session.get_inputs()[0].shape[1:])
    return Scorer(session, task, targets, classes, constants, features)


def rows_at_once(scorer: Scorer) -> int:
    """Rows of a part that memory easily holds."""
    return max(100, min(_MOST_ROWS, _AT_ONCE // max(1, int(np.prod(scorer.features)))))


def _read_constants(folder: Path) -> dict[str, Any]:
    path = folder / "preparation.json"
    try:
        constants = json.loads(path.read_text(encoding="utf-8"))
        _named(constants)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path} cannot be used ({error}); run fit again") from error
    return dict(constants)


def _named(constants: dict[str, Any]) -> list[str]:
    """The table's columns that the preparation reads, each once."""
    kinds = [kind for key, kind in constants.items() if key != "notes"]
    return list(dict.fromkeys(column["name"] for kind in kinds for column in kind))


def _inputs(scorer: Scorer, table: pd.DataFrame, strays: Strays) -> np.ndarray:
    if scorer.constants is None:
        return _features(scorer, table)
    try:
        table = readable(table, scorer.constants)
        x = prepare(table, scorer.constants)
        strays.add(unread(table, scorer.constants))
        return x
    except ValueError as error:
        raise DataError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"preparation.json cannot be used ({error!r}); run fit again") from error


def _features(scorer: Scorer, table: pd.DataFrame) -> np.ndarray:
    """Of a network that was trained on arrays: the table has its features in their order."""
    wanted = int(np.prod(scorer.features))
    if table.shape[1] != wanted:
        raise DataError(
            f"the table has {table.shape[1]} columns; the network reads {wanted} features in "
            f"their order, {'x'.join(map(str, scorer.features))}"
        )
    columns = [floats(table[name]) for name in table.columns]
    x = np.stack(columns, axis=1).astype(np.float32)
    if np.isnan(x).any():
        name = table.columns[int(np.isnan(x).any(axis=0).argmax())]
        raise DataError(
            f"column {name!r} has gaps or text; the network was trained on arrays without gaps: "
            "fill them"
        )
    return x.reshape(len(x), *scorer.features)


def _named_result(scorer: Scorer, result: np.ndarray, index: pd.Index, proba: bool) -> pd.DataFrame:
    names = pd.Index(scorer.targets or ("prediction",))
    if scorer.task == "regression":
        return pd.DataFrame(result, columns=names, index=index)
    if proba:
        columns = pd.Index(scorer.classes)
        return pd.DataFrame(probabilities(result)[:, : len(columns)], columns=columns, index=index)
    labels = np.array(scorer.classes, dtype=object)[result.argmax(axis=1)]
    return pd.DataFrame(labels, columns=names, index=index)


def _slices(table: pd.DataFrame, rows: int) -> Iterator[pd.DataFrame]:
    """At least one, so that an empty table gives an empty result."""
    for start in range(0, max(1, len(table)), rows):
        yield table.iloc[start : start + rows]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
