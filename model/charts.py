"""Line charts as SVG text, readable without a script; page/report.js shows the numbers of the table under the pointer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

WIDTH, HEIGHT = 480, 216
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 20, 24
POINTS = 200  # of a line, and rows of its table; more are averaged in groups
COLOURS = 8  # of the page's style sheet, c0 to c7
NEAR = 34  # two words nearer than this, in units of the drawing, would run into each other


@dataclass(frozen=True)
class Line:
    """A name for the legend, and its points by rising x; None or NaN: nothing there. band: show between what values a drawn mean lies."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    band: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A height with its words, such as that of chance, at the right end or the left one."""

    y: float
    words: str
    left: bool = False


@dataclass(frozen=True)
class Moment:
    """A place with its words: a drop of the rate, a start, a leap of the loss."""

    x: float
    words: str
    kind: str  # rate, start or spike: a class of the style sheet


@dataclass(frozen=True)
class _Row:
    """What is drawn at one x: (mean, lowest, highest) of each line, or None."""

    x: float
    values: list[tuple[float, float, float] | None]


def chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    x_name: str = "epoch",
    x_words: Callable[[float], str] | None = None,
    levels: Sequence[Level] = (),
    moments: Sequence[Moment] = (),
    top: float | None = None,
) -> str:
    """A figure: title, SVG, a legend where there are several lines, and its numbers as a table that opens. top: of the y axis, instead of
    one that fits; x_words: what is said of an x in the table.
    """
    rows = _rows(lines)
    head = f"<figcaption>{escape(title)} <small>{escape(unit)}, by {escape(x_name)}</small></figcaption>"
    if not rows:
        return f"<figure>{head}<p class='soft'>nothing yet</p></figure>"
    place = _place(rows, levels, top)
    words = f"{title}: {unit}, by {x_name}"
    drawn = [*_grid(place), *_levels(place, levels), *_moments(place, moments)]
    for number, line in enumerate(lines):
        drawn += _drawn(place, rows, number, line)
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(words)}'><title>{escape(words)}</title>{''.join(drawn)}</svg>"
    table = _table(place, rows, [line.name for line in lines], x_name, x_words or (lambda x: number_text(x)))
    return f"<figure class='chart'>{head}{svg}{_legend(lines)}{table}</figure>"


