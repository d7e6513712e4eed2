"""A reproduction as files: JSON, Markdown, plots, and one page that needs nothing else."""

import base64
import re
from csv import writer as csv_writer
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from morphogen.record import Claim, Curve, Grid, Reproduction, Tiling, to_json, write_atomic
from morphogen.report.tiling import tiled

HEADER = ("claim", "published", "measured", "accepted", "verdict", "source")


def write(reproduction: Reproduction, folder: Path) -> None:
    """result.json, report.md, report.html, a PNG for each panel, the claims as claims.csv and
    claims.tex, and its files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {panel: plot(reproduction, panel) for panel in panels(reproduction)}
    for panel, picture in pictures.items():
        picture.savefig(folder / picture_of(panel), dpi=120)
    write_atomic(folder / "result.json", to_json(reproduction))
    write_atomic(folder / "report.md", markdown(reproduction))
    write_atomic(folder / "claims.csv", csv(reproduction))
    write_atomic(folder / "claims.tex", latex(reproduction))
    for name, content in reproduction.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, content)
    write_atomic(
        folder / "report.html",
        html(reproduction, {p: (folder / picture_of(p)).read_bytes() for p in pictures}),
    )


def picture_of(panel: str) -> str:
    """The file of a plot: a name without spaces, which Markdown links would end at."""
    return f"{re.sub(r'[^a-z0-9]+', '-', panel.lower()).strip('-')}.png"


def panels(reproduction: Reproduction) -> tuple[str, ...]:
    """The names of the plots, in order."""
    drawn: tuple[Curve | Grid | Tiling, ...] = (
        *reproduction.curves,
        *reproduction.grids,
        *reproduction.tilings,
    )
    return tuple(dict.fromkeys(one.panel for one in drawn))


def plot(reproduction: Reproduction, panel: str) -> Figure:
    """One panel."""
    tiling = next((tiling for tiling in reproduction.tilings if tiling.panel == panel), None)
    if tiling is not None:
        return tiled(tiling, reproduction.axes.get(panel, ("", "")))
    grid = next((grid for grid in reproduction.grids if grid.panel == panel), None)
    return lines(reproduction, panel) if grid is None else cells_of(reproduction, grid)


def cells_of(reproduction: Reproduction, grid: Grid) -> Figure:
    """A grid, as colours."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(
        axes.imshow(grid.values, aspect="auto", cmap="viridis", interpolation="nearest")
    )
    x, y = reproduction.axes.get(grid.panel, ("", ""))
    axes.set(xlabel=x, ylabel=y, title=f"{reproduction.title}: {grid.panel}")
    return figure


def lines(reproduction: Reproduction, panel: str) -> Figure:
    """Curves. A published curve, "published NAME", is dashed, in the colour of the curve whose name
    ends in NAME.
    """
    many = sum(curve.panel == panel for curve in reproduction.curves) > 10
    figure = Figure(figsize=(7, 6 if many else 4.2), layout="constrained")
    axes = figure.subplots()
    if many:
        axes.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
    colours: dict[str, Any] = {}
    for curve in (curve for curve in reproduction.curves if curve.panel == panel):
        published = curve.name.startswith("published ")
        alike = [
            c
            for name, c in colours.items()
            if published and name.endswith(curve.name.removeprefix("published "))
        ]
        style = "--" if published else "-"
        colour = alike[0] if alike else None
        (line,) = axes.plot(curve.x, curve.y, style, label=curve.name, linewidth=1.4, color=colour)
        colours.setdefault(curve.name, line.get_color())
    x, y = reproduction.axes.get(panel, ("", ""))
    axes.set(xlabel=x, ylabel=y, title=reproduction.title)
    values = [value for curve in reproduction.curves if curve.panel == panel for value in curve.y]
    if min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if many:
        figure.legend(fontsize=8, ncols=3, loc="outside lower center")
    else:
        axes.legend(fontsize=8, ncols=2)
    return figure


def cells(claim: Claim) -> tuple[str, ...]:
    """A line of the claims table, in the order of `HEADER`."""
    spread = "" if claim.spread is None else f" \u00b1 {claim.spread:.3g}"
    low, high = ("" if bound is None else f"{bound:.3g}" for bound in (claim.low, claim.high))
    accepted = (
        f"{low} to {high}"
        if low and high
        else f"at least {low}"
        if low
        else f"at most {high}"
        if high
        else "\u2013"
    )
    target = "\u2013" if claim.target is None else f"{claim.target:.4g}"
    return (
        claim.name,
        target,
        f"{claim.measured:.4g}{spread}",
        accepted,
        claim.verdict,
        claim.source,
    )


