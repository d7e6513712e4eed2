"""Text forms and the terminal displays."""

import io
import math

import pytest
from rich.console import Console
from test_page import report

from morphogen.record import Report, from_json, to_json
from morphogen.report import display, format_score, format_shape, latex, markdown


def test_scores_and_shapes() -> None:
    assert format_score("accuracy", 0.97891) == "97.89 %"
    assert format_score("RMSE", 0.503219) == "0.5032"
    assert format_score("RMSE", None) == format_score("accuracy", math.nan) == "–"
    assert format_shape(report().rounds[0].shape) == "conv 8 – linear 10"


def test_markdown_and_latex() -> None:
    text = markdown(report())
    assert "| found by morphogen | 97.90 % | 4,812 | 14.2 |  |" in text
    assert "- epoch 1.5: conv1 8 -> 12: validation loss -0.013" in text
    table = latex(report(name="a_b"))
    assert r"found by morphogen & 97.90 \% & 4,812 & 14.2 &  \\" in table
    assert table.count(r"\\") == 3


def test_a_report_survives_json() -> None:
    value = report()
    back = from_json(Report, to_json(value))
    assert to_json(back) == to_json(value)
    assert back.rounds[3] == value.rounds[3]


def run(console: Console, quiet: bool = False) -> None:
    value = report()
    with display(quiet, console) as shown:
        shown.say("a note [not markup]")
        for r in value.rounds:
            shown.change(value.changes[0])
            shown.round(r, 3.0)
        shown.finish(value)


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    run(Console(file=out, width=100))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "conv1 8 -> 12: validation loss -0.013" in text
    assert "[not markup]" in text
    assert "97.90 %" in text
    assert 2 <= sum(line.startswith("epoch") for line in text.splitlines()) <= 5


def test_quiet_prints_nothing() -> None:
    out = io.StringIO()
    run(Console(file=out), quiet=True)
    assert out.getvalue() == ""


@pytest.mark.parametrize("width", [40, 120])
def test_the_live_panel_fits_the_terminal(width: int) -> None:
    out = io.StringIO()
    run(Console(file=out, width=width, force_terminal=True, color_system=None))
    assert "conv1" in out.getvalue()
    assert "19" in out.getvalue()


def test_a_stream_without_unicode_is_no_fault() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    run(Console(file=stream, width=80, force_terminal=True))
    stream.flush()
    assert b"#" in raw.getvalue()
