"""Results as values: frozen dataclasses that become JSON and come back equal.

Nothing here imports torch, so a report can be read where no model can be run.
"""

import json
import os
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

T = TypeVar("T")

PART = ".part"
"""How the name of a file ends that is being written."""

Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Receipt:
    """What one resize did.

    `sizes` maps each changed width to (before, after); `parameters` counts the model's parameters
    before and after; `change` is the largest absolute difference of the output on the probe batch
    (None where none was given). `keeps`: whether the function is kept by construction, which was
    then verified on the probe batch.
    """

    edits: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    change: float | None = None
    keeps: bool = False


@dataclass(frozen=True)
class Certificate:
    """What a transform promises about the function it returned.

    kind: "exact" (an identity in real arithmetic), "bounds" (a function below the network and one
    above, equal to it in places) or "measured" (seen on probes only). max_error: the largest
    absolute output difference on the probes. box: the inputs (low, high) that it holds on, numbers
    or one for each input, None for every input. proved: True only where the identity follows from
    algebra or bounds, never from probes. steps: what was done, a line each, with what proves it.
    """

    kind: Literal["exact", "bounds", "measured"]
    max_error: float
    box: tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]] | None
    proved: bool
    reason: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A published or promised figure beside what was measured: mean `measured` and standard
    deviation `spread` over seeds.

    It is met where `low` <= measured <= `high`; None is no bound, and a claim without bounds is
    shown, not judged. source: where the figure, and the tolerance, come from.
    """

    name: str
    target: float | None
    measured: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    source: str = ""

    @property
    def met(self) -> bool:
        """The verdict. NaN meets nothing."""
        return (
            (self.low is None or self.measured >= self.low)
            and (self.high is None or self.measured <= self.high)
            and (self.measured == self.measured)
        )

    @property
    def verdict(self) -> Literal["met", "missed", "\u2013"]:
        """A dash where nothing was promised."""
        if self.low is None and self.high is None:
            return "\u2013"
        return "met" if self.met else "missed"


@dataclass(frozen=True)
class Curve:
    """One line of a plot: `panel` names the plot, `name` the line; x and y have one length."""

    panel: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Grid:
    """A plot of one number for each row and column: `panel` names it; rows of values, the first on
    top.
    """

    panel: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tiling:
    """A plot of polygons: `panel` names it; corners in order around each, and a number each, equal
    ones of one colour.
    """

    panel: str
    polygons: tuple[tuple[tuple[float, float], ...], ...]
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """A scalar of one run, by step. times: of the clock, in seconds, where they were noted. run:
    may have slashes.
    """

    run: str
    tag: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """A paper's experiment, run again: the claims, the curves and what a reader must know of the
    run.

    traces: of every run, what the claims were made from. files: what belongs beside the tables, by
    path, and is no text, as checkpoints; they are not part of the JSON.
    """

    name: str
    title: str
    source: str
    mode: Literal["faithful", "default"]  # the original's settings, quirks included, or ours
    settings: dict[str, str]
    claims: tuple[Claim, ...]
    curves: tuple[Curve, ...] = ()
    axes: dict[str, tuple[str, str]] = field(default_factory=dict)  # panel -> labels of x and y
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)
    traces: tuple[Trace, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict, metadata={"json": False})
    grids: tuple[Grid, ...] = ()
    tilings: tuple[Tiling, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One bar of the drawn shape. units: its channels, features or nodes."""

    name: str
    kind: Literal["conv", "linear", "dag", "output"]
    units: int


@dataclass(frozen=True)
class Depth:
    """A learned depth: the layer that its blocks follow, the depth w, and the gates of the blocks
    that take part.
    """

    name: str
    w: float
    gates: tuple[float, ...]


@dataclass(frozen=True)
class Round:
    """The state after one round of training (a fixed number of steps between two evaluations on
    the validation part).
    """

    round: int
    epoch: float
    step: int
    seconds: float
    # the structure changes, then the learning rate falls to zero
    phase: Literal["grow", "anneal"]
    train_loss: float
    valid_loss: float
    valid_score: float
    parameters: int
    shape: tuple[Layer, ...]
    depths: tuple[Depth, ...] = ()


@dataclass(frozen=True)
class Change:
    """One change of the structure (or a refused one) and why: "hidden.1 12 -> 16: validation loss
    -0.013".
    """

    round: int
    epoch: float
    where: str
    before: int
    after: int
    reason: str
    parameters: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.where} {self.before} -> {self.after}: {self.reason}"


@dataclass(frozen=True)
class TableRow:
    """One line of the final table. `score` (the metric) and `loss` are on the test part; None where
    there is none.
    """

    name: str
    score: float | None
    parameters: int | None
    seconds: float | None
    note: str = ""
    loss: float | None = None