def summary(reproduction: Reproduction) -> str:
    """The verdicts in one sentence."""
    verdicts = [claim.verdict for claim in reproduction.claims]
    met = verdicts.count("met")
    judged = verdicts.count("met") + verdicts.count("missed")
    return f"{met} of {judged} claims met, {reproduction.mode} mode, {reproduction.seconds:.0f} s"


def markdown(reproduction: Reproduction) -> str:
    """Title, claims, notes, settings."""
    lines = [f"# {reproduction.title}", "", f"{reproduction.source}. {summary(reproduction)}.", ""]
    lines += [f"| {' | '.join(HEADER)} |", "|---|--:|--:|--:|---|---|"]
    lines += [
        f"| {' | '.join(cell.replace('|', '/') for cell in cells(claim))} |"
        for claim in reproduction.claims
    ]
    lines += ["", *(f"![{panel}]({picture_of(panel)})" for panel in panels(reproduction)), ""]
    lines += [f"- {note}" for note in reproduction.notes]
    about = {**reproduction.settings, **reproduction.environment}
    return "\n".join(
        [*lines, "", f"*{', '.join(f'{key} {value}' for key, value in about.items())}*", ""]
    )


def csv(reproduction: Reproduction) -> str:
    """The claims, every digit of them: name, target, measured, spread, low, high, verdict,
    source.
    """
    out = StringIO()
    writer = csv_writer(out, lineterminator="\n")
    writer.writerow(
        ("claim", "published", "measured", "spread", "low", "high", "verdict", "source")
    )
    for c in reproduction.claims:
        writer.writerow(
            (c.name, c.target, c.measured, c.spread, c.low, c.high, c.verdict, c.source)
        )
    return out.getvalue()


def latex(reproduction: Reproduction) -> str:
    """The claims as a tabular: claim, published, measured."""
    rows = [
        " & ".join(cell.translate(_TEX) for cell in cells(claim)[:3]) + r" \\"
        for claim in reproduction.claims
    ]
    head = [r"\begin{tabular}{lrr}", r"\hline", " & ".join(HEADER[:3]) + r" \\", r"\hline"]
    return "\n".join(
        [
            f"% {reproduction.title}, {reproduction.mode}",
            *head,
            *rows,
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\u00b1": r"$\pm$",
        "\u221a": r"$\surd$",
        "\u2013": "--",
    }
)


def html(reproduction: Reproduction, pictures: dict[str, bytes]) -> str:
    """The same as one page, the plots inside it."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADER)
    rows = "".join(
        f'<tr class="{claim.verdict}">{"".join(f"<td>{escape(cell)}</td>" for cell in cells(claim))}</tr>'
        for claim in reproduction.claims
    )
    images = "".join(map(_image, pictures.items()))
    notes = "".join(f"<li>{escape(note)}</li>" for note in reproduction.notes)
    about = "".join(map(_entry, {**reproduction.settings, **reproduction.environment}.items()))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(reproduction.title)}</title><style>{_CSS}</style>
<h1>{escape(reproduction.title)}</h1><p>{escape(reproduction.source)}. <strong>{escape(summary(reproduction))}.</strong></p>
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{images}<ul>{notes}</ul><dl>{about}</dl></html>
"""


def _image(picture: tuple[str, bytes]) -> str:
    return (
        f'<img alt="{escape(picture[0])}" '
        f'src="data:image/png;base64,{base64.b64encode(picture[1]).decode()}">'
    )


def _entry(item: tuple[str, str]) -> str:
    return f"<div><dt>{escape(item[0])}</dt><dd>{escape(item[1])}</dd></div>"


_CSS = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c1e21;background:#fff}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:left}
tr.met td:nth-child(5){color:#176b34}tr.missed td:nth-child(5){color:#a4262c;font-weight:600}
img{max-width:100%;margin-top:1.5rem}
dl{display:flex;flex-wrap:wrap;gap:.4rem 1.4rem;font-size:.85rem;color:#555}dt{font-weight:600}dd{margin:0}
"""
