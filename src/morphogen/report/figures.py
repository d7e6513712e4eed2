"""What an `Evaluation` looks like: pictures in SVG without a script, in the page's own colours."""

from collections.abc import Iterable, Sequence
from html import escape

from morphogen.record import Evaluation, Importance, Line
from morphogen.report.text import format_loss

SIDE = 300  # of a square picture, in pixels
_LEFT = 46
_TOP = 10
_BOTTOM = 38
_COLOURS = 5  # of curves; more are told apart by their legend alone
_BARS = 20  # columns


def figures(evaluation: Evaluation, loss: str) -> str:
    """All that there are, as HTML."""
    parts = [
        _figure("Confusion: rows of a true class, by what was said", _confusion(evaluation)),
        _figure(_reliability_title(evaluation), _reliability(evaluation)),
        _figure(
            "ROC: true positives over false positives, and the area under it",
            _curves(evaluation.roc, True),
        ),
        _figure(
            "Precision over recall, and its average", _curves(evaluation.precision_recall, False)
        ),
        _figure("Residuals: true value less prediction", _residuals(evaluation.residuals)),
    ]
    wide = _figure(
        f"Permutation importance: by how much {loss} rises when a column is shuffled, with 95 % "
        "intervals",
        _importance(evaluation.importance),
        "wide",
    )
    return "".join([*parts, wide])


def _figure(title: str, content: str, kind: str = "") -> str:
    if not content:
        return ""
    return f'<figure class="{kind}"><figcaption>{escape(title)}</figcaption>{content}</figure>'


def _svg(width: float, height: float, parts: Iterable[str], label: str) -> str:
    return (
        f'<svg class="still" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _short(name: str, most: int = 12) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


# Confusion ---------------------------------------------------------------------------------------


def _confusion(evaluation: Evaluation) -> str:
    """A square a pair of classes, darker the larger its share of the true class."""
    names = evaluation.classes
    if not evaluation.confusion:
        return ""
    left = 92
    cell = (SIDE - left - 6) / len(names)
    parts = []
    for i, row in enumerate(evaluation.confusion):
        total = max(1, sum(row))
        y = _TOP + i * cell
        parts.append(_text(left - 6, y + cell / 2 + 4, _short(names[i]), "end"))
        for j, count in enumerate(row):
            parts.append(_cell(left + j * cell, y, cell, count, count / total, i == j))
    bottom = _TOP + len(names) * cell
    for j, name in enumerate(names):
        x = left + (j + 0.5) * cell
        turn = f'transform="rotate(-40 {x:.1f} {bottom + 14:.1f})"' if len(names) > 3 else ""
        anchor = "end" if turn else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 14:.1f}" text-anchor="{anchor}" {turn}>'
            f"{escape(_short(name))}</text>"
        )
    height = bottom + (62 if len(names) > 3 else 22)
    right = sum(row[i] for i, row in enumerate(evaluation.confusion))
    return _svg(SIDE, height, parts, f"Confusion matrix: {right} of {evaluation.rows} rows right")


def _cell(x: float, y: float, size: float, count: int, share: float, right: bool) -> str:
    kind = "right" if right else "wrong"
    box = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{size - 1:.1f}" height="{size - 1:.1f}" '
        f'class="{kind}" style="--share:{share:.3f}"><title>{count:,} rows, {100 * share:.1f} %'
        "</title></rect>"
    )
    # a number that does not fit is in the title alone
    fits = len(f"{count:,}") * 6.5 < size and size > 13
    number = _text(x + size / 2, y + size / 2 + 4, f"{count:,}", kind="count") if fits else ""
    return box + number


# Curves ------------------------------------------------------------------------------------------


def _plot(
    parts: Iterable[str], x_label: str, x: tuple[float, float], y: tuple[float, float], label: str
) -> str:
    """Axes with five ticks each around parts that `_at` has placed."""
    frame = []
    for step in range(6):
        share = step / 5
        across, up = _at(share, share)
        frame += [
            _line(_LEFT, up, SIDE - 8, up, "grid"),
            _text(_LEFT - 6, up + 4, format_loss(y[0] + share * (y[1] - y[0])), "end"),
            _text(across, SIDE - _BOTTOM + 16, format_loss(x[0] + share * (x[1] - x[0]))),
        ]
    frame.append(_text((_LEFT + SIDE) / 2, SIDE - 4, x_label))
    return _svg(SIDE, SIDE, [*frame, *parts], label)


