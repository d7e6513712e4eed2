"""The three displays on terminals and streams of every kind."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from morphogen.record import Layer, Report
from morphogen.report.live import Lines, Panel, Silent, display


def play(console: Console, report: Report, quiet: bool = False, metric: str | None = None) -> None:
    with display(quiet, console, metric) as shown:
        shown.say("held out – for decisions [bold]")
        for r in report.rounds:
            for c in report.changes:
                if c.round == r.round:
                    shown.change(c)
            shown.round(r, None if r.phase == "grow" else 3.0)
            if isinstance(shown, Panel):
                shown.live.refresh()
        shown.finish(report)
        shown.say("written")


def terminal(width: int, encoding: str = "utf-8", height: int = 30) -> tuple[io.BytesIO, Console]:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True)
    return raw, Console(
        file=stream, width=width, height=height, force_terminal=True, _environ={"TERM": "xterm"}
    )


def test_the_display_fits_the_output() -> None:
    assert type(display(True, Console(force_terminal=True))) is Silent
    assert type(display(False, Console(force_terminal=True, _environ={"TERM": "xterm"}))) is Panel
    assert type(display(False, Console(force_terminal=True, _environ={"TERM": "dumb"}))) is Lines
    assert type(display(False, Console(file=io.StringIO()))) is Lines


def test_lines_are_plain_and_tell_the_whole_story(report: Report) -> None:
    out = io.StringIO()
    play(Console(file=out, width=100), report, metric="accuracy")
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    for change in report.changes:
        assert f"  epoch {change.epoch:.1f}  {change}" in lines
    assert sum(line.startswith("epoch") for line in lines) <= 7
    assert any("annealing" in line and line.endswith("about 3.0 s left") for line in lines)
    assert "held out – for decisions [bold]" in lines
    assert any(line.startswith("Found conv 16") for line in lines)
    for row in report.table:
        assert any(line.startswith(row.name) for line in lines)
    assert any(line.startswith("note: 1,437 rows") for line in lines)


def test_lines_of_a_long_run_grow_rare(report: Report) -> None:
    out = io.StringIO()
    shown = Lines(Console(file=out, width=100))
    for second in range(10_000):
        shown.round(replace(report.rounds[3], seconds=float(second)), None)
    assert 50 < len(out.getvalue().splitlines()) < 200


def test_quiet_is_silent(report: Report) -> None:
    raw, console = terminal(80)
    play(console, report, quiet=True)
    assert raw.getvalue() == b""


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_the_panel_fits_any_width_and_encoding(
    report: Report, hostile: Report, width: int, encoding: str
) -> None:
    for value in (report, hostile):
        raw, console = terminal(width, encoding)
        play(console, value, metric=value.metric)
        text = raw.getvalue().decode(encoding)
        assert ("█" if encoding == "utf-8" else "#") in text
        assert "hidden" in text


def test_no_color_is_respected(report: Report) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    play(
        Console(
            file=stream, width=80, force_terminal=True, _environ={"NO_COLOR": "1", "TERM": "xterm"}
        ),
        report,
    )
    assert not any(f"\x1b[{code}m".encode() in raw.getvalue() for code in (32, 33, 36))


def test_many_layers_fit_the_height(report: Report) -> None:
    shape = tuple(Layer(f"block.{i}", "conv", 8 + i) for i in range(60))
    raw, console = terminal(80, height=24)
    with Panel(console) as shown:
        shown.round(replace(report.rounds[3], shape=shape), 12.0)
        shown.live.refresh()
    text = raw.getvalue().decode()
    assert "more layers" in text
    assert "block.59" in text
    assert "about 12 s left" in text


def test_an_error_ends_the_panel(report: Report) -> None:
    _, console = terminal(80)
    shown = Panel(console)

    def fail() -> None:
        with shown:
            shown.round(report.rounds[0], None)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not shown.live.is_started
