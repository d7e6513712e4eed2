"""The words and figures that all forms of a report share, and its Markdown and LaTeX."""

import math
from dataclasses import replace

import pytest

from morphogen.record import Evaluation, Importance, Layer, Report, TableRow
from morphogen.report.text import (
    course,
    format_score,
    format_seconds,
    headline,
    latex,
    markdown,
    matters,
)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 1.0, "100.00 %"),
        ("accuracy", 0.9792, "97.92 %"),
        ("RMSE", 12.34567, "12.35"),
        ("RMSE", 0.00012, "0.00012"),
        ("RMSE", None, "–"),
        ("accuracy", math.nan, "–"),
        ("RMSE", math.inf, "–"),
    ],
)
def test_scores(metric: str, value: float | None, text: str) -> None:
    assert format_score(metric, value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0.0 s"),
        (9.96, "10 s"),
        (14.2, "14 s"),
        (130, "2 min 10 s"),
        (7199.7, "2 h 0 min"),
        (11100, "3 h 5 min"),
    ],
)
def test_times(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_headline_without_a_test_part_calls_the_score_validation(report: Report) -> None:
    assert "98.09 % validation accuracy with 13,194 parameters" in headline(
        replace(report, table=())
    )
    none = replace(report, metric="RMSE", table=(TableRow("found", None, None, None),))
    assert "validation RMSE 0.9809 with" in headline(none)
    assert headline(replace(report, rounds=())) == "No network was found for digits yet."


def test_headline_of_a_deep_network_is_short(report: Report) -> None:
    deep = replace(
        report.rounds[-1], shape=(Layer("c", "conv", 8),) * 59 + (Layer("output", "output", 10),)
    )
    assert "conv 8 – conv 8 – conv 8 – … – conv 8 – linear 10 (60 layers)" in headline(
        replace(report, rounds=(deep,))
    )


def test_markdown_keeps_its_columns(report: Report, hostile: Report) -> None:
    lines = markdown(report).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 7
    assert sum(line.startswith("- epoch") for line in lines) == 25
    assert "| same shape from scratch | – | 97.78 % | 13,194 | 12.9 |  |" in table
    evil = next(line for line in markdown(hostile).splitlines() if line.startswith("| \\<"))
    assert evil.replace(r"\|", "").count("|") == 7
    assert "\\</script>\\<img" in evil


def test_latex_escapes_what_it_must(report: Report) -> None:
    row = TableRow("50% & _a_ #1 $x {y} ~ ^ \\ <b> 8 → 9 …", 0.5, 1234, 1.0, "two\nlines")
    text = latex(replace(report, table=(row,)))
    assert text.startswith(
        "\\begin{tabular}{lrrrrl}\n\\toprule\nnetwork & test log loss & test accuracy & "
        "parameters & seconds & note \\\\\n"
    )
    assert (
        r"50\% \& \_a\_ \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{}b\textgreater{}" in text
    )
    assert r"8 $\to$ 9 \ldots{} & -- & 50.00 \% & 1,234 & 1.0 & two lines \\" in text
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")


def test_a_loss_that_rose_is_said_with_what_was_done(report: Report) -> None:
    rounds = report.rounds[:3]
    losses = (0.9, 0.5, 0.9)
    rounds = tuple(replace(r, valid_loss=loss) for r, loss in zip(rounds, losses, strict=True))
    rose = replace(report, rounds=rounds, kept=1)
    said = (
        "Validation loss was least in round 1, 0.5, and rose to 0.9 by round 2: the network of "
        "round 1 was kept."
    )
    assert course(rose) == said
    assert said in markdown(rose)
    assert course(replace(rose, rounds=rounds[:2])) == ""
    # losses on smoothed labels came between, which do not compare: the last one is the least
    assert course(replace(rose, kept=2)) == ""
    assert course(replace(rose, rounds=())) == ""


def test_what_matters_is_said_where_it_is_sure(report: Report) -> None:
    rows = (Importance("age", 0.5, 0.4, 0.6), Importance("town", 0.1, -0.1, 0.3))
    said = matters(replace(report, evaluation=Evaluation("test", 9, importance=rows)))
    assert said == "Without a column log loss rises: age (+0.5, 0.4 to 0.6)."
    assert matters(report) == ""
