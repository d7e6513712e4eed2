"""A report as one page that needs nothing else: no server, no network, no library."""

import json
import math
from dataclasses import asdict
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from morphogen.record import Report
from morphogen.report.text import HEADER, format_row, format_score, headline

_SHOWN = 400  # rounds in the slider; more are thinned, the last one stays


def html(report: Report) -> str:
    """The page: result, shape over time with a slider, curves, changes with their reasons, the final table."""
    page = Template(files("morphogen.report").joinpath("page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(f"{report.name} – morphogen"),
        name=escape(report.name),
        headline=escape(headline(report)),
        data=_embedded(_data(report)),
        head="".join(f"<th>{escape(name)}</th>" for name in HEADER),
        table="".join(_cells(format_row(report.metric, row), "found" if i == 0 else "") for i, row in enumerate(report.table)),
        changes="".join(
            _cells((f"{c.epoch:.1f}", c.where, f"{c.before} → {c.after}", c.reason, f"{c.parameters[0]:,} → {c.parameters[1]:,}"))
            for c in report.changes
        ),
        count=len(report.changes),
        notes="".join(f"<li>{escape(note)}</li>" for note in report.notes),
        environment="".join(
            f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in {"seed": str(report.seed), **report.environment}.items()
        ),
    )


def _data(report: Report) -> dict[str, Any]:
    rounds = report.rounds
    if len(rounds) > _SHOWN:
        step = len(rounds) / _SHOWN
        rounds = tuple(rounds[min(len(rounds) - 1, round((i + 1) * step) - 1)] for i in range(_SHOWN))
    return {
        "metric": report.metric,
        "rounds": [
            {**asdict(r), "shape": [asdict(layer) for layer in r.shape], "score": format_score(report.metric, r.valid_score)}
            for r in rounds
        ],
        "changes": [c.epoch for c in report.changes],
    }


def _cells(cells: tuple[str, ...], kind: str = "") -> str:
    return f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _embedded(value: Any) -> str:
    """JSON that is safe inside a script element; NaN and infinity, which JSON lacks, become null."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