def number_text(value: float) -> str:
    """Four digits, or all of those before the point."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("e-0", "e-")


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`, some `about` of them; whole: none between 2 and 3 where the numbers are large enough."""
    if not high > low:
        high = low + 1
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in ((1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _rows(lines: Sequence[Line]) -> list[_Row]:
    """The points of all lines by x; many of them are put in groups of the same width."""
    points = [[(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None and math.isfinite(y)] for line in lines]
    places = sorted({x for line in points for x, _ in line})
    if len(places) > POINTS:
        low, width = places[0], (places[-1] - places[0]) / POINTS
        points = [[(low + (min(int((x - low) / width), POINTS - 1) + 0.5) * width, y) for x, y in line] for line in points]
    found: dict[float, list[list[float]]] = {}
    for number, line in enumerate(points):
        for x, y in line:
            found.setdefault(x, [[] for _ in lines])[number].append(y)
    return [_Row(x, [(fmean(ys), min(ys), max(ys)) if ys else None for ys in found[x]]) for x in sorted(found)]


@dataclass(frozen=True)
class _Place:
    """From values to places in the drawing."""

    x_ticks: list[float]
    y_ticks: list[float]
    x0: float
    x1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        inside = min(max(value, low), high)
        return HEIGHT - BOTTOM - (inside - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _place(rows: list[_Row], levels: Sequence[Level], top: float | None) -> _Place:
    """Axes from 0, or from the first x where that is far; a few leaps do not press everything else flat."""
    heights = sorted(value[0] for row in rows for value in row.values if value is not None)
    usual = heights[int(0.98 * (len(heights) - 1))]
    highest = 1.2 * usual if 0 < 4 * usual < heights[-1] else heights[-1]
    first, last = rows[0].x, rows[-1].x
    x0 = 0.0 if first <= 0.5 * last else first
    x1 = last if last > x0 else x0 + 1
    x_ticks = [x for x in ticks(x0, x1, 6, whole=True) if x0 <= x <= x1 * (1 + 1e-9)]
    return _Place(x_ticks, ticks(0.0, top if top is not None else max([highest, *(level.y for level in levels)])), x0, x1)


def _grid(place: _Place) -> list[str]:
    parts = []
    for value in place.y_ticks:
        y = place.y(value)
        parts.append(f"<path class='grid' d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{number_text(value)}</text>")
    for value in place.x_ticks:
        parts.append(f"<text x='{place.x(value):.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{number_text(value)}</text>")
    return parts


def _levels(place: _Place, levels: Sequence[Level]) -> list[str]:
    parts = []
    for level in levels:
        y = place.y(level.y)
        below = y < TOP + 14  # else its words would stand among those of the moments
        parts.append(f"<path class='level' d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>")
        x, anchor = (LEFT + 4, "start") if level.left else (WIDTH - RIGHT, "end")
        parts.append(f"<text class='level' x='{x}' y='{y + (12 if below else -4):.1f}' text-anchor='{anchor}'>{escape(level.words)}</text>")
    return parts


def _moments(place: _Place, moments: Sequence[Moment]) -> list[str]:
    """Upright lines; words that would run into those before them are left to the tooltip."""
    parts, free = [], dict[str, float]()
    for moment in sorted(moments, key=lambda moment: moment.x):
        if not place.x0 <= moment.x <= place.x1:
            continue
        x = place.x(moment.x)
        parts.append(f"<g class='{moment.kind}'><title>{escape(moment.words)}</title><path d='M{x:.1f} {TOP}V{HEIGHT - BOTTOM}'/>")
        if moment.kind == "rate" and x >= free.get(moment.kind, 0.0):
            anchor = "end" if x > WIDTH - RIGHT - NEAR else "start"
            parts.append(f"<text x='{x:.1f}' y='{TOP - 6}' text-anchor='{anchor}'>{escape(moment.words)}</text>")
            free[moment.kind] = x + max(NEAR, 6.5 * len(moment.words))
        elif moment.kind == "start":
            parts.append(f"<path class='mark' d='M{x - 4:.1f} {HEIGHT - BOTTOM}h8l-4 -7z'/>")
        elif moment.kind == "spike":
            parts.append(f"<path class='mark' d='M{x - 4:.1f} {TOP}h8l-4 7z'/>")
        parts.append("</g>")
    return parts


def _drawn(place: _Place, rows: list[_Row], number: int, line: Line) -> list[str]:
    """One line, joined over the places where it has no value."""
    points = [(place.x(row.x), value) for row in rows if (value := row.values[number]) is not None]
    if not points:
        return []
    colour, parts = f"c{line.colour % COLOURS}{' again' if line.colour >= COLOURS else ''}", []
    if line.band and len(points) > 1:
        over = [f"{x:.1f} {place.y(high):.1f}" for x, (_, _, high) in points]
        under = [f"{x:.1f} {place.y(low):.1f}" for x, (_, low, _) in reversed(points)]
        parts.append(f"<path class='band {colour}' d='M{'L'.join(over + under)}z'/>")
    means = [f"{x:.1f} {place.y(mean):.1f}" for x, (mean, _, _) in points]
    parts.append(f"<path class='line {colour}' d='M{'L'.join(means)}'/>")
    if len(points) == 1:
        parts.append(f"<circle class='only {colour}' cx='{points[0][0]:.1f}' cy='{place.y(points[0][1][0]):.1f}' r='4'/>")
    elif line.dots:
        parts += [f"<circle class='{colour}' cx='{x:.1f}' cy='{place.y(mean):.1f}' r='2.6'/>" for x, (mean, _, _) in points]
    return parts


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    entries = [f"<li><i class='c{line.colour % COLOURS}{' again' if line.colour >= COLOURS else ''}'></i>{escape(line.name)}</li>" for line in lines]
    return f"<ul class='legend'>{''.join(entries)}</ul>"


def _table(place: _Place, rows: list[_Row], names: list[str], x_name: str, x_words: Callable[[float], str]) -> str:
    """The numbers; data-x and data-y are their places in the drawing, for the script."""
    head = "".join(f"<th class='n'>{escape(name)}</th>" for name in names)
    lines = []
    for row in rows:
        cells = "".join(
            f"<td class='n' data-y='{place.y(value[0]):.1f}'>{number_text(value[0])}</td>" if value is not None else "<td class='n'></td>"
            for value in row.values
        )
        lines.append(f"<tr data-x='{place.x(row.x):.1f}'><th>{escape(x_words(row.x))}</th>{cells}</tr>")
    top = f"<thead><tr><th>{escape(x_name)}</th>{head}</tr></thead>"
    return f"<details><summary>numbers</summary><div class='wide'><table>{top}<tbody>{''.join(lines)}</tbody></table></div></details>"
