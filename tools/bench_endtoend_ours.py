"""Our own training in tools/bench_endtoend.py: model.run's Run, its loader and model.loop's step, as `python -m model.train` puts them together."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.deterministic import set_deterministic
from model.evaluate import evaluate
from model.layout import Layout
from model.loop import enter_epoch, one_step
from model.memory import keep_freed_memory
from model.pictures import Source, augmentation
from model.recipe import Recipe
from model.run import Run, build_run
from pipeline.batch import Batch
from pipeline.cache import CacheSettings, Pixels, Where, room_for
from pipeline.colour import ColourStats
from pipeline.errors import InputError
from pipeline.loader import ImageLoader
from pipeline.shards import ShardSet
from pipeline.turbojpeg_planes import check_planes
from tools.bench_endtoend_clock import Losses, Supply

VALIDATED = {"cuda": 8192, "cpu": 128}  # pictures of a validation that is measured


@dataclass(frozen=True)
class Setup:
    """What all rows of one batch share. recipe: with this batch and no cache; labels: (samples,) int64, by id; folder: for what runs write."""

    shards: ShardSet
    stats: ColourStats
    labels: np.ndarray
    recipe: Recipe
    threads: int
    device: torch.device
    folder: Path

    @property
    def batch(self) -> int:
        return self.recipe.train.batch

    @property
    def classes(self) -> int:
        return len(self.shards.manifest.classes)


def prepare(device: torch.device, threads: int) -> None:
    """What model.train does to its process; it uses all cores. The peers run in it, and have the good of it too."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    keep_freed_memory(device)
    set_deterministic(False, device)


def begin_run(s: Setup, name: str, pixels: Pixels | None = None) -> Run:
    """A run at its beginning. pixels: what its cache of decoded pictures holds, None for no cache. Raises InputError."""
    recipe = s.recipe
    if pixels is not None:
        where: Where = "host" if s.device.type == "cpu" else "device"
        _check_room(s, CacheSettings(where, pixels))
        data = recipe.data.model_copy(update={"cache": where, "cache_pixels": pixels})
        recipe = recipe.model_copy(update={"data": data})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return build_run(s.folder / name, recipe, Layout(device=s.device), Source(str(s.shards.folder), s.threads))
    finally:
        for number, handler in handlers.items():  # a run notes Ctrl-C for its loop, and ours is another
            signal.signal(number, handler)


def _check_room(s: Setup, cache: CacheSettings) -> None:
    """Raises InputError where the cache would hold a part only, and the row would decode the others."""
    if cache.pixels == "yuv420":
        check_planes(len(s.stats.mean_image))
    room = room_for(cache, len(s.shards), len(s.stats.mean_image), s.device)
    if room.fit < len(s.shards):
        raise InputError(f"{room}; to measure the cache alone, give shards of fewer samples")


def supply_of(run: Run, cached: bool) -> Supply:
    """The run's own batches. The first epoch of a cached run, which decodes, is not counted."""

    def epoch() -> Iterator[Batch]:
        enter_epoch(run)
        return iter(run.train)

    return Supply(epoch, lambda: len(run.train), int(cached))


@dataclass
class StepOfRun:
    """One step as the loop takes it; losses are read as often as the loop reads them to log them."""

    run: Run
    losses: Losses

    def __call__(self, batch: Batch) -> None:
        one_step(self.run, batch)
        if self.losses.add(self.run.window.losses[-1]):
            self.run.window.losses.clear()


def validation_rate(s: Setup, run: Run) -> float:
    """Images a second of model.evaluate over centre views, the loader's start and end included; the second pass counts.

    VALIDATED pictures are a sixth of ImageNet's 50,000 at most, so that start and end weigh more here than there. They are training
    pictures in stored order: benchmark shards have no others.
    """
    loader = ImageLoader(
        s.shards.folder,
        "train",
        batch=s.batch,
        views="centre",
        augmentation=augmentation(s.recipe),
        device=s.device,
        threads=s.threads,
        decoder=s.recipe.data.decoder,
    )
    run.take_step.settle()
    first, rate = max(0, len(s.shards) - VALIDATED[s.device.type]), 0.0
    for _ in range(2):
        loader.epoch, loader.position = 0, first
        began = time.perf_counter()
        rate = evaluate(run.net, loader, run.layout).images / (time.perf_counter() - began)
    return rate
