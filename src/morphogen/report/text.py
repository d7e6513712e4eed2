"""A report as Markdown and LaTeX, and the wording that all its forms share."""

import math
import re
from collections.abc import Sequence

from morphogen.record import Layer, Report, TableRow

NONE = "–"
PHASES = {"grow": "growing", "anneal": "annealing"}
_PERCENT = {"accuracy", "balanced accuracy"}
_ROSE = 0.01  # share by which a loss must rise to be spoken of
_LONG = 10  # layers; a sentence that names more of them is not read


def format_score(metric: str, value: float | None) -> str:
    """Accuracies as a percentage, everything else as a number; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{100 * value:.2f} %" if metric in _PERCENT else f"{value:.4g}"


def format_loss(value: float) -> str:
    """Four digits that matter; a dash for NaN and infinity."""
    return f"{value:.4g}" if math.isfinite(value) else NONE


def format_shape(layers: Sequence[Layer]) -> str:
    """ "conv 12 – conv 24 – linear 10"."""
    return " – ".join(
        f"{'linear' if layer.kind == 'output' else layer.kind} {layer.units}" for layer in layers
    )


def format_seconds(seconds: float | None) -> str:
    """ "4.2 s", "14 s", "2 min 10 s", "3 h 5 min"."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def header(report: Report) -> tuple[str, ...]:
    """The column names of the final table: the loss, and the metric where it is another figure."""
    figures = dict.fromkeys((f"test {report.loss}", f"test {report.metric}"))
    return ("network", *figures, "parameters", "seconds", "note")


def format_row(report: Report, row: TableRow) -> tuple[str, ...]:
    """The cells of one line of the final table, in the order of `header`."""
    loss = format_score(report.loss, row.loss)
    score = format_score(report.metric, row.score)
    figures = (score,) if report.metric == report.loss else (loss, score)
    parameters = NONE if row.parameters is None else f"{row.parameters:,}"
    seconds = NONE if row.seconds is None else f"{row.seconds:.1f}"
    return (row.name, *figures, parameters, seconds, row.note)


def headline(report: Report) -> str:
    """The result in one sentence. Without a test part the validation score stands in, and is called
    so.
    """
    if not report.rounds:
        return f"No network was found for {report.data} yet."
    last = report.result
    row = report.table[0] if report.table else TableRow("", None, None, None)
    score, part = (last.valid_score, "validation ") if row.score is None else (row.score, "")
    value = format_score(report.metric, score)
    reached = (
        f"{value} {part}{report.metric}"
        if report.metric in _PERCENT
        else f"{part}{report.metric} {value}"
    )
    if report.metric != report.loss and row.loss is not None:
        reached += f", {report.loss} {format_score(report.loss, row.loss)},"
    parameters = last.parameters if row.parameters is None else row.parameters
    seconds = format_seconds(last.seconds if row.seconds is None else row.seconds)
    return (
        f"Found {_brief(last.shape)}: {reached} with {_count(parameters, 'parameter')} in {seconds}"
    )


def origin(report: Report) -> str:
    """Where the search came from, in one sentence."""
    if not report.rounds:
        return ""
    first = report.rounds[0]
    changes = _count(len(report.changes), "change")
    rounds = _count(report.rounds[-1].round, "round")
    return (
        f"Grown from {_brief(first.shape)} with {_count(first.parameters, 'parameter')} by "
        f"{changes} in {rounds}."
    )


def course(report: Report) -> str:
    """Where the validation loss rose during the run, and what was done about it; "" where it did
    not.
    """
    if not report.rounds:
        return ""
    best = report.result
    last = report.rounds[-1]
    if not last.valid_loss > best.valid_loss * (1 + _ROSE):
        return ""
    return (
        f"Validation loss was least in round {best.round}, {format_loss(best.valid_loss)}, and "
        f"rose to {format_loss(last.valid_loss)} by round {last.round}: the network of round "
        f"{best.round} was kept."
    )


def matters(report: Report) -> str:
    """The columns that the network relies on most, in one sentence; "" where none is known."""
    measured = report.evaluation.importance if report.evaluation else ()
    rows = [row for row in measured[:3] if row.low > 0]
    if not rows:
        return ""
    said = ", ".join(
        f"{row.column} (+{row.rise:.2g}, {row.low:.2g} to {row.high:.2g})" for row in rows
    )
    return f"Without a column {report.loss} rises: {said}."


def markdown(report: Report) -> str:
    """The result, the final table, every change and the notes."""
    names = header(report)
    figures = len(names) - 2
    table = [
        names,
        ("---", *["--:"] * figures, "---"),
        *(map(_md, format_row(report, row)) for row in report.table),
    ]
    lines = [f"# {_md(report.name)}", "", _md(headline(report)), ""]
    if report.rounds:
        lines += [
            _md(origin(report)),
            "",
            f"**Shape:** {_md(format_shape(report.result.shape))}",
            "",
        ]
    lines += ["| " + " | ".join(cells) + " |" for cells in table]
    lines += [
        line for said in (course(report), matters(report)) if said for line in ("", _md(said))
    ]
    if report.changes:
        lines += [
            "",
            "## Changes",
            "",
            *(f"- epoch {c.epoch:.1f}: {_md(str(c))}" for c in report.changes),
        ]
    if report.notes:
        lines += ["", "## Notes", "", *(f"- {_md(note)}" for note in report.notes)]
    about = [f"{key} {value}" for key, value in {"seed": report.seed, **report.environment}.items()]
    return "\n".join([*lines, "", f"*{_md(', '.join(about))}*", ""])


def latex(report: Report) -> str:
    """The final table, for the booktabs package."""
    rows = [
        list(map(_tex, cells))
        for cells in (header(report), *(format_row(report, row) for row in report.table))
    ]
    head, *body = (" & ".join(cells) + r" \\" for cells in rows)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 2)}l}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _brief(layers: Sequence[Layer]) -> str:
    if len(layers) <= _LONG:
        return format_shape(layers)
    return f"{format_shape(layers[:3])} – … – {format_shape(layers[-2:])} ({len(layers)} layers)"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _md(text: str) -> str:
    return re.sub(r"([\\|<*`\[])", r"\\\1", " ".join(text.split()))


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "→": r"$\to$",
    "×": r"$\times$",
    "…": r"\ldots{}",
}


def _tex(text: str) -> str:
    return re.sub(
        r"[\\~^<>|–−→×…&%$#_{}]", lambda m: _TEX.get(m[0], "\\" + m[0]), " ".join(text.split())
    )
