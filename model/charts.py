"""Line charts as SVG text, readable without a script; page/report.js adds the values under the pointer."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 36
POINTS = 400  # of a line; more are averaged in groups
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#718096", "#b7791f")


@dataclass(frozen=True)
class Line:
    """A name for the legend, and its points; None is a gap. thin: drawn faint, behind the others."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: str = COLOURS[0]
    thin: bool = False


def chart(title: str, lines: Sequence[Line], x_name: str, y_name: str, *, level: tuple[float, str] | None = None, top: float | None = None) -> str:
    """A figure: title, SVG, and a legend where there are several lines. level: a height with its words, such as that of chance."""
    drawn = [_averaged(line) for line in lines if any(_finite(y) for y in line.y)]
    if not drawn:
        return f"<figure><figcaption>{html.escape(title)}</figcaption><p class='none'>nothing yet</p></figure>"
    heights = [y for line in drawn for y in line.y if y is not None] + ([level[0]] if level else [])
    x_ticks = ticks(min(min(line.x) for line in drawn), max(max(line.x) for line in drawn))
    y_ticks = ticks(0.0, top if top is not None else max(heights))
    place = _Place(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    parts = [*_axes(place, x_ticks, y_ticks, x_name, y_name)]
    if level is not None:
        y = place.y(level[0])
        parts.append(f"<line class='level' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text class='level' x='{WIDTH - RIGHT}' y='{y - 4:.1f}' text-anchor='end'>{html.escape(level[1])}</text>")
    parts += [_path(place, line) for line in sorted(drawn, key=lambda line: not line.thin)]
    legend = ""
    if len(drawn) > 1:
        entries = "".join(f"<li><i style='background:{line.colour}'></i>{html.escape(line.name)}</li>" for line in drawn)
        legend = f"<ul class='legend'>{entries}</ul>"
    data = {"x0": place.x0, "x1": place.x1, "left": LEFT, "right": RIGHT, "width": WIDTH, "x": x_name, "y": y_name}
    data |= {"lines": [{"name": line.name, "x": list(line.x), "y": list(line.y)} for line in drawn]}
    name, words = html.escape(title), html.escape(f"{title}: {y_name} by {x_name}")
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{words}'><title>{words}</title>{''.join(parts)}</svg>"
    values = html.escape(json.dumps(data), quote=True)
    return f"<figure class='chart' data-chart='{values}'><figcaption>{name}</figcaption>{svg}{legend}</figure>"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, some `about` of them."""
    if not high > low:
        high = low + 1
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Place:
    """From values to places in the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        inside = min(max(value, self.y0), self.y1)
        return HEIGHT - BOTTOM - (inside - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _axes(place: _Place, x_ticks: list[float], y_ticks: list[float], x_name: str, y_name: str) -> list[str]:
    parts = []
    for value in y_ticks:
        y = place.y(value)
        parts.append(f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{value:,g}</text>")
    for value in x_ticks:
        parts.append(f"<text x='{place.x(value):.1f}' y='{HEIGHT - BOTTOM + 15}' text-anchor='middle'>{value:,g}</text>")
    parts.append(f"<text class='name' x='{WIDTH - RIGHT}' y='{HEIGHT - 4}' text-anchor='end'>{html.escape(x_name)}</text>")
    parts.append(f"<text class='name' x='{LEFT}' y='{TOP - 3}'>{html.escape(y_name)}</text>")
    return parts


def _path(place: _Place, line: Line) -> str:
    words, pen_down = [], False
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not math.isfinite(y):
            pen_down = False
            continue
        words.append(f"{'L' if pen_down else 'M'}{place.x(x):.1f} {place.y(y):.1f}")
        pen_down = True
    dots = ""
    if len(line.x) <= 30:
        dots = "".join(
            f"<circle cx='{place.x(x):.1f}' cy='{place.y(y):.1f}' r='2.5' fill='{line.colour}'/>"
            for x, y in zip(line.x, line.y, strict=True)
            if y is not None and math.isfinite(y)
        )
    return f"<path d='{' '.join(words)}' stroke='{line.colour}'{' class=thin' if line.thin else ''}/>{dots}"


def _averaged(line: Line) -> Line:
    size = -(-len(line.x) // POINTS)
    if size <= 1:
        return Line(line.name, list(line.x), [y if _finite(y) else None for y in line.y], line.colour, line.thin)
    xs, ys = list[float](), list[float | None]()
    for start in range(0, len(line.x), size):
        values = [y for y in line.y[start : start + size] if y is not None and math.isfinite(y)]
        xs.append(line.x[min(start + size, len(line.x)) - 1])
        ys.append(sum(values) / len(values) if values else None)
    return Line(line.name, xs, ys, line.colour, line.thin)


def _finite(y: float | None) -> bool:
    return y is not None and math.isfinite(y)
