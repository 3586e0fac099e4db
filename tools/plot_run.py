"""Pictures of a training run, made from its files alone: curves, first-layer kernels, predictions.

    python tools/plot_run.py --run RUN [--shards shards/]

Writes curves.png (loss, validation error, units that never fire), kernels.png (paper, Figure 3) and predictions.png (Figure 4) into RUN.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from pipeline.atomic import atomic_file
from pipeline.errors import BadSample, InputError, one_line_errors
from pipeline.manifest import ClassEntry
from pipeline.shards import ShardSet
from tools.run_files import Kernels, Prediction, read_kernels, read_metrics, read_predictions, read_wnids

WIDTH, DPI = 10.0, 160  # inches, pixels an inch: 1600 pixels
BLUE, ORANGE, GREY, LIGHT, INK = "#2b6cb0", "#c05621", "#7a808a", "#d5d8dc", "#22262b"
SILENT = re.compile(r"silent_percent_(\w+)_column\d")
SMOOTH = 50  # a running mean over 1/50 of the logged losses is drawn over them


@dataclass(frozen=True)
class Shown:
    """A picture of Figure 4: (size, size, 3) uint8, the name of its class, and (name, probability, right) of each guess."""

    picture: np.ndarray
    name: str
    guesses: list[tuple[str, float, bool]]


def class_name(entry: ClassEntry) -> str:
    """The first of a class's words, or its wnid where there are none, not longer than a picture is wide."""
    name = entry.words.split(",")[0].strip() or entry.wnid
    return name if len(name) <= 22 else name[:21] + "…"


def decoded(shards: ShardSet, sample: int) -> tuple[np.ndarray, int]:
    """A stored picture, (size, size, 3) uint8, and its label. Raises InputError."""
    jpeg, label = shards.read(sample)
    try:
        return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB")), label
    except (OSError, ValueError, SyntaxError) as error:
        raise BadSample(*shards.place(sample), f"it cannot be decoded ({error})", "make this shard again") from None


def write_png(figure: Figure, path: Path) -> None:
    """Draw a figure into `path`, whole or not at all, and say so."""
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
    print(path)


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=20)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)


def _chance(axes: Axes, height: float, text: str, colour: str, below: bool = False) -> None:
    """What guessing gives, as a dotted line with its words at the right end, above or below it."""
    axes.axhline(height, color=colour, linewidth=1, linestyle=":")
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "fontsize": 8}
    axes.annotate(text, (1, height), (0, -11 if below else 4), color=colour, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, **place)  # type: ignore[arg-type]


def draw_curves(lines: list[dict[str, Any]], classes: int) -> Figure:
    """Loss against step and validation errors against epoch, side by side; below them units that never fire, where they were looked at."""
    shares = silent_shares(lines)
    figure = Figure(figsize=(WIDTH, 7.2 if shares else 4.1), layout="constrained")
    grid = figure.add_gridspec(2 if shares else 1, 2, height_ratios=[4, 3][: 2 if shares else 1])
    left, right = (figure.add_subplot(grid[0, place]) for place in range(2))
    draw_loss(left, [line for line in lines if "loss_nats" in line], classes)
    draw_errors(right, lines, classes)
    if shares:
        draw_silent(figure.add_subplot(grid[1, :]), shares)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    return figure


