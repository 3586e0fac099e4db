"""A picture of what the network is fed: training images, and copies of them as the loader's graph augments them.

python tools/show_batch.py [--shards shards/] [--out augmented.png] [--colour eigenvalue|stddev|none] [--scale 256,512]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.augment import Augmentation, mean_for, training_draws
from pipeline.colour import ColourStats, read_colour_stats
from pipeline.draws import Draws, fixed
from pipeline.errors import InputError, one_line_errors
from pipeline.graph import Decoder, Fed
from pipeline.order import order
from pipeline.scaled import Scale
from pipeline.settings import check_shape
from pipeline.shards import ShardSet
from tools.plot_run import GREY, INK, WIDTH, class_name, decoded, write_png

IMAGES, EPOCHS = 8, 7  # rows, and augmented copies in a row
LOOKED_AT = 256  # training images among which those of different classes are looked for


@dataclass(frozen=True)
class Copies:
    """The images as one epoch has them. pictures: (n, crop, crop, 3) uint8, mean added back; shift: (n, 3) grey levels."""

    pictures: np.ndarray
    draws: Draws
    shift: np.ndarray


def choose_images(shards: ShardSet, seed: int) -> np.ndarray:
    """Ids of up to eight images of as many different classes as there are among the first of an epoch."""
    first = order(seed, 0, len(shards))[:LOOKED_AT]
    seen: Counter[int] = Counter()
    rank = []
    for sample in first:
        _, label = shards.read(int(sample))
        rank.append(seen[label])
        seen[label] += 1
    return first[np.argsort(rank, kind="stable")[:IMAGES]]


def augmented(shards: ShardSet, stats: ColourStats, ids: np.ndarray, augmentation: Augmentation, seed: int) -> list[Copies]:
    """What training with `seed` is fed for `ids` in its first epochs, through the loader's draws, colour shift and DALI graph."""
    mean = mean_for(augmentation, stats)
    jpegs = [shards.read(int(sample))[0] for sample in ids]
    draws = [training_draws(augmentation, len(stats.mean_image), seed, epoch, ids, ids) for epoch in range(EPOCHS)]
    shifts = [stats.shift(d.normals, augmentation.colour, augmentation.sigma) for d in draws]
    decoder = Decoder(
        "float32",
        augmentation=augmentation,
        mean_image=mean,
        batch=len(ids),
        threads=len(os.sched_getaffinity(0)),
        device=torch.device("cpu"),
    )
    copies = []
    for one, shift in zip(draws, shifts, strict=True):
        decoder.schedule(Fed(jpegs, one, shift))
        copies.append(Copies(viewable(decoder.take().numpy(), one, mean), one, shift))
    return copies


def viewable(finished: np.ndarray, draws: Draws, mean_image: np.ndarray) -> np.ndarray:
    """Finished pictures, (n, 3, crop, crop) float32, with the mean image of their windows added back: (n, crop, crop, 3) uint8."""
    crop, pictures = finished.shape[-1], []
    if draws.sides is not None:  # the mean colour, the same in every window
        draws = fixed(len(finished), 0, 0)
    for picture, x, y, flip in zip(finished, draws.x, draws.y, draws.flip, strict=True):
        mean = mean_image[y : y + crop, x : x + crop][:, :: -1 if flip else 1]
        pictures.append(np.clip(np.rint(picture.transpose(1, 2, 0) + mean), 0, 255).astype(np.uint8))
    return np.stack(pictures)


