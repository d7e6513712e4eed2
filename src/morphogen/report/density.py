"""The page of a density: what a row costs, column by column, and rows beside samples."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from morphogen.record import DensityReport, DensityTrial

_SHOWN = 12  # columns of a table of rows
_BARS = 40  # columns whose bits have a bar
_SILENT = 0.0144  # bits below which a unit says nothing: .01 nats, as in the search


def headline(report: DensityReport) -> str:
    """One sentence."""
    saved = report.independent - report.length
    return (
        f"A row costs {report.length:.2f} bits, {saved:.2f} less than columns that know nothing of "
        "each other"
    )


def density_html(report: DensityReport) -> str:
    """One page that needs nothing else."""
    css = files("morphogen.report").joinpath("page.css").read_text(encoding="utf-8")
    train, test = report.rows
    origin = (
        f"{report.found}. Learned from {train:,} rows; lengths are of {test:,} others, "
        f"± {report.error:.2f} bits by the choice of rows, ± {report.sampling:.3f} by sampling."
    )
    sections = [
        _section(
            "What each column costs",
            _bars(report),
            "bits given those before it, of what it costs alone; of a number its bin",
        ),
        _stochastic(report.stochastic),
        _section("Rows beside samples", _beside(report), "drawn from the network"),
        _section("The hardest rows", _hardest(report), "bits of each"),
        _section("The search", _trials(report), "bits a held out row, of a number its bin alone"),
        _notes(report.notes),
    ]
    facts = ", ".join(f"{key} {value}" for key, value in report.environment.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.name)}: density</title><style>{css}{_STYLE}</style></head><body>
<header><p class="eyebrow">{escape(report.name)}</p><h1>{escape(headline(report))}</h1>
<p class="origin">{escape(origin)}</p></header>
{"".join(sections)}
<footer><p class="origin">{escape(facts)}</p></footer></body></html>
"""


_STYLE = """
.scroll { overflow: auto hidden; max-height: none; }
.scroll table { border-collapse: collapse; font-size: .9rem; width: 100%; }
.scroll th, .scroll td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
.scroll th { color: var(--soft); font-weight: 500; }
.scroll th:first-child, .scroll td:first-child { text-align: left; }
.bars { display: grid; grid-template-columns: minmax(6em, 14em) 1fr 9em; gap: .35rem .8rem;
  align-items: center; font-size: .9rem; }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars i { display: block; height: .8rem; border-radius: 4px; background: var(--shade);
  position: relative; overflow: hidden; }
.bars b { position: absolute; inset: 0 auto 0 0; background: var(--conv); border-radius: 4px; }
.units { display: flex; align-items: flex-end; gap: 2px; height: 4.5rem; max-width: 60rem;
  margin-bottom: 1rem; }
.units i { flex: 1 1 0; max-width: 12px; background: var(--conv); border-radius: 2px 2px 0 0; }
.bars em { font-style: normal; color: var(--soft); text-align: right; }
"""


def _section(title: str, body: str, small: str = "") -> str:
    return f"<section><h2>{escape(title)}<small>{escape(small)}</small></h2>{body}</section>"


def _bars(report: DensityReport) -> str:
    """The whole length is what a column would cost alone, the coloured part what it costs."""
    dearest = sorted(report.columns, key=lambda column: -column[2])[:_BARS]
    most = max((max(alone, cost) for _, cost, alone in dearest), default=0) or 1
    rows = []
    for name, cost, alone in dearest:
        whole = 100 * max(alone, cost) / most
        part = 100 * cost / max(alone, cost, 1e-12)
        rows.append(
            f'<span title="{escape(name)}">{escape(name)}</span>'
            f'<i style="width:{whole:.1f}%"><b style="width:{part:.1f}%"></b></i>'
            f"<em>{cost:.2f} of {alone:.2f}</em>"
        )
    rest = len(report.columns) - len(dearest)
    more = f'<p class="origin">and {rest} more columns</p>' if rest else ""
    return f'<div class="bars">{"".join(rows)}</div>{more}'


def _stochastic(layers: Sequence[Sequence[float]]) -> str:
    """What each unit costs to send, dearest first, and whether any say nothing."""
    if not layers:
        return ""
    most = max(max(layer, default=0) for layer in layers) or 1
    parts = []
    for number, layer in enumerate(layers, 1):
        dearest = sorted(layer, reverse=True)
        columns = "".join(
            f'<i style="height:{max(2, 100 * bits / most):.0f}%" title="{bits:.3f} bits"></i>'
            for bits in dearest
        )
        name = f"Layer {number}: " if len(layers) > 1 else ""
        parts.append(
            f'<p class="origin">{name}{said_by_units(layer)}</p><div class="units">{columns}</div>'
        )
    small = "bits that each costs to send: what the row says of it"
    return _section("What the stochastic units say", "".join(parts), small)


def said_by_units(layer: Sequence[float]) -> str:
    """How many units of a layer say something of a row, and whether it has collapsed."""
    active = sum(bits > _SILENT for bits in layer)
    if not active:
        return (
            f"none of {len(layer)} says anything: the layer has collapsed, the columns explain "
            "each other without it"
        )
    silent = len(layer) - active
    rest = f"; {silent} say nothing and could leave" if silent else ""
    return f"{active} of {len(layer)} say something, {sum(layer):.2f} bits together{rest}"


def _beside(report: DensityReport) -> str:
    real = [("row", *row[:_SHOWN]) for row in report.real]
    drawn = [("sample", *row[:_SHOWN]) for row in report.samples]
    return _table(("", *report.names[:_SHOWN]), [*real, *drawn])


def _hardest(report: DensityReport) -> str:
    rows = [(f"{bits:.1f}", *row[:_SHOWN]) for bits, row in report.hardest]
    return _table(("bits", *report.names[:_SHOWN]), rows)


def _trials(report: DensityReport) -> str:
    rows = [
        (t.name, f"{t.loss:.3f}", _units(t), f"{t.parameters:,}", f"{t.seconds:.1f} s")
        for t in report.trials
    ]
    return _table(("network", "bits a row", "stochastic units", "parameters", "time"), rows)


def _units(trial: DensityTrial) -> str:
    return f"{trial.units} in {trial.layers} layers" if trial.layers > 1 else str(trial.units)


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return _section("Notes", f"<ul>{items}</ul>")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{names}</tr>{body}</table></div>'
