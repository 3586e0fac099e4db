"""Shard folders of any number of shards or classes, of flat pictures, made in seconds for tools/bench_growth.py."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.colour import ColourStats, statistics_of, write_colour_stats
from pipeline.manifest import FORMAT_VERSION, ClassEntry, Manifest, Settings, Shard, Source, Split, SplitName, classes_digest, read_manifest
from pipeline.manifest import write_manifest as write
from pipeline.tarshard import WrittenShard, write_shard

SIZE = 256  # pixels a side
WRITERS = 16  # threads: each write waits for the disk four times

Written = tuple[Path, WrittenShard]  # a tar, its index beside it


def pictures(count: int) -> list[bytes]:
    """JPEGs of one colour each, 1.7 kB."""
    found = []
    for number in range(count):
        data = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (number * 53 % 256, 100, 200)).save(data, "JPEG", quality=90)
        found.append(data.getvalue())
    return found


def write_shards(folder: Path, shards: int, samples: int, classes: int = 10) -> list[Written]:
    """`shards` different shards of `samples` pictures each, in a new folder; their labels go through the classes in turn."""
    folder.mkdir(parents=True)
    drawn = pictures(10)

    def one(number: int) -> Written:
        first, path = number * samples, folder / f"{number:06d}.tar"
        named = [(f"n{sample:08d}_{sample}", drawn[sample % 10], sample % classes) for sample in range(first, first + samples)]
        return path, write_shard(path, named)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(one, range(shards)))


def class_table(count: int) -> tuple[ClassEntry, ...]:
    """As long as ImageNet's: a wnid, and two names of 20 letters together."""
    return tuple(ClassEntry(index=k, wnid=f"n{k:08d}", ilsvrc_id=k + 1, words=f"drawing {k:05d}, {k:05d}") for k in range(count))


def lay_folder(folder: Path, splits: dict[SplitName, list[Written]], classes: int = 10) -> Path:
    """A folder to train on, of hard links to written shards, of which one may stand many times; manifest and statistics are its own."""
    folder.mkdir(parents=True)
    found: dict[SplitName, Split] = {}
    for split, written in splits.items():
        shards = []
        for number, (path, made) in enumerate(written):
            name = f"{split}-{number:06d}.tar"
            for suffix in (".tar", ".idx"):
                os.link(path.with_suffix(suffix), (folder / name).with_suffix(suffix))
            shards.append(Shard(name=name, samples=made.samples, bytes=made.bytes, sha256=made.sha256))
        found[split] = Split(samples=sum(shard.samples for shard in shards), shards=tuple(shards))
    settings, table = Settings(size=SIZE, quality=90, shard_size=max(made.samples for _, made in splits["train"]), seed=0), class_table(classes)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        settings=settings,
        source=Source(kind="class-folders", sha256="0" * 64),
        classes=table,
        classes_sha256=classes_digest(table),
        splits=found,
        rejected=(),
    )
    write(folder, manifest)
    count, total, products = 100, np.full(3, 100 * 128), np.diag([100 * 128**2 + 1000.0] * 3) + 100 * 128**2
    statistics = statistics_of(count, total, products, 1, read_manifest(folder)[1])
    write_colour_stats(folder, ColourStats(statistics, np.full((SIZE, SIZE, 3), 128, np.float32)))
    return folder
