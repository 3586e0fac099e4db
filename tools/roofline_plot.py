"""The picture of a result of tools/roofline.py: the machine's two roofs, and every kernel of a step as a dot under them.

A panel each for the smallest and the largest batch. A dot stands where its kernel could be at best, so all lie on the roof: further right is
more arithmetic for a byte. Its area is its share of the step. Kernels of one layer at the same place are one dot.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.atomic import atomic_file

SIZE, DPI = (11.0, 10.4), 140  # inches, pixels an inch
INK, LINE, ROOF = "#22262b", "#e6e8eb", "#565c65"
COLOURS = {"convolutions": "#2b6cb0", "fully connected": "#c8761c", "ReLU, LRN, pooling": "#3b8f5a", "SGD": "#8b929c"}
ALONG = (0.1, 6000.0)  # FLOP a byte
DOWN, UP = 8000.0, 1000.0  # times under and over the peak: the vertical axis, with room for the labels above
DOT = 1500.0  # square points for a whole step
APART = 0.045  # of the axis: between two labels


@dataclass(frozen=True)
class Dot:
    """Kernels of a layer that do as many operations for a byte: along in FLOP/B, microseconds of all of them together."""

    layer: str
    works: tuple[str, ...]
    along: float
    microseconds: float
    share: float
    memory: bool

    @property
    def label(self) -> str:
        works = f" x {len(self.works)}" if len(self.works) > 1 else "" if self.layer == "SGD" else f" {self.works[0]}"
        return f"{self.layer}{works}: {self.microseconds:,.0f} us, {100 * self.share:.1f} %"

    @property
    def colour(self) -> str:
        kinds = {"conv": "convolutions", "fc": "fully connected", "SGD": "SGD"}
        return COLOURS[next((kind for start, kind in kinds.items() if self.layer.startswith(start)), "ReLU, LRN, pooling")]


def dots(rows: list[dict[str, Any]]) -> list[Dot]:
    """In the order of their place."""
    found = []
    for (layer, along), same in groupby(rows, key=lambda row: (row["layer"], row["flop_per_byte"])):
        group = list(same)
        works = tuple(row["work"] for row in group)
        time, share = (sum(row[key] for row in group) for key in ("roof_us", "share"))
        found.append(Dot(layer, works, along, time, share, group[0]["bound"] == "memory"))
    return sorted(found, key=lambda dot: dot.along)


def spread(wanted: list[float], apart: float) -> list[float]:
    """Rising places at least `apart` from each other, as near to the wanted ones, which rise, as blocks of them can be."""
    blocks: list[list[float]] = []  # each: the wanted places that touch
    for place in wanted:
        blocks.append([place])
        while len(blocks) > 1 and _start(blocks[-1], apart) < _start(blocks[-2], apart) + apart * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    return [_start(block, apart) + apart * i for block in blocks for i in range(len(block))]


def _start(block: list[float], apart: float) -> float:
    return sum(block) / len(block) - apart * (len(block) - 1) / 2


def draw(result: dict[str, Any]) -> Figure:
    machine, batches = result["machine"], sorted(map(int, result["kernels"]))
    shown = list(dict.fromkeys((batches[0], batches[-1])))
    figure = Figure(figsize=(SIZE[0], SIZE[1] * len(shown) / 2), layout="constrained")
    for axes, batch in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        one = next(one for one in result["sums"] if one["batch"] == batch)
        _panel(axes, dots(result["kernels"][str(batch)]), machine["flops"], machine["bandwidth"])
        rate = f"the roofs sum to {one['roof_ms']:.2f} ms, {one['images_per_s']:,.0f} images/s"
        axes.set_title(f"batch {batch}: {rate}", loc="left", fontsize=10, fontweight="bold", color=INK)
    roofs = f"{machine['flops'] / 1e12:,.4g} TFLOP/s in {result['precision']}, {machine['bandwidth'] / 1e9:,.4g} GB/s"
    title = f"A training step's kernels at their best. {machine['name']}, {roofs}. Arithmetic, not measured. Areas: shares of the step."
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    kinds: list[Any] = [Line2D([], [], marker="o", linestyle="", color=colour, label=kind) for kind, colour in COLOURS.items()]
    figure.legend(handles=kinds, loc="outside lower left", ncols=len(kinds), fontsize=8, frameon=False)
    return figure


def _panel(axes: Axes, found: list[Dot], flops: float, bandwidth: float) -> None:
    ridge, peak = flops / bandwidth, flops / 1e12
    axes.set(xscale="log", yscale="log", xlim=ALONG, ylim=(peak / DOWN, peak * UP))
    axes.plot((ALONG[0], ridge, ALONG[1]), (peak * ALONG[0] / ridge, peak, peak), color=ROOF, linewidth=1.5, zorder=1)
    for dot in sorted(found, key=lambda dot: -dot.share):  # small ones over large ones
        axes.scatter(dot.along, peak * min(1, dot.along / ridge), DOT * dot.share + 12, color=dot.colour, edgecolor="white", linewidth=0.6, zorder=3)
    _label_slope(axes, [dot for dot in found if dot.memory], peak, ridge)
    _label_top(axes, [dot for dot in found if not dot.memory], peak)
    axes.set_xlabel("floating-point operations for a byte of memory", fontsize=8, color=INK)
    axes.set_ylabel("TFLOP/s", fontsize=8, color=INK)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_yticks([10.0**power for power in range(-9, 9) if peak / DOWN <= 10.0**power <= 2 * peak])
    axes.minorticks_off()
    axes.tick_params(labelsize=7, colors=INK)
    axes.grid(True, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label_slope(axes: Axes, found: list[Dot], peak: float, ridge: float) -> None:
    """To the right of their dots, under the roof, where nothing else is; from the top down, each under the one before."""
    to_axes, ceiling = (axes.transData + axes.transAxes.inverted()).transform, 1.0
    for dot in reversed(found):
        x, y = to_axes((dot.along, peak * dot.along / ridge))
        ceiling = min(y - APART, ceiling - APART)
        _label(axes, dot, (x, y), (x + 0.05, ceiling), {"ha": "left", "va": "center"}, (0, 0.5))


def _label_top(axes: Axes, found: list[Dot], peak: float) -> None:
    """Upright, above the roof."""
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    places = [to_axes((dot.along, peak)) for dot in found]
    for dot, (x, y), aside in zip(found, places, spread([float(x) for x, _ in places], APART / 2), strict=True):
        _label(axes, dot, (x, y), (aside, y + 0.09), {"ha": "center", "va": "bottom", "rotation": 90}, (0.5, 0))


def _label(axes: Axes, dot: Dot, at: tuple[float, float], text_at: tuple[float, float], how: dict[str, Any], end: tuple[float, float]) -> None:
    """end: where on the text its line ends."""
    line = {"arrowstyle": "-", "color": ROOF, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0, "relpos": end}
    where: Any = axes.transAxes
    axes.annotate(dot.label, at, text_at, where, where, arrowprops=line, fontsize=7.5, color=INK, zorder=4, **how)


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Draw it into `path`, a PNG, whole or not at all."""
    with atomic_file(path) as file:
        draw(result).savefig(file, format="png", dpi=DPI)
