"""Queries beside their nearest neighbours, as a picture (paper, Figure 4, right)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from model.retrieve_features import Features
from pipeline import InputError, ShardSet, atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 10.0, 160  # inches, pixels an inch: 1600 pixels
ORANGE, GREY, LIGHT, INK = "#c05621", "#7a808a", "#d5d8dc", "#22262b"
QUERIES = 8  # rows of the sheet
MARGIN, GAP, BETWEEN, HEAD, FOOT, LARGEST = 0.12, 0.07, 0.16, 0.36, 0.3, 1.9  # inches; BETWEEN: a query and its neighbours


@dataclass(frozen=True)
class Shown:
    """A picture, (size, size, 3) uint8, the name of its class, and what stands under it."""

    picture: np.ndarray
    name: str
    words: str = ""
    marked: bool = False


def class_names(shards: ShardSet) -> list[str]:
    """The first of each class's words, or its wnid, not longer than a picture of the sheet is wide."""
    names = [entry.words.split(",")[0].strip() or entry.wnid for entry in shards.manifest.classes]
    return [name if len(name) <= 20 else name[:19] + "…" for name in names]


def stored(shards: ShardSet, sample: int) -> np.ndarray:
    """The central square of a stored picture, (size, size, 3) uint8. Raises InputError."""
    jpeg, _ = shards.read(sample)
    try:
        picture = Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB")
        return np.asarray(ImageOps.fit(picture, (min(picture.size),) * 2))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"picture {sample} of {shards.folder} cannot be decoded ({error}); make its shard again") from None


def shown_queries(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the queries that are drawn, of different classes as far as there are, by class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, firsts = np.unique(labels[order], return_index=True)
    first_of_class = order[np.sort(firsts)]
    rest = order[~np.isin(order, first_of_class)]
    chosen = np.concatenate((first_of_class, rest))[:QUERIES]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def draw_sheet(rows: Sequence[tuple[Shown, Sequence[Shown]]], words: tuple[str, str]) -> Figure:
    """A line for each query: it, and its neighbours. words: over the queries and over the neighbours."""
    from matplotlib.figure import Figure

    across = max(len(near) for _, near in rows)
    side = min((WIDTH - 2 * MARGIN - BETWEEN - GAP * across) / (across + 1), LARGEST)
    height = HEAD + len(rows) * (side + FOOT)
    figure = Figure(figsize=(WIDTH, height))
    for i, (query, near) in enumerate(rows):
        for j, one in enumerate((query, *near)):
            x, y = MARGIN + j * (side + GAP) + (BETWEEN if j else 0), height - HEAD - i * (side + FOOT) - side
            axes = figure.add_axes((x / WIDTH, y / height, side / WIDTH, side / height))
            _draw_picture(axes, one)
            if i == 0 and j < 2:
                axes.set_title(words[j], loc="left", fontsize=10, fontweight="bold", color=INK, pad=7)
    return figure


def _draw_picture(axes: Axes, one: Shown) -> None:
    axes.imshow(one.picture)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(ORANGE if one.marked else LIGHT)
    axes.spines[:].set_linewidth(1.8 if one.marked else 0.8)
    axes.set_xlabel(one.name, fontsize=8.5, fontweight="bold" if one.marked or not one.words else "normal", color=INK, labelpad=3, loc="left")
    axes.text(1, -0.034, one.words, transform=axes.transAxes, fontsize=7, color=GREY, ha="right", va="top")


def write_png(figure: Figure, path: Path) -> None:
    """Whole or not at all."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
    print(path)


def neighbours_of(shards: ShardSet, features: Features, rows: np.ndarray, far: np.ndarray, label: int) -> list[Shown]:
    """What is drawn beside a query of class `label`: the pictures of `rows`, (k,), at distances `far`."""
    names, found = class_names(shards), []
    for row, distance in zip(rows, far, strict=True):
        its = int(features.labels[row])
        found.append(Shown(stored(shards, int(features.ids[row])), names[its] if its >= 0 else "", f"{distance:#.3g}".rstrip("."), its == label >= 0))
    return found
