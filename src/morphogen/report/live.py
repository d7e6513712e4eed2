"""Progress in a terminal: a live panel, plain lines where the output is no terminal, or nothing."""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel as Box
from rich.table import Table
from rich.text import Text

from morphogen.record import Change, Layer, Report, Round
from morphogen.report.text import (
    PHASES,
    course,
    format_loss,
    format_row,
    format_score,
    format_seconds,
    header,
    headline,
    matters,
    origin,
)

_ASCII = str.maketrans({"–": "-", "−": "-", "→": "->", "…": "...", "·": "-", "×": "x", "’": "'"})
_STYLES = {"conv": "cyan", "dag": "cyan", "linear": "blue", "output": "magenta"}
_WIDE = 100  # letters from which the final table has room for notes
_RECENT = 4  # rounds for which a bar shows what it gained or lost


class Display(ABC):
    """Where a run is shown. metric: of `Round.valid_score`; without it the score stays a bare
    number.
    """

    def __init__(self, console: Console, metric: str | None = None) -> None:
        self.console = console
        self.metric = metric

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @abstractmethod
    def round(self, r: Round, time_left: float | None) -> None:
        """A round ended; time_left in seconds, None while nobody knows."""

    @abstractmethod
    def change(self, c: Change) -> None:
        """The structure changed."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Something that the user should know."""

    @abstractmethod
    def finish(self, report: Report) -> None:
        """The run ended."""

    def written(self, folder: Path, files: str) -> None:
        """The files are there."""
        self.say(f"written to {folder}/: {files}")

    def text(self, text: str, style: str = "") -> Text:
        """`text` without markup, in letters that the console's encoding has."""
        return Text(_written(text, self.console), style=style)


class Silent(Display):
    """Shows nothing but the folder."""

    def written(self, folder: Path, files: str) -> None:
        self.console.print(self.text(str(folder)), highlight=False, soft_wrap=True)

    def round(self, r: Round, time_left: float | None) -> None: ...
    def change(self, c: Change) -> None: ...
    def say(self, text: str) -> None: ...
    def finish(self, report: Report) -> None: ...


class Lines(Display):
    """One line a change, and one a round at a rate that a log can bear: every 3 s at first, then
    rarer as the run ages.
    """

    def __init__(self, console: Console, metric: str | None = None) -> None:
        super().__init__(console, metric)
        self.due = 0.0
        self.phase = ""

    def round(self, r: Round, time_left: float | None) -> None:
        if r.seconds >= self.due or r.phase != self.phase:
            self.due = r.seconds + max(3.0, 0.05 * r.seconds)
            self.phase = r.phase
            left = "" if time_left is None else f"about {format_seconds(time_left)} left"
            figures = ", ".join(f"{name} {value}" for name, value in _figures(r, self.metric))
            parts = (
                f"epoch {r.epoch:.1f}",
                PHASES.get(r.phase, r.phase),
                figures,
                format_seconds(r.seconds),
                left,
            )
            self._line(", ".join(filter(None, parts)))

    def change(self, c: Change) -> None:
        self._line(f"  epoch {c.epoch:.1f}  {c}")

    def say(self, text: str) -> None:
        self._line(text)

    def finish(self, report: Report) -> None:
        self.console.print(_summary(report, self), highlight=False)

    def _line(self, text: str) -> None:
        self.console.print(self.text(text), highlight=False, soft_wrap=True)


class Panel(Display):
    """Figures and the current shape as bars, redrawn in place; changes scroll by above."""

    def __init__(self, console: Console, metric: str | None = None) -> None:
        super().__init__(console, metric)
        # few redraws: they take time from the training
        self.live = Live(
            console=console, refresh_per_second=4, transient=True, vertical_overflow="crop"
        )
        self.shapes: deque[tuple[Layer, ...]] = deque(maxlen=_RECENT + 1)
        self.losses: list[float] = []

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def round(self, r: Round, time_left: float | None) -> None:
        self.shapes.append(r.shape)
        self.losses.append(r.valid_loss)
        self.live.update(self._panel(r, time_left))

    def change(self, c: Change) -> None:
        style = "green" if c.after > c.before else "yellow" if c.after < c.before else "dim"
        line = self.text(f"  epoch {c.epoch:5.1f}  ", "dim")
        line.append_text(self.text(f"{c.where} {c.before} -> {c.after}", style)).append_text(
            self.text(f": {c.reason}", "not dim")
        )
        self.console.print(line, highlight=False)

    def say(self, text: str) -> None:
        self.console.print(self.text(text, "dim"), highlight=False)

    def finish(self, report: Report) -> None:
        # transient: nothing of the panel stays, the result takes its place
        self.live.update(Text(""), refresh=True)
        self.console.print(_summary(report, self), highlight=False)

    def _panel(self, r: Round, time_left: float | None) -> RenderableType:
        width = min(self.console.width, 80)
        room = max(10, width - 6)
        left = "" if time_left is None else f", about {format_seconds(time_left)} left"
        lines = max(3, self.console.height - 12)
        bars = _bars(r.shape, self.console, room, lines, self.shapes[0])
        parts: list[RenderableType] = [
            _grid(_figures(r, self.metric), 2 if room > 56 else 1, self),
            Text(""),
            bars,
        ]
        if _unicode(self.console) and room > 40:
            parts += [
                Text(""),
                Text.assemble(
                    ("validation loss ", "dim"), (_sparkline(self.losses, room - 16), "red")
                ),
            ]
        return Box(
            Group(*parts),
            title=self.text(f"{PHASES.get(r.phase, r.phase)} · epoch {r.epoch:.1f}", "bold"),
            title_align="left",
            subtitle=self.text(f"{format_seconds(r.seconds)}{left}", "default"),
            subtitle_align="right",
            border_style="green" if r.phase == "grow" else "blue",
            padding=(1, 2),
            width=width,
        )


