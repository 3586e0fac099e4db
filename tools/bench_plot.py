"""The picture of a result of tools/bench_loader.py: images per CPU-second and per second of every row.

    python tools/bench_plot.py [--result docs/benchmarks/loader.json] [--out docs/benchmarks/loader.png]

Bars are medians of the first batch size, one for each number of threads, with a line from the slowest to the fastest round; dots are the medians
of the other batch sizes. Each section has a scale of its own, from zero.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from tools.bench_results import RATES, Rate

WIDTH, DPI = 12.0, 140  # inches, pixels an inch
BAR, GAP, HEAD, FRAME = 0.17, 0.12, 0.55, 0.6  # inches: a bar, between two rows, title and axis of a section, what is around all
COLOURS = {"ours": ("#9dc3ea", "#2b6cb0", "#17406d"), "plain DALI": ("#f2bf8d", "#c8761c", "#80490d"), "peer": ("#cfd3d8", "#8b929c", "#565c65")}
INK, LINE = "#22262b", "#e6e8eb"
TITLES: dict[Rate, str] = {"images_per_cpu_s": "images a CPU-second", "images_per_s": "images a second"}
MOST_SHADES = 3
EDGE = {"markersize": 3, "markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 0.6}
DOT: dict[str, Any] = {"marker": "o", "linestyle": "", "zorder": 3, **EDGE}


def draw(result: dict[str, Any]) -> Figure:
    """One row of panels for each section: left per CPU-second, right per second."""
    rows = result["rows"]
    sections = list(dict.fromkeys(row["section"] for row in rows))
    names = {section: list(dict.fromkeys(row["row"] for row in rows if row["section"] == section)) for section in sections}
    bars = len(_threads(rows))
    heights = [len(names[section]) * (bars * BAR + GAP) for section in sections]
    figure = Figure(figsize=(WIDTH, sum(heights) + HEAD * len(sections) + FRAME), layout="constrained")
    panels = figure.subplots(len(sections), len(RATES), squeeze=False, gridspec_kw={"height_ratios": heights})
    rates: tuple[Rate, Rate] = ("images_per_cpu_s", "images_per_s")
    for line, section in zip(panels, sections, strict=True):
        for axes, rate in zip(line, rates, strict=True):
            _panel(axes, [row for row in rows if row["section"] == section], names[section], rate, _threads(rows), result["settings"]["batches"])
            axes.set_title(f"{section}: {TITLES[rate]}", loc="left", fontsize=10, fontweight="bold", color=INK)
        line[1].tick_params(labelleft=False)
    figure.suptitle(_about(result), x=0.01, ha="left", fontsize=9, color=INK)
    shown = _legend(result)
    figure.legend(handles=shown, loc="outside lower left", ncols=len(shown), fontsize=8, frameon=False)
    return figure


def _threads(rows: list[dict[str, Any]]) -> list[int]:
    """Numbers of threads, at most as many as there are shades: the fewest, the most and one between."""
    found = sorted({row["threads"] for row in rows if row["threads"]})
    return found if len(found) <= MOST_SHADES else [found[0], found[len(found) // 2], found[-1]]


def _panel(axes: Axes, rows: list[dict[str, Any]], names: list[str], rate: Rate, threads: list[int], batches: list[int]) -> None:
    pitch = len(threads) * BAR + GAP
    for row in (row for row in rows if row["batch"] == batches[0] and row["threads"] in (None, *threads)):
        shade = threads.index(row["threads"]) if row["threads"] else 0
        at = -pitch * names.index(row["row"]) + (BAR * ((len(threads) - 1) / 2 - shade) if row["threads"] else 0)
        same = [other for other in rows if (other["row"], other["threads"]) == (row["row"], row["threads"])]
        dots = [other[rate]["median"] for other in same if other["batch"] != batches[0]]
        _bar(axes, row[rate], at, COLOURS[row["whose"]][shade], dots)
    axes.set_yticks([-pitch * place for place in range(len(names))], names, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_color(COLOURS["ours"][1] if label.get_text().startswith("ours") else INK)
    axes.set_ylim(-pitch * (len(names) - 0.5), pitch / 2)
    axes.set_xlim(0, 1.13 * max(row[rate]["max"] for row in rows))
    _style(axes)


def _bar(axes: Axes, value: dict[str, float], at: float, colour: str, dots: list[float]) -> None:
    """A median with its spread, and the medians of other batch sizes; the number stands behind them all."""
    axes.barh(at, value["median"], 0.9 * BAR, color=colour)
    axes.plot((value["min"], value["max"]), (at, at), color=INK, linewidth=0.8)
    axes.plot(dots, [at] * len(dots), **DOT)
    end = max(value["max"], *dots, 0)
    axes.annotate(f"{value['median']:,.0f}", (end, at), (5, 0), textcoords="offset points", va="center", fontsize=6.5, color=INK)


def _style(axes: Axes) -> None:
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="x", labelsize=7, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _about(result: dict[str, Any]) -> str:
    machine, settings, shards = result["machine"], result["settings"], result["shards"]
    where = f"{machine['gpu'] + ', ' if machine['gpu'] else ''}{machine['cores']} cores of {machine['cpu']}"
    pictures = f"{shards['size']} x {shards['size']} JPEG q{shards['quality']}, crop {settings['augmentation']['crop']} + flip"
    rounds = f"medians of {settings['rounds']} rounds" if settings["rounds"] > 1 else "one round"
    return f"Loaders side by side. {where}; {pictures}; batch {settings['batches'][0]}; {rounds}; {result['date'][:10]}"


def _legend(result: dict[str, Any]) -> list[Any]:
    threads, batches = _threads(result["rows"]), result["settings"]["batches"]
    whose = dict.fromkeys(row["whose"] for row in result["rows"])
    shown: list[Any] = [
        Patch(color=COLOURS[name][shade], label=f"{name}, {count} thread{'s' if count > 1 else ''}")
        for name in whose
        for shade, count in enumerate(threads)
    ]
    if len(batches) > 1:
        shown.append(Line2D([], [], **DOT, label=f"batch {', '.join(map(str, batches[1:]))}"))
    return [*shown, Line2D([], [], color=INK, linewidth=0.8, label="slowest to fastest round")]


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Draw it into `path`, a PNG, whole or not at all."""
    with atomic_file(path) as file:
        draw(result).savefig(file, format="png", dpi=DPI)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plot a loader benchmark.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--result", type=Path, default=Path("docs/benchmarks/loader.json"), help="JSON of tools/bench_loader.py")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/loader.png"), help="PNG to write")
    given = parser.parse_args(arguments)
    with one_line_errors():
        try:
            result = json.loads(given.result.read_text())
            draw(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{given.result} is no result of tools/bench_loader.py ({what}); run: python tools/bench_loader.py") from None
        write_plot(result, given.out)
        print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
