"""The picture of a result of tools/experiments.py: by how many points the net is worse without each part, seed by seed, beside the paper's."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.atomic import atomic_file
from tools.experiments_table import worse_by

WIDTH, ROW, DPI = 9.0, 0.32, 140  # inches, inches a row, pixels an inch
GREY, BLUE, RED, INK, LINE = "#8b929c", "#2b6cb0", "#c05621", "#22262b", "#e6e8eb"


def draw(content: dict[str, Any]) -> Figure:
    """A row for each ablation, the first above."""
    whole, *others = content["parts"]["ablate"]["result"]["rows"]
    figure = Figure(figsize=(WIDTH, 1.6 + ROW * len(others)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(others):
        _row(axes, -place, worse_by(one, whole)[0], one["paper"][0])
    axes.set_yticks([-place for place in range(len(others))], [one["what"] for one in others])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("points of top-1 error, ten views, more than the whole net of the same seed", color=INK)
    for colour, marker, label in ((BLUE, "o", "mean"), (GREY, ".", "a seed"), (RED, "D", "the paper, on ImageNet")):
        axes.plot([], [], marker, color=colour, label=label)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(True, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK, left=False)
    figure.suptitle(_about(content, statistics.mean(whole["top1"])), x=0.01, ha="left", fontsize=9, color=INK)
    return figure


def _row(axes: Axes, place: int, points: list[float], paper: float | None) -> None:
    axes.plot(points, [place] * len(points), ".", color=GREY)
    axes.plot([statistics.mean(points)], [place], "o", color=BLUE)
    if paper is not None:
        axes.plot([paper], [place], "D", color=RED, markersize=5)


def _about(content: dict[str, Any], whole: float) -> str:
    pictures, machine = content["pictures"], content["machine"]
    what = f"{pictures['train']:,} pictures of {pictures['classes']} classes; the whole net's error is {whole:.1f} %"
    return f"What each part is worth. {what}; {machine['cpu']}; {content['date'][:10]}"


def write_plot(content: dict[str, Any], path: Path) -> None:
    """Draw it into `path`, a PNG, whole or not at all."""
    with atomic_file(path) as file:
        draw(content).savefig(file, format="png", dpi=DPI)
