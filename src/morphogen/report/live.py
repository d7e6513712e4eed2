"""Progress in a terminal: a live panel, plain lines where the output is no terminal, or nothing."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from morphogen.record import Change, Layer, Report, Round
from morphogen.report.text import HEADER, format_row, format_score, headline


class Silent:
    """Shows nothing, and is what the other displays do where they do nothing special."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def round(self, r: Round, time_left: float | None) -> None:
        """A round ended; time_left in seconds, None while nobody knows."""

    def change(self, c: Change) -> None:
        """The structure changed."""

    def say(self, text: str) -> None:
        """Something that the user should know."""

    def finish(self, report: Report) -> None:
        """The run ended."""


class Lines(Silent):
    """One line a change, and one line every `every` seconds of training."""

    def __init__(self, console: Console, every: float = 5.0) -> None:
        super().__init__(console)
        self.every, self.last = every, -every

    def round(self, r: Round, time_left: float | None) -> None:
        if r.seconds - self.last >= self.every:
            self.last = r.seconds
            self._line(_status(r, time_left))

    def change(self, c: Change) -> None:
        self._line(f"  epoch {c.epoch:.1f}  {c}")

    def say(self, text: str) -> None:
        self._line(text)

    def finish(self, report: Report) -> None:
        self.console.print(_summary(report))

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Panel(Silent):
    """Status and the current shape as bars, redrawn in place; changes scroll by above."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.live.stop()

    def round(self, r: Round, time_left: float | None) -> None:
        self.live.update(Group(Text(_status(r, time_left), style="bold"), _bars(r.shape, self.console)))

    def change(self, c: Change) -> None:
        style = "green" if c.after > c.before else "yellow"
        line = Text(f"  epoch {c.epoch:5.1f}  ", style="dim")
        line.append(f"{c.where} {c.before} -> {c.after}", style=style).append(f": {c.reason}")
        self.console.print(line)

    def say(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))

    def finish(self, report: Report) -> None:
        self.live.update(Text(""))
        if report.rounds:
            self.console.print(Padding(_bars(report.rounds[-1].shape, self.console), (1, 0, 0, 0)))
        self.console.print(_summary(report))


def display(quiet: bool, console: Console | None = None) -> Silent:
    """The display for this output."""
    console = console or Console(highlight=False)
    if quiet:
        return Silent(console)
    return Panel(console) if console.is_terminal else Lines(console)


def _status(r: Round, time_left: float | None) -> str:
    metric, left = f"validation loss {r.valid_loss:.4f}, score {r.valid_score:.4f}", ""
    if time_left is not None:
        left = f", {time_left:.0f} s left"
    phase = {"grow": "growing", "settle": "settling"}.get(r.phase, r.phase)
    return f"epoch {r.epoch:.1f} {phase}: loss {r.train_loss:.4f}, {metric}, {r.parameters:,} parameters, {r.seconds:.0f} s{left}"


def _bars(shape: tuple[Layer, ...], console: Console) -> RenderableType:
    """One bar a layer, as long as its units beside the largest layer's."""
    utf8 = (console.encoding or "").lower().startswith("utf")
    block, most = "█" if utf8 else "#", max((layer.units for layer in shape), default=1)
    names = max((len(layer.name) for layer in shape), default=0)
    room = max(4, min(60, console.width - names - 10))
    lines = Text()
    for layer in shape:
        length = max(1, round(room * layer.units / most))
        style = {"conv": "cyan", "linear": "blue"}.get(layer.kind, "magenta")
        lines.append(f"  {layer.name:<{names}} ").append(block * length, style=style).append(f" {layer.units}\n")
    return lines


def _summary(report: Report) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("network", "note") else "right", overflow="fold")
    for number, row in enumerate(report.table):
        table.add_row(*map(Text, format_row(report.metric, row)), style="bold green" if number == 0 else "")
    last = report.rounds[-1] if report.rounds else None
    valid = f" (validation {report.metric} {format_score(report.metric, last.valid_score)})" if last else ""
    return Group(Text(f"found {headline(report)}{valid}"), Text(""), table)