@dataclass(frozen=True)
class Bin:
    """Rows of about one probability: the mean of what was said, how often it was true, and how many
    rows they are.
    """

    said: float
    true: float
    rows: int


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y), and the area under it."""

    name: str
    points: tuple[tuple[float, float], ...]
    area: float


@dataclass(frozen=True)
class Importance:
    """How much the loss rises without what a column says; low, high: a 95 % interval."""

    column: str
    rise: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """The network on rows that it has not seen. part: "test", or "validation" where there are no
    test rows.

    Of classes: confusion[true][predicted] counts rows; reliability; a curve a class. Of numbers:
    residuals, pairs of (prediction, true value less prediction).
    """

    part: str
    rows: int
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    reliability: tuple[Bin, ...] = ()
    roc: tuple[Line, ...] = ()
    precision_recall: tuple[Line, ...] = ()
    residuals: tuple[tuple[float, float], ...] = ()
    importance: tuple[Importance, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything a report shows of one `fit`. It holds numbers and text only; rendering it never
    runs a model.
    """

    name: str
    data: str
    task: Task
    metric: str  # what `score` and `valid_score` are, such as "accuracy" or "RMSE"
    seed: int
    rounds: tuple[Round, ...] = ()
    changes: tuple[Change, ...] = ()
    table: tuple[TableRow, ...] = ()
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    # the round whose network was kept; None: the last one
    kept: int | None = None
    evaluation: Evaluation | None = None

    @property
    def result(self) -> Round:
        """The round whose network was kept."""
        return next((r for r in self.rounds if r.round == self.kept), self.rounds[-1])

    @property
    def loss(self) -> str:
        """What was minimised, and is shown beside the metric."""
        return "RMSE" if self.task == "regression" else "log loss"


@dataclass(frozen=True)
class DensityTrial:
    """A network of the search for a density. loss: description length of a held out row, in bits.
    units: its stochastic ones, in so many layers.
    """

    name: str
    loss: float
    units: int
    parameters: int
    seconds: float
    layers: int = 0


@dataclass(frozen=True)
class DensityReport:
    """Everything a report shows of one density. All lengths in bits a row, of test rows: length
    (error: its standard error over rows; sampling: by drawing h), independent (of columns that know
    nothing of each other). columns: what each costs and would cost alone, of a number its bin.
    samples, hardest: rows as text under `names`; of the hardest with their bits. stochastic: of
    each layer of stochastic units what each of them costs to send, from the one next to x on.
    """

    name: str
    rows: tuple[int, int]
    names: tuple[str, ...]
    length: float
    error: float
    sampling: float
    independent: float
    columns: tuple[tuple[str, float, float], ...]
    trials: tuple[DensityTrial, ...]
    found: str
    real: tuple[tuple[str, ...], ...]
    samples: tuple[tuple[str, ...], ...]
    hardest: tuple[tuple[float, tuple[str, ...]], ...]
    stochastic: tuple[tuple[float, ...], ...] = ()
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def to_json(value: Any) -> str:
    """One of the dataclasses above as JSON text."""
    outside = {f.name for f in fields(value) if not f.metadata.get("json", True)}
    return json.dumps(
        {k: v for k, v in asdict(value).items() if k not in outside}, indent=1, allow_nan=True
    )


def from_json(kind: type[T], text: str) -> T:
    """The inverse of `to_json`. Raises `ValueError` where the text is not what that wrote."""
    return typing.cast(T, revive(kind, json.loads(text)))


def revive(kind: Any, value: Any, where: str = "") -> Any:
    """`value` as JSON gave it, turned back into the annotated type `kind`: dataclasses, tuples,
    lists, dictionaries, numbers, texts, literals, and alternatives of these. Keys that a dataclass
    does not have are left out.

    where: names the value in errors. Raises `ValueError` that says what is wrong where.
    """
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _revive_fields(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return _revive_one_of(args, value, where)
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        inner = (args[0],) * len(value) if origin is list or args[-1] is Ellipsis else args
        if len(inner) == len(value):
            return origin(
                revive(k, v, f"{where}[{i}]")
                for i, (k, v) in enumerate(zip(inner, value, strict=True))
            )
    elif origin is dict and isinstance(value, dict):
        return {k: revive(args[1], v, f"{where}[{k!r}]") for k, v in value.items()}
    elif origin is Literal and value in args:
        return value
    elif kind is type(None) and value is None:
        return None
    # True is an int to Python, and no number to us
    elif (
        kind in _ACCEPTED
        and isinstance(value, _ACCEPTED[kind])
        and isinstance(value, bool) == (kind is bool)
    ):
        return value
    raise ValueError(f"{where or 'it'} is {_short(value)}, not {_named(kind)}")


_ACCEPTED: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (float, int),
    str: (str,),
    bool: (bool,),
}


def _revive_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is {_short(value)}, not a {kind.__name__}")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for name, f in known.items():
        if name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where or 'it'} has no {name!r}")
    return kind(
        **{
            k: revive(hints[k], v, f"{where}.{k}".lstrip("."))
            for k, v in value.items()
            if k in known
        }
    )


def _revive_one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """As the first of the types that it fits; where none does, the last one's complaint, which is
    the most telling.
    """
    complaint = None
    for kind in sorted(kinds, key=lambda kind: kind is not type(None)):
        try:
            return revive(kind, value, where)
        except ValueError as error:
            complaint = error
    assert complaint is not None
    raise complaint


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _named(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Two writers at once do not meet: each has a part of its own, and the later one's content stays.
    """
    # a file's name may hold what is no text
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    part = _part(path)
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file to be written bit by bit, which appears as a whole at the end, or not at all."""
    part = _part(path)
    try:
        with part.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}{PART}")
