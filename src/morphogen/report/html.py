"""A report as one page that needs nothing else: no server, no network, no library."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from morphogen.record import Change, Report, Round
from morphogen.report.figures import figures
from morphogen.report.text import (
    PHASES,
    course,
    format_loss,
    format_row,
    format_score,
    format_seconds,
    header,
    headline,
    origin,
)

_SHOWN = 500  # positions of the slider


def html(report: Report) -> str:
    """The page: result, shape over time with a slider, curves, final table, every change and its
    reason.
    """
    parts = {
        "css": _resource("page.css"),
        "js": _resource("page.js"),
        "title": escape(f"{report.name} – morphogen"),
        "name": escape(report.name),
        # lines break after a dash only
        "headline": escape(re.sub(r" (?=[\d%–])", "\u00a0", headline(report))),
        "origin": escape(origin(report)),
        "metric": escape(report.metric),
        "data": embedded(_data(report)),
        "head": "".join(f'<th scope="col">{escape(name)}</th>' for name in header(report)),
        "rows": "".join(
            _tr(format_row(report, row), "found" if i == 0 else "")
            for i, row in enumerate(report.table)
        ),
        "course": escape(course(report)),
        **_evaluation(report),
        "changes": "".join(map(_change, report.changes)),
        "count": str(len(report.changes)),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in report.notes),
        "environment": "".join(
            f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>"
            for key, value in _environment(report).items()
        ),
    }
    # one pass, so that a {{name}} inside the data stays what it is
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _resource("page.html"))


def _evaluation(report: Report) -> dict[str, str]:
    if report.evaluation is None:
        return {"hidden": " hidden", "part": "", "figures": ""}
    part = f"{report.evaluation.rows:,} {report.evaluation.part} rows"
    return {"hidden": "", "part": part, "figures": figures(report.evaluation, report.loss)}


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _data(report: Report) -> dict[str, Any]:
    """What the script draws. Most rounds share their shape with the one before, so shapes are kept
    apart.
    """
    rounds = _thinned(report.rounds)
    shapes = list(dict.fromkeys(r.shape for r in rounds))
    index = {shape: i for i, shape in enumerate(shapes)}
    return {
        "kept": report.result.round if rounds else 0,
        "shapes": [[[layer.name, layer.kind, layer.units] for layer in shape] for shape in shapes],
        "rounds": [
            {
                "round": r.round,
                "epoch": r.epoch,
                "anneal": r.phase == "anneal",
                "phase": PHASES.get(r.phase, r.phase),
                "train": _finite(r.train_loss),
                "valid": _finite(r.valid_loss),
                "loss": format_loss(r.valid_loss),
                "score": format_score(report.metric, r.valid_score),
                "time": format_seconds(r.seconds),
                "parameters": r.parameters,
                "shape": index[r.shape],
                "depths": [
                    [depth.name, _finite(depth.w), [_finite(gate) for gate in depth.gates]]
                    for depth in r.depths
                ],
            }
            for r in rounds
        ],
        "changes": [
            [c.round, c.epoch, c.where, c.before, c.after, c.reason] for c in report.changes
        ],
    }


def _thinned(rounds: Sequence[Round]) -> Sequence[Round]:
    """At most `_SHOWN` rounds, evenly spread, with the first and the last."""
    if len(rounds) <= _SHOWN:
        return rounds
    return [rounds[i * (len(rounds) - 1) // (_SHOWN - 1)] for i in range(_SHOWN)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _environment(report: Report) -> dict[str, str]:
    return {
        "data": report.data,
        "task": report.task,
        "seed": str(report.seed),
        **report.environment,
    }


def _change(c: Change) -> str:
    kind = "grew" if c.after > c.before else "shrank" if c.after < c.before else "same"
    before, after = c.parameters
    cells = (
        f"{c.epoch:.1f}",
        c.where,
        f"{c.before} → {c.after}",
        c.reason,
        f"{before:,} → {after:,}",
    )
    button = (
        f'<button type="button" data-round="{c.round}" aria-label="show round '
        f'{c.round}">{c.round}</button>'
    )
    return f'<tr class="{kind}" data-round="{c.round}"><td>{button}</td>{_cells(cells)}</tr>'


def _tr(cells: Iterable[str], kind: str) -> str:
    return f'<tr class="{kind}">{_cells(cells)}</tr>'


def _cells(cells: Iterable[str]) -> str:
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _resource(name: str) -> str:
    return files("morphogen.report").joinpath(name).read_text(encoding="utf-8")