def display(quiet: bool, console: Console | None = None, metric: str | None = None) -> Display:
    """The display for this output: nothing if quiet, a live panel in a terminal, plain lines
    elsewhere.

    metric: such as "accuracy", where it is known before the run; only the wording of the
    validation score needs it.
    """
    console = console or Console(highlight=False)
    if quiet:
        return Silent(console, metric)
    return (
        Panel(console, metric)
        if console.is_terminal and not console.is_dumb_terminal
        else Lines(console, metric)
    )


def _figures(r: Round, metric: str | None) -> list[tuple[str, str]]:
    score = format_score(metric, r.valid_score) if metric else f"{r.valid_score:.4f}"
    return [
        ("loss", format_loss(r.train_loss)),
        ("validation loss", format_loss(r.valid_loss)),
        (f"validation {metric or 'score'}", score),
        ("parameters", f"{r.parameters:,}"),
    ]


def _grid(figures: Sequence[tuple[str, str]], columns: int, shown: Display) -> Table:
    """Names and figures in places that stay where they are as the figures change."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(columns):
        grid.add_column(style="dim", no_wrap=True, overflow="crop")
        grid.add_column(style="bold", no_wrap=True, overflow="crop", min_width=10)
    for start in range(0, len(figures), columns):
        grid.add_row(
            *(shown.text(cell) for figure in figures[start : start + columns] for cell in figure)
        )
    return grid


def _bars(
    shape: Sequence[Layer],
    console: Console,
    width: int,
    lines: int,
    before: Sequence[Layer] | None = None,
) -> RenderableType:
    """One bar a layer, as long as its units beside the largest layer's; green what it gained since
    `before`.

    Of more layers than lines, those in the middle are counted only.
    """
    most = max((layer.units for layer in shape), default=1)
    names = min(max((len(layer.name) for layer in shape), default=0), max(4, width // 3))
    digits = max((len(f"{layer.units:,}") for layer in shape), default=1)
    room = max(4, min(60, width - names - digits - 2))
    was = {layer.name: layer.units for layer in before or shape}
    head = len(shape) if len(shape) <= lines else (lines - 1) // 2
    tail = len(shape) if len(shape) <= lines else len(shape) - (lines - 1 - head)
    text = Text(no_wrap=True, overflow="crop")
    for number, layer in enumerate(shape):
        if head <= number < tail:
            if number == head:
                text.append(
                    _written(f"{'':>{names}} … {tail - head} more layers\n", console), style="dim"
                )
            continue
        old = min(layer.units, was.get(layer.name, 0))
        bar = _bar(layer.units * room / most, console)
        kept = round(old * room / most)
        text.append(f"{_written(layer.name, console)[:names]:>{names}} ", style="dim")
        text.append(bar[:kept], style=_STYLES.get(layer.kind, "white")).append(
            bar[kept:], style="green"
        )
        text.append(f" {layer.units:,}\n", style="bold")
    text.rstrip()
    return text


def _bar(length: float, console: Console) -> str:
    """A bar to an eighth of a letter, or to a letter where the encoding has no blocks."""
    if not _unicode(console):
        return "#" * max(1, round(length))
    whole, eighths = divmod(max(1, round(8 * length)), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def _sparkline(values: Sequence[float], width: int) -> str:
    """The last values on a logarithmic scale, at most `width` of them; a gap where one is not
    finite.
    """
    step = max(1, math.ceil(len(values) / width))
    logs = [
        math.log(v) if math.isfinite(v) and v > 0 else None
        for v in values[(len(values) - 1) % step :: step]
    ]
    known = [v for v in logs if v is not None]
    low, span = (min(known), (max(known) - min(known)) or 1.0) if known else (0.0, 1.0)
    return "".join(" " if v is None else "▁▂▃▄▅▆▇█"[round(7 * (v - low) / span)] for v in logs)


def _summary(report: Report, shown: Display) -> RenderableType:
    """The found shape, the final table and the notes."""
    console = shown.console
    parts: list[RenderableType] = [
        Text(""),
        shown.text(headline(report), "bold"),
        shown.text(origin(report), "dim"),
        Text(""),
    ]
    if report.rounds:
        parts += [_bars(report.result.shape, console, min(console.width, 80) - 2, 24), Text("")]
    if report.table:
        wide = shown.console.width >= _WIDE
        parts.append(_table(report, shown, wide))
        if not wide:
            noted = [f"{row.name}: {row.note}" for row in report.table if row.note]
            parts += [shown.text(line, "dim") for line in noted]
    for said in (course(report), matters(report)):
        parts += [Text(""), shown.text(said, "dim")] if said else []
    parts += (
        [Text(""), *(shown.text(f"note: {note}", "dim") for note in report.notes)]
        if report.notes
        else []
    )
    return Group(*parts)


def _table(report: Report, shown: Display, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    # a column of empty notes, or one too narrow to read, would only squeeze the figures
    names = header(report)
    last = len(names)
    if not wide or not any(row.note for row in report.table):
        last -= 1
    for name in names[:last]:
        words = name in ("network", "note")
        least = min(24, max(len(row.name) for row in report.table)) if name == "network" else None
        table.add_column(
            name,
            justify="left" if words else "right",
            overflow="fold" if words else "crop",
            no_wrap=not words,
            min_width=least,
        )
    for number, row in enumerate(report.table):
        table.add_row(
            *map(shown.text, format_row(report, row)[:last]),
            style="bold green" if number == 0 else "",
        )
    return table


def _unicode(console: Console) -> bool:
    return not console.options.ascii_only


def _written(text: str, console: Console) -> str:
    """`text` in letters that the console's encoding has."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
    return text
