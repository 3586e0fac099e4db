"""The picture of model.specialise: of each run the kernels of both columns by their colour, and where they lie between grey and colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from model.colour_content import colour_content, halves
from model.kernels import BETWEEN, kernel_pixels, rows_of
from pipeline import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, DPI = 11.0, 160  # inches, pixels an inch
STRIPS, DOTS, MARGIN, HEAD, FOOT = 7.0, 2.9, 0.15, 0.34, 0.45  # inches
A_ROW, LARGEST = 24, 0.3  # kernels at most, and inches of one
COLOURS, LIGHT = ("#2b6cb0", "#c05621"), "#d5d8dc"  # of the columns' dots
RANDOM = 2 / 3  # content of weights drawn at random


@dataclass(frozen=True)
class Strips:
    """words: over a run's kernels, (maps, 3, side, side), of which those of `counts`, (maps,) bool, are drawn."""

    words: str
    kernels: np.ndarray
    counts: np.ndarray

    def columns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Kernels of each column by rising content, and their contents."""
        found = []
        for part in halves(len(self.kernels)):
            kernels = self.kernels[part][self.counts[part]]
            content = colour_content(kernels)
            order = np.argsort(content, kind="stable")
            found.append((kernels[order], content[order]))
        return found


def block(kernels: np.ndarray, across: int) -> np.ndarray:
    """(n, 3, side, side) -> (h, w, 3) uint8: rows of `across` kernels; none: a row of white."""
    if not len(kernels):
        return np.full_like(block(np.zeros((1, *kernels.shape[1:]), np.float32), across), 255)
    return rows_of(kernel_pixels(torch.from_numpy(kernels)), across)


def blocks(run: Strips, across: int) -> np.ndarray:
    """(h, w, 3) uint8: column 0's kernels above column 1's."""
    first, second = (block(kernels, across) for kernels, _ in run.columns())
    return np.concatenate((first, np.full((BETWEEN, first.shape[1], 3), 255, np.uint8), second))


def draw(runs: Sequence[Strips], path: Path) -> None:
    """Write the picture, whole or not at all."""
    from matplotlib.figure import Figure

    across = min(A_ROW, max(part.stop - part.start for one in runs for part in halves(len(one.kernels))))
    sheets = [blocks(one, across) for one in runs]
    wide = min(STRIPS, across * LARGEST)
    heights = [wide * sheet.shape[0] / sheet.shape[1] for sheet in sheets]
    total = sum(heights) + len(runs) * HEAD + FOOT
    figure, top = Figure(figsize=(WIDTH, total)), total
    for one, sheet, height in zip(runs, sheets, heights, strict=True):
        top -= HEAD + height
        left = figure.add_axes((MARGIN / WIDTH, top / total, wide / WIDTH, height / total))
        left.imshow(sheet, interpolation="nearest", aspect="auto")
        left.set_axis_off()
        left.set_title(one.words, loc="left", fontsize=9, fontweight="bold", pad=4)
        right = figure.add_axes(((WIDTH - DOTS - MARGIN) / WIDTH, top / total, DOTS / WIDTH, height / total))
        _dots(right, [content for _, content in one.columns()], one is runs[-1])
    figure.text(MARGIN / WIDTH, 0.1 / total, "column 0 above column 1, kernels by rising colour content, each scaled to its own range", fontsize=8)
    figure.text((WIDTH - MARGIN) / WIDTH, 0.1 / total, "colour content (line: of random weights)", fontsize=8, ha="right")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI)


def _dots(axes: Axes, contents: list[np.ndarray], numbered: bool) -> None:
    """A dot a kernel, and each column's mean."""
    for number, (content, colour) in enumerate(zip(contents, COLOURS, strict=True)):
        axes.plot(content, np.full(len(content), number), "o", color=colour, markersize=4, alpha=0.5, clip_on=False)
        if len(content):
            axes.plot(content.mean(), number, "|", color=colour, markersize=16, markeredgewidth=2)
        else:
            axes.text(0.02, number, "no kernel has learned yet", fontsize=7, va="center")
    axes.axvline(RANDOM, color=LIGHT, linewidth=1, zorder=0)
    axes.set(xlim=(0, 1), ylim=(1.6, -0.6), yticks=(0, 1), yticklabels=("column 0", "column 1"))
    axes.tick_params(labelsize=7, labelbottom=numbered)
    axes.spines[["top", "right", "left"]].set_visible(False)
