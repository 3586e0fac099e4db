"""The first shards of a set, which speeds are measured on: brought here, and as a folder of their own."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.colour import ColourStats, statistics_of, write_colour_stats
from pipeline.manifest import Split, read_manifest, write_manifest
from pipeline.shards import ShardSet

NEAR, NEAR_REMOTE, CACHED = 20_000, 2_048, 4_096  # samples measured on, in whole shards; fewer to fetch, fewer to cache


def near_shards(shards: ShardSet, samples: int) -> int:
    """How many of the first shards have so many samples, at least one and at most all."""
    return min(max(1, int(np.searchsorted(shards.first, samples))), len(shards.shards))


def measured_shards(shards: ShardSet) -> int:
    """How many of the first shards the stages are measured on; no others of a set at a URL are fetched."""
    return near_shards(shards, NEAR_REMOTE if shards.is_remote else NEAR)


def cached_shards(shards: ShardSet) -> int:
    """How many of these the caches are measured on."""
    return min(near_shards(shards, CACHED), measured_shards(shards))


@contextmanager
def fetched(shards: ShardSet) -> Iterator[float | None]:
    """Of a set at a URL, the first shards held here; yields images per second of fetching them, None when none had to be."""
    count = measured_shards(shards) if shards.is_remote else 0
    far = sum(shard.samples for shard in shards.shards[:count] if not (shards.folder / shard.name).exists())
    begun, never = time.perf_counter(), threading.Event()
    try:
        for shard in range(count):
            shards.bring(shard, never)
        yield far / (time.perf_counter() - begun) if far else None
    finally:
        shards.close()


@contextmanager
def only_first(shards: ShardSet, count: int, stats: ColourStats | None) -> Iterator[Path]:
    """A folder of shards with links to the first `count` of a set; stats None: stand-ins, which are as much work to apply."""
    size, some = shards.manifest.settings.size, shards.shards[:count]
    stats = stats or ColourStats(statistics_of(1, np.zeros(3), np.zeros((3, 3)), 1, ""), np.full((size, size, 3), 128, np.float32))
    with tempfile.TemporaryDirectory(prefix="inspect-") as name:
        folder = Path(name)
        for shard in some:
            for link in (folder / shard.name, (folder / shard.name).with_suffix(".idx")):
                link.symlink_to(shards.folder.resolve() / link.name)
        train = Split(samples=sum(shard.samples for shard in some), shards=some)
        write_manifest(folder, shards.manifest.model_copy(update={"splits": {"train": train}, "rejected": ()}))
        digest = read_manifest(folder)[1]
        write_colour_stats(folder, replace(stats, statistics=stats.statistics.model_copy(update={"manifest_sha256": digest})))
        yield folder