def draw_batch(originals: list[np.ndarray], names: list[str], copies: list[Copies], colour: str) -> Figure:
    """A row for each image: its class, itself, and its copies with window offset, mirroring and colour shift under them."""
    rows, columns = len(originals), len(copies) + 1
    label, gap, words, top = 1.05, 0.05, 0.16 + 0.13 * (colour != "none"), 0.62  # inches
    side = (WIDTH - label - gap * (columns + 1)) / columns
    height = top + rows * (side + words + gap) + 0.05
    figure = Figure(figsize=(WIDTH, height))

    def cell(row: int, column: int) -> Axes:
        left, bottom = label + column * (side + gap), height - top - row * (side + words + gap) - side
        return figure.add_axes((left / WIDTH, bottom / height, side / WIDTH, side / height))

    for row, (original, name) in enumerate(zip(originals, names, strict=True)):
        axes = cell(row, 0)
        _show(axes, original, "")
        axes.text(-0.08, 0.5, fill(name, 12), transform=axes.transAxes, ha="right", va="center", fontsize=8, fontweight="bold", color=INK)
        for column, copy in enumerate(copies, start=1):
            _show(cell(row, column), copy.pictures[row], _caption(copy, row, colour))
    crop = copies[0].pictures.shape[1]
    for column in range(columns):
        text = "original" if column == 0 else f"epoch {column}"
        figure.text((label + column * (side + gap) + side / 2) / WIDTH, 1 - (top - 0.06) / height, text, ha="center", fontsize=9, color=INK)
    shift = "no colour shift" if colour == "none" else f"shift of R, G, B in grey levels ({colour} rule)"
    height_of, width_of = originals[0].shape[:2]
    how = f"{width_of} x {height_of} pixels; under each copy: offset x, y of its window"
    if copies[0].draws.sides is not None:
        how = "whole pictures; under each copy: pixels that their shorter side is resized to"
    legend = f"{crop} x {crop} of {how}, ↔ if mirrored; {shift}"
    figure.text(label / WIDTH, 1 - 0.24 / height, legend, fontsize=8, color=GREY)
    return figure


def _show(axes: Axes, picture: np.ndarray, caption: str) -> None:
    axes.imshow(picture)
    axes.set_axis_off()
    axes.text(0.5, -0.03, caption, transform=axes.transAxes, ha="center", va="top", fontsize=6.5, color=INK, linespacing=1.15)


def _caption(copies: Copies, row: int, colour: str) -> str:
    d = copies.draws
    window = (f"{d.x[row]}, {d.y[row]}" if d.sides is None else f"{d.sides[row]}") + "  ↔" * int(d.flip[row])
    if colour == "none":
        return window
    return window + "\n" + "  ".join(f"{round(float(value), 1) + 0.0:+.1f}" for value in copies.shift[row]).replace("-", "\N{MINUS SIGN}")


def show_batch(folder: Path, out: Path, augmentation: Augmentation, seed: int) -> None:
    """Draw the augmented training images of `folder` into `out`. Raises InputError."""
    if out.is_dir() or (out.parent != folder and not out.parent.is_dir()):
        raise InputError(f"{out} cannot be written: {'it is a folder' if out.is_dir() else 'its folder does not exist'}; name another file (--out)")
    shards = ShardSet(folder, "train")
    check_shape(shards, augmentation)
    size = shards.manifest.settings.size
    if not 1 <= augmentation.crop <= augmentation.side(size):
        raise InputError(f"--crop must be from 1 to the {size} pixels of {folder}, not {augmentation.crop}")
    if not len(shards):
        raise InputError(f"{folder} has no training pictures; make the shards again")
    stats = read_colour_stats(folder, shards.digest, size)
    ids = choose_images(shards, seed)
    originals, labels = zip(*(decoded(shards, int(sample)) for sample in ids), strict=True)
    names = [class_name(shards.manifest.classes[label]) for label in labels]
    write_png(draw_batch(list(originals), names, augmented(shards, stats, ids, augmentation, seed), augmentation.colour), out)


def _scale(text: str) -> Scale:
    try:
        low, high = (int(side) for side in text.split(","))
    except ValueError:
        raise InputError(f"--scale must be two numbers of pixels, such as 256,512, not {text}") from None
    return low, high


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A picture of training images and of what the network is fed for them.")
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards (default: shards/)")
    parser.add_argument("--out", type=Path, default=Path("augmented.png"), help="PNG to write (default: augmented.png)")
    parser.add_argument("--crop", type=int, default=227, help="side of the window in pixels (default: 227)")
    parser.add_argument("--colour", choices=("eigenvalue", "stddev", "none"), default="eigenvalue", help="colour shift (default: the paper's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    parser.add_argument("--scale", metavar="LO,HI", help="shorter sides that pictures are resized to, such as 256,512 (default: as they are)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        if not 0 <= given.seed < 2**64:
            raise InputError(f"--seed must be from 0 to 2^64 - 1, not {given.seed}")
        scale = None if given.scale is None else _scale(given.scale)
        augmentation = Augmentation(given.crop, "same" if scale is None else "channel", given.colour, scale=scale)
        show_batch(given.shards, given.out, augmentation, given.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
