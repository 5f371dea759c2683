"""Line charts as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from tats_fast.run_folder import is_number

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MAX_POINTS = 300
DASHES = ("", "7 3", "2 3", "8 3 2 3")  # told apart without colour too


class Chart(NamedTuple):
    """One chart: ``lines`` by label, and a ``reference`` level across them, if there is one."""

    title: str
    caption: str
    lines: dict[str, Points]
    reference: float | None = None


def series(rows: Iterable[dict[str, Any]], key: str) -> Points:
    """(step, value) of every row that has a finite number under ``key``."""
    return [(float(row["step"]), float(row[key])) for row in rows if is_number(row.get(key))]


def short(value: float) -> str:
    """A number in few characters: 0.25, 1200, 1.5e-4."""
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most ``limit`` points: means over equally many neighbours each."""
    size = max(1, math.ceil(len(points) / limit))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(sum(axis) / len(axis) for axis in zip(*g, strict=True)) for g in groups]


def chart_html(chart: Chart) -> str:
    """A ``<figure>`` with title, legend, SVG and caption; "" where no line has two points."""
    lines = {label: thin(points) for label, points in chart.lines.items() if len(points) > 1}
    if not lines:
        return ""
    legend = "".join(
        f'<span class="key c{i}"><svg viewBox="0 0 24 8" width="24" height="8" aria-hidden="true">'
        f'<path d="M0 4H24" stroke-dasharray="{DASHES[i]}"/></svg>{html.escape(label)}</span>'
        for i, label in enumerate(lines)
    )
    title, caption = html.escape(chart.title), html.escape(chart.caption)
    return (
        f'<figure class="chart"><figcaption><b>{title}</b></figcaption>'
        f'<div class="legend">{legend if len(lines) > 1 else ""}</div>'
        f"{_svg(chart, lines)}<p>{caption}</p></figure>"
    )


def _svg(chart: Chart, lines: dict[str, Points]) -> str:
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    if chart.reference is not None:
        ys.append(chart.reference)
    ticks = nice_ticks(min(ys), max(ys))
    low, high = min(ticks[0], *ys), max(ticks[-1], *ys)
    x0, x1 = min(xs), max(xs)

    def px(x: float) -> float:
        return LEFT + (x - x0) / ((x1 - x0) or 1) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        y = py(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    if chart.reference is not None:
        y = py(chart.reference)
        parts.append(f'<path class="reference" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    for anchor, x in (("start", x0), ("end", x1)):
        text = f"step {x:g}" if anchor == "end" else f"{x:g}"
        parts.append(f'<text x="{px(x):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{text}</text>')
    for i, points in enumerate(lines.values()):
        path = "M" + "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
        parts.append(f'<path class="line c{i}" stroke-dasharray="{DASHES[i]}" d="{path}"/>')
    ends = (f"{label} from {short(p[0][1])} to {short(p[-1][1])}" for label, p in lines.items())
    label = html.escape(f"{chart.title} over training steps: {'; '.join(ends)}")
    frame = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that span [low, high]; (0.13, 0.88) -> 0, 0.2, ... 1."""
    from matplotlib.ticker import MaxNLocator

    if high - low < 1e-12:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    return MaxNLocator(4, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high).tolist()
