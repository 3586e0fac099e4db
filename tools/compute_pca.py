"""Colour statistics of every pixel of the training shards, and the mean image, written beside them.

python tools/compute_pca.py [--shards shards/]
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.colour import ColourStats, read_colour_stats, statistics_of, write_colour_stats
from pipeline.errors import InputError, one_line_errors
from pipeline.shards import ShardSet

CHUNK = 256  # samples a task


@dataclass
class Sums:
    """Exact integer sums over pixels 0..255. picture: (size, size, 3) uint32; products: (3, 3) int64, sum of x x^T."""

    picture: np.ndarray
    products: np.ndarray
    images: int = 0

    def add(self, pixels: np.ndarray) -> None:
        """Add one picture, (size, size, 3) uint8. One picture's products are below 2^53, so float64 has them exactly."""
        self.picture += pixels
        flat = pixels.reshape(-1, 3).astype(np.float64)
        self.products += (flat.T @ flat).astype(np.int64)
        self.images += 1

    def merge(self, other: Sums) -> None:
        self.picture += other.picture
        self.products += other.products
        self.images += other.images


def empty_sums(size: int) -> Sums:
    return Sums(np.zeros((size, size, 3), np.uint32), np.zeros((3, 3), np.int64))


def colour_stats(sums: Sums, manifest_sha256: str) -> ColourStats:
    """Statistics of pixels in [0, 1] and the mean image in 0..255 from exact sums."""
    size = len(sums.picture)
    total = sums.picture.astype(np.int64).sum(axis=(0, 1))
    statistics = statistics_of(sums.images * size * size, total, sums.products, sums.images, manifest_sha256)
    return ColourStats(statistics, (sums.picture / sums.images).astype(np.float32))


_shards: ShardSet | None = None


def _open_shards(folder: Path) -> None:
    global _shards
    _shards = ShardSet(folder, "train")


def _sum_samples(samples: range) -> Sums:
    assert _shards is not None, "the worker was started by _open_shards"
    size = _shards.manifest.settings.size
    sums = empty_sums(size)
    for sample in samples:
        jpeg, _ = _shards.read(sample)
        try:
            pixels = np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            path, key, offset = _shards.place(sample)
            raise InputError(f"{path}: sample {key} at offset {offset} cannot be decoded ({error}); make this shard again") from None
        if pixels.shape != (size, size, 3):
            path, key, offset = _shards.place(sample)
            raise InputError(
                f"{path}: sample {key} at offset {offset} is {pixels.shape[1]}x{pixels.shape[0]}, not {size}x{size}; make this shard again"
            )
        sums.add(pixels)
    return sums


def compute_pca(folder: Path, workers: int) -> ColourStats:
    """Statistics over every pixel of the training shards of `folder`, on `workers` processes. Raises InputError."""
    shards = ShardSet(folder, "train")
    if not len(shards):
        raise InputError(f"{folder} has no training pictures; make the shards again")
    tasks = [range(start, min(start + CHUNK, len(shards))) for start in range(0, len(shards), CHUNK)]
    sums = empty_sums(shards.manifest.settings.size)
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(total=len(shards), unit=" pictures", desc="colours", mininterval=0.5 if sys.stderr.isatty() else 30) as bar,
        ProcessPoolExecutor(min(workers, len(tasks)), context, _open_shards, (folder,)) as pool,
    ):
        for future in as_completed([pool.submit(_sum_samples, task) for task in tasks]):
            part = future.result()
            sums.merge(part)
            bar.update(part.images)
    return colour_stats(sums, shards.digest)


def _print(stats: ColourStats) -> None:
    s = stats.statistics
    print(f"  {s.images:,} pictures, {s.pixels:,} pixels; pixels as value / 255")
    print("  mean        " + "  ".join(f"{value:.4f}" for value in s.mean))
    print("  eigenvalues " + "  ".join(f"{value:.5f}" for value in s.eigenvalues))
    print("  stddevs     " + "  ".join(f"{value:.4f}" for value in s.stddevs))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Colour statistics (Fancy PCA) and mean image of the training shards.")
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards (default: shards/)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        if given.workers < 1:
            raise InputError(f"--workers must be at least 1, not {given.workers}")
        shards = ShardSet(given.shards, "train")
        try:
            stats = read_colour_stats(given.shards, shards.digest, shards.manifest.settings.size)
            print(f"{given.shards} has its colour statistics already")
        except InputError:  # missing, or of other shards: that is what this program is for
            stats = compute_pca(given.shards, given.workers)
            write_colour_stats(given.shards, stats)
        _print(stats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
