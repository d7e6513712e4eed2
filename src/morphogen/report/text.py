"""A report as Markdown and LaTeX, and the wording that all its forms share."""

import math
import re
from collections.abc import Iterable, Sequence

from morphogen.record import Layer, Report, Row

HEADER = ("network", "test score", "parameters", "seconds", "note")


def format_score(metric: str, value: float | None) -> str:
    """Accuracy as a percentage, everything else as a number; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.2f} %" if metric == "accuracy" else f"{value:.4g}"


def format_shape(layers: Iterable[Layer]) -> str:
    """ "conv 12 – conv 24 – linear 10"."""
    return " – ".join(f"{'linear' if layer.kind == 'output' else layer.kind} {layer.units}" for layer in layers)


def format_row(metric: str, row: Row) -> tuple[str, ...]:
    """The cells of one line of the final table, in the order of HEADER."""
    parameters = "–" if row.parameters is None else f"{row.parameters:,}"
    seconds = "–" if row.seconds is None else f"{row.seconds:.1f}"
    return (row.name, format_score(metric, row.score), parameters, seconds, row.note)


def headline(report: Report) -> str:
    """The result in one sentence."""
    if not (report.rounds and report.table):
        return f"No network was found for {report.data} yet."
    row = report.table[0]
    name, score, parameters, seconds, _ = format_row(report.metric, row)
    reached = f"{report.metric} {score} with " if row.score is not None else ""
    return f"{format_shape(report.rounds[-1].shape)}: {reached}{parameters} parameters, found in {seconds} s"


def markdown(report: Report) -> str:
    """Headline, table, changes and notes."""
    cells = [HEADER, ("---",) * len(HEADER), *(format_row(report.metric, row) for row in report.table)]
    lines = [f"# {report.name}", "", headline(report), "", *("| " + " | ".join(map(_bar, row)) + " |" for row in cells)]
    if report.changes:
        lines += ["", "## Changes", "", *(f"- epoch {c.epoch:.1f}: {c}" for c in report.changes)]
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def latex(report: Report) -> str:
    """The final table, for the booktabs package."""
    rows = [" & ".join(map(_tex, cells)) + r" \\" for cells in (format_row(report.metric, row) for row in report.table)]
    return "\n".join(_table("lrrrl", " & ".join(HEADER) + r" \\", rows)) + "\n"


def _table(columns: str, head: str, rows: Sequence[str]) -> list[str]:
    return [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]


def _bar(cell: str) -> str:
    return cell.replace("|", r"\|").replace("\n", " ")


def _tex(cell: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    return re.sub(r"[\\~^–&%$#_{}]", lambda m: special.get(m[0], "\\" + m[0]), cell)