def rate_drops(train: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(last step under the old rate, new rate) wherever the logged rate changes."""
    return [(before["step"], after["rate"]) for before, after in pairwise(train) if after["rate"] != before["rate"]]


def draw_loss(axes: Axes, train: list[dict[str, Any]], classes: int) -> None:
    """Logged losses, their running mean once there are many, chance, and a line with the new rate wherever it drops."""
    _style(axes, "Training loss", "step", "cross-entropy, nats")
    steps = np.array([line["step"] for line in train])
    losses = np.array([line["loss_nats"] for line in train], dtype=float)
    width = len(losses) // SMOOTH
    axes.plot(steps, losses, color=BLUE, linewidth=1.6 if width < 2 else 0.8, alpha=1 if width < 2 else 0.4)
    if width >= 2:
        running = [np.convolve(values, np.ones(width) / width, "valid") for values in (steps, losses)]
        axes.plot(*running, color=BLUE, linewidth=1.8)
    axes.set_xlim(0, max(steps[-1], 1))
    axes.set_ylim(0, 1.12 * max(np.nanmax(losses), math.log(classes)))
    _chance(axes, math.log(classes), f"chance, ln {classes:,} = {math.log(classes):.2f}", GREY)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    over = axes.get_xaxis_transform()
    axes.text(0, 1.015, f"rate {train[0]['rate']:g}", transform=over, fontsize=8, color=ORANGE)
    for step, rate in rate_drops(train):
        axes.axvline(step, color=ORANGE, linewidth=1, linestyle="--")
        axes.text(step, 1.015, f"{rate:g}", transform=over, ha="center", fontsize=8, color=ORANGE)


def draw_errors(axes: Axes, lines: list[dict[str, Any]], classes: int) -> None:
    """Top-1 and top-5 error of the centre view after each epoch, chance, and the ten views at the end."""
    _style(axes, "Validation error", "epoch", "wrong, %")
    validation = [line for line in lines if "val_top1_error_percent" in line]
    if not validation:
        axes.text(0.5, 0.5, "not validated yet", transform=axes.transAxes, ha="center", color=GREY)
        return
    epochs, ten = [line["epoch"] for line in validation], [line for line in lines if "val_ten_view_top1_error_percent" in line]
    for best, colour in ((1, BLUE), (5, ORANGE)):
        errors = [line[f"val_top{best}_error_percent"] for line in validation]
        axes.plot(epochs, errors, color=colour, linewidth=1.6, marker="o", markersize=3, label=f"top-{best}, centre view: {errors[-1]:.1f} %")
        if ten:
            error = ten[-1][f"val_ten_view_top{best}_error_percent"]
            label = f"top-{best}, ten views: {error:.1f} %"
            axes.plot(epochs[-1:], [error], "D", color=colour, markerfacecolor="white", markersize=6, label=label, clip_on=False, zorder=5)
        chance = 100 * (1 - best / classes)
        if chance > 0:
            _chance(axes, chance, f"chance, top-{best}: {chance:.{0 if chance == round(chance) else 1}f} %", colour, below=best == 5)
    axes.set_xlim(0, epochs[-1] + 0.3)
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.legend(loc="upper right", bbox_to_anchor=(1, min(0.9, 0.99 - 1 / classes)), fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")


def silent_shares(lines: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """(step, percent) of each layer's units that fired on none of the pictures looked at, means of the columns."""
    found: dict[str, dict[int, list[float]]] = {}
    for line in lines:
        for key, value in line.items():
            if named := SILENT.fullmatch(key):
                found.setdefault(named[1], {}).setdefault(line["step"], []).append(value)
    return {layer: [(step, sum(values) / len(values)) for step, values in looks.items()] for layer, looks in found.items()}


def draw_silent(axes: Axes, shares: dict[str, list[tuple[int, float]]]) -> None:
    _style(axes, "Units that never fire, on at most 32 pictures", "step", "of a layer, %")
    for number, (layer, looks) in enumerate(shares.items()):
        axes.plot(*zip(*looks, strict=True), color=f"C{number}", linewidth=1.6, marker="o", markersize=3, label=f"{layer}: {looks[-1][1]:.1f} %")
    axes.set_ylim(0, 1.12 * max([1.0, *(share for looks in shares.values() for _, share in looks)]))
    axes.set_xlim(0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)


def draw_kernels(kernels: Kernels) -> Figure:
    """All first-layer kernels, as the training drew them (Figure 3 of the paper), with words."""
    margin, title, foot = 0.2, 0.45, 0.45  # inches
    height = (WIDTH - 2 * margin) * kernels.sheet.shape[0] / kernels.sheet.shape[1]
    total = height + title + foot
    figure = Figure(figsize=(WIDTH, total))
    axes = figure.add_axes((margin / WIDTH, foot / total, 1 - 2 * margin / WIDTH, height / total))
    axes.imshow(kernels.sheet, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("Kernels of conv1, column 0 above column 1", loc="left", fontsize=11, fontweight="bold", color=INK)
    words = f"after step {kernels.step:,}; each kernel scaled to its own range, grey is zero"
    figure.text(margin / WIDTH, 0.15 / total, words, fontsize=9, color=GREY)
    return figure


def shown_pictures(predictions: list[Prediction], shards: ShardSet) -> list[Shown]:
    """Pictures and names of the predictions. Raises InputError for shards that they were not made on."""
    names, found, remedy = [class_name(entry) for entry in shards.manifest.classes], [], "give the shards of the training (--shards)"
    for prediction in predictions:
        if prediction.id >= len(shards) or max(guess.label for guess in prediction.best) >= len(names):
            raise InputError(f"predictions.json names a picture or class that {shards.folder} does not have; {remedy}")
        picture, label = decoded(shards, prediction.id)
        if label != prediction.label:
            raise InputError(f"picture {prediction.id} is of another class in {shards.folder} than in predictions.json; {remedy}")
        guesses = [(names[guess.label], guess.probability, guess.label == label) for guess in prediction.best]
        found.append(Shown(picture, names[label], guesses))
    return found


def draw_predictions(shown: list[Shown]) -> Figure:
    """Pictures with their classes under them and the best guesses as bars, four in a row (Figure 4 of the paper)."""
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(WIDTH * max(across, 2) / 4, 4.0 * down + 0.1))
    margins = {"left": 0.02, "right": 0.98, "top": 0.985, "bottom": 0.02, "hspace": 0.2, "wspace": 0.1}
    grid = figure.add_gridspec(2 * down, across, height_ratios=[2.35, 1.2] * down, **margins)
    for i, one in enumerate(shown):
        row, column = 2 * (i // across), i % across
        picture, bars = figure.add_subplot(grid[row, column]), figure.add_subplot(grid[row + 1, column])
        picture.imshow(one.picture)
        picture.set_xticks([])
        picture.set_yticks([])
        picture.set_xlabel(one.name, fontsize=10, fontweight="bold", color=INK, labelpad=5)
        picture.spines[:].set_color(LIGHT)
        draw_guesses(bars, one.guesses)
    return figure


def draw_guesses(axes: Axes, guesses: list[tuple[str, float, bool]]) -> None:
    """(name, probability, right) as horizontal bars with their words on them; the right one is orange."""
    for place, (name, probability, right) in enumerate(guesses):
        colour = "#f6a56b" if right else "#b5cdea"
        axes.barh(place, probability, height=0.84, left=0, color=colour)
        axes.text(0.02, place, name, va="center", fontsize=8.5, color=INK, fontweight="bold" if right else "normal", clip_on=True)
        axes.text(0.985, place, f"{100 * probability:.1f} %", va="center", ha="right", fontsize=7.5, color="#555b63")
    axes.set_xlim(0, 1)
    axes.set_ylim(4.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LIGHT)


def plot_run(run: Path, folder: Path) -> None:
    """Write the three pictures, each path said when its file is there. Raises InputError."""
    lines, wnids, kernels = read_metrics(run), read_wnids(run), read_kernels(run)
    shards = ShardSet(folder, "val")
    if [entry.wnid for entry in shards.manifest.classes] != wnids:
        raise InputError(f"{folder} has other classes than {run} was trained on; give the shards of its training (--shards)")
    write_png(draw_curves(lines, len(wnids)), run / "curves.png")
    write_png(draw_kernels(kernels), run / "kernels.png")
    if not (run / "predictions.json").exists():
        print("the run is not finished, so there are no predictions to draw yet", file=sys.stderr)
        return
    write_png(draw_predictions(shown_pictures(read_predictions(run), shards)), run / "predictions.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pictures of a training run: curves, first-layer kernels, predictions.")
    parser.add_argument("--run", type=Path, required=True, help="folder that model.train wrote")
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards (default: shards/)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        plot_run(given.run, given.shards)
    return 0


if __name__ == "__main__":
    sys.exit(main())
