"""The picture of a result of tools/bench_shards.py: pictures a second and core of every row, and the PSNR of what it writes.

    python tools/bench_shards_plot.py [--result docs/benchmarks/shards.json] [--out docs/benchmarks/shards.png]

Bars are medians, one for each number of processes, with a line from the slowest to the fastest round, from zero; dots are PSNR, not from zero.
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
from tools.bench_plot import BAR, COLOURS, DPI, GAP, INK, LINE, MOST_SHADES, WIDTH

FRAME = 1.5  # inches: title, axis and legend


def draw(result: dict[str, Any]) -> Figure:
    """Left speed, right quality, a line a row."""
    rows = result["rows"]
    names = list(dict.fromkeys(row["row"] for row in rows))
    processes = _processes(rows)
    pitch = len(processes) * BAR + GAP
    figure = Figure(figsize=(WIDTH, len(names) * pitch + FRAME), layout="constrained")
    speed, quality = figure.subplots(1, 2, gridspec_kw={"width_ratios": (5, 3)})
    for row in (row for row in rows if row["processes"] in processes):
        shade = processes.index(row["processes"])
        at = -pitch * names.index(row["row"]) + BAR * ((len(processes) - 1) / 2 - shade)
        _bar(speed, row["per_core"], at, _colours(row)[shade])
    for row in (row for row in rows if row["processes"] == processes[0] and row["psnr_db"] is not None):
        _dot(quality, row, -pitch * names.index(row["row"]))
    speed.set_xlim(0, 1.13 * max(row["per_core"]["max"] for row in rows))
    for axes, title in ((speed, "pictures a second and core"), (quality, "PSNR, dB (SSIM, size behind it)")):
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
        _style(axes, names, pitch)
    quality.tick_params(labelleft=False)
    figure.suptitle(_about(result), x=0.01, ha="left", fontsize=9, color=INK)
    shown = _legend(rows, processes)
    figure.legend(handles=shown, loc="outside lower left", ncols=len(shown), fontsize=8, frameon=False)
    return figure


def _processes(rows: list[dict[str, Any]]) -> list[int]:
    """At most as many as there are shades: the fewest, the most and one between."""
    found = sorted({row["processes"] for row in rows})
    return found if len(found) <= MOST_SHADES else [found[0], found[len(found) // 2], found[-1]]


def _colours(row: dict[str, Any]) -> tuple[str, ...]:
    return COLOURS["plain DALI" if row["row"] == "limit" else row["whose"]]


def _bar(axes: Axes, value: dict[str, float], at: float, colour: str) -> None:
    axes.barh(at, value["median"], 0.9 * BAR, color=colour)
    axes.plot((value["min"], value["max"]), (at, at), color=INK, linewidth=0.8)
    axes.annotate(f"{value['median']:,.0f}", (value["max"], at), (5, 0), textcoords="offset points", va="center", fontsize=6.5, color=INK)


def _dot(axes: Axes, row: dict[str, Any], at: float) -> None:
    axes.plot(row["psnr_db"], at, marker="o", linestyle="", markersize=6, color=_colours(row)[1])
    words = f"{row['psnr_db']:.2f} ({row['ssim']:.3f}), {row['bytes'] / 1000:.1f} kB"
    axes.annotate(words, (row["psnr_db"], at), (7, 0), textcoords="offset points", va="center", fontsize=6.5, color=INK)


def _style(axes: Axes, names: list[str], pitch: float) -> None:
    axes.set_yticks([-pitch * place for place in range(len(names))], names, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_color(COLOURS["ours"][1] if label.get_text().startswith("ours") else INK)
    axes.set_ylim(-pitch * (len(names) - 0.5), pitch / 2)
    axes.tick_params(axis="x", labelsize=7, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", color=LINE, linewidth=0.7)
    axes.margins(x=0.35)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _about(result: dict[str, Any]) -> str:
    machine, settings = result["machine"], result["settings"]
    rounds = f"medians of {settings['rounds']} rounds" if settings["rounds"] > 1 else "one round"
    where = f"{machine['cores']} cores of {machine['cpu']}"
    return f"JPEG of any size -> {settings['form']}. {where}; {settings['pictures']} pictures; {rounds}; {result['date'][:10]}"


def _legend(rows: list[dict[str, Any]], processes: list[int]) -> list[Any]:
    kinds = {"limit" if row["row"] == "limit" else row["whose"]: _colours(row) for row in rows}
    shown: list[Any] = [
        Patch(color=colours[shade], label=f"{kind}, {count} process{'es' if count > 1 else ''}")
        for kind, colours in kinds.items()
        for shade, count in enumerate(processes)
    ]
    return [*shown, Line2D([], [], color=INK, linewidth=0.8, label="slowest to fastest round")]


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Draw it into `path`, a PNG, whole or not at all."""
    with atomic_file(path) as file:
        draw(result).savefig(file, format="png", dpi=DPI)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plot a conversion benchmark.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--result", type=Path, default=Path("docs/benchmarks/shards.json"), help="JSON of tools/bench_shards.py")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/shards.png"), help="PNG to write")
    given = parser.parse_args(arguments)
    with one_line_errors():
        try:
            result = json.loads(given.result.read_text())
            draw(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{given.result} is no result of tools/bench_shards.py ({what}); run: make bench-shards PICTURES=...") from None
        write_plot(result, given.out)
        print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