def _at(x: float, y: float) -> tuple[float, float]:
    """Where shares of the axes lie in a square picture."""
    across = _LEFT + x * (SIDE - 8 - _LEFT)
    up = SIDE - _BOTTOM - y * (SIDE - _BOTTOM - _TOP)
    return across, up


def _path(points: Sequence[tuple[float, float]], colour: int) -> str:
    places = [_at(x, y) for x, y in points]
    steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="curve" points="{steps}" stroke="var(--stage{colour % _COLOURS})"/>'


def _curves(lines: Sequence[Line], chance: bool) -> str:
    """With the area under each in a legend. chance: the diagonal is what guessing reaches."""
    if not lines:
        return ""
    parts = [_line(*_at(0, 0), *_at(1, 1), "cross")] if chance else []
    parts += [_path(line.points, number) for number, line in enumerate(lines)]
    x_label = "false positive rate" if chance else "recall"
    said = ", ".join(f"{line.name} {line.area:.3f}" for line in lines)
    keys = "".join(
        f'<span><span class="key line" style="background: var(--stage{number % _COLOURS})"></span>'
        f"{escape(_short(line.name, 24))} <b>{line.area:.3f}</b></span>"
        for number, line in enumerate(lines)
    )
    plot = _plot(parts, x_label, (0.0, 1.0), (0.0, 1.0), f"Areas: {said}")
    return f'{plot}<p class="legend">{keys}</p>'


def _reliability_title(evaluation: Evaluation) -> str:
    if len(evaluation.classes) == 2:
        return f"Reliability: how often it is {evaluation.classes[1]!r} where it was said to be"
    return "Reliability: how often the likeliest class is right"


def _reliability(evaluation: Evaluation) -> str:
    """A dot a bin of probabilities, larger the more rows are in it; right ones lie on the
    diagonal.
    """
    bins = evaluation.reliability
    if not bins:
        return ""
    parts = [_line(*_at(0, 0), *_at(1, 1), "cross")]
    parts.append(_path([(b.said, b.true) for b in bins], 0))
    largest = max(b.rows for b in bins)
    for b in bins:
        x, y = _at(b.said, b.true)
        radius = 2 + 6 * (b.rows / largest) ** 0.5
        parts.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="var(--stage0)">'
            f"<title>said {b.said:.3f}, true {b.true:.3f}, {b.rows:,} rows</title></circle>"
        )
    off = sum(b.rows * abs(b.said - b.true) for b in bins) / sum(b.rows for b in bins)
    plot = _plot(parts, "said probability", (0.0, 1.0), (0.0, 1.0), f"Off by {off:.3f} on average")
    return f'{plot}<p class="legend">off by <b>{off:.3f}</b> on average</p>'


# Numbers -----------------------------------------------------------------------------------------


def _residuals(points: Sequence[tuple[float, float]]) -> str:
    if not points:
        return ""
    said, off = zip(*points, strict=True)
    low, high = min(said), max(said)
    room = max(map(abs, off)) or 1.0
    width = (high - low) or 1.0
    x, y = _at(0, 0.5)
    parts = [_line(x, y, SIDE - 8, y, "cross")]
    for prediction, residual in points:
        x, y = _at((prediction - low) / width, 0.5 + residual / room / 2)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" class="point"/>')
    return _plot(parts, "prediction", (low, high), (-room, room), "Residuals against predictions")


# Columns -----------------------------------------------------------------------------------------


def _importance(rows: Sequence[Importance]) -> str:
    """A bar a column, with its interval as a line."""
    shown = rows[:_BARS]
    if not shown:
        return ""
    left, width, step = 140, 520, 24
    low = min(0.0, *(row.low for row in shown))
    high = max(row.high for row in shown) or 1.0
    scale = (width - left - 70) / max(high - low, 1e-12)
    zero = left - low * scale
    parts = [_line(zero, 0, zero, len(shown) * step, "grid")]
    for number, row in enumerate(shown):
        y = number * step + step / 2
        end = zero + row.rise * scale
        parts += [
            _text(left - 8, y + 4, _short(row.column, 20), "end", "name"),
            f'<rect x="{min(zero, end):.1f}" y="{y - 7:.1f}" width="{abs(end - zero):.1f}" '
            f'height="14" rx="2" class="bar-still"/>',
            _line(zero + row.low * scale, y, zero + row.high * scale, y, "whisker"),
            _text(width - 4, y + 4, f"{row.rise:+.3g}", "end"),
        ]
    label = f"The loss rises most without {shown[0].column}"
    more = f'<p class="legend">and {len(rows) - _BARS} more columns</p>' if rows[_BARS:] else ""
    return _svg(width, len(shown) * step, parts, label) + more
