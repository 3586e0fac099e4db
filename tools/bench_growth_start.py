"""A training's start, in a fresh process: from its beginning to the first batch in hand, and the parts of that; prints one line of JSON.

    python -m tools.bench_growth_start --shards DIR --asked SECONDS [--batch 8]

asked: of the system's monotonic clock, when the process was started. Everything that model.train imports is imported; the net, whose
construction does not depend on the shards, is not built.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model.train  # noqa: F401 - its imports are a part of the start
from pipeline.colour import read_colour_stats
from pipeline.loader import ImageLoader
from pipeline.manifest import read_manifest
from pipeline.order import order, windowed_order
from pipeline.shards import ShardSet

READS = 1000  # pictures read for the time of one
WINDOW = 16


def seconds(work: Callable[[], Any]) -> float:
    """The least of two."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def start(shards: Path, asked: float, batch: int) -> dict[str, float]:
    """Seconds to the first batch in hand, `start`, and of the parts of it that depend on shards or samples; MB of the process at its most."""
    imported = time.monotonic() - asked
    began = time.perf_counter()
    loader = ImageLoader(shards, "train", batch=batch)
    opened = time.perf_counter() - began
    batches = iter(loader)
    next(batches)
    found = {"start": time.monotonic() - asked, "imports": imported, "loader": opened, "first_batch": time.perf_counter() - began - opened}
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    batches.close()  # type: ignore[attr-defined]
    loader.ids_of(1)  # as long as the loader's own thread takes for it, which then disturbs no clock
    return {**found, **parts(shards, loader)}


def parts(shards: Path, loader: ImageLoader) -> dict[str, float]:
    """Seconds of each part by itself, and microseconds of a picture read in the epoch's order."""
    first, samples, size = loader.shards.first, len(loader.shards), loader.shards.manifest.settings.size
    digest, ids = loader.shards.digest, loader.ids_of(0)
    manifest = seconds(lambda: read_manifest(shards))
    chosen = ids[:: max(1, samples // READS)][:READS].tolist()
    return {
        "manifest": manifest,
        "indexes": max(seconds(lambda: ShardSet(shards, "train")) - manifest, 0.0),
        "colour": seconds(lambda: read_colour_stats(shards, digest, size)),
        "order": seconds(lambda: order(0, 2, samples)),
        "windowed": seconds(lambda: windowed_order(0, 2, first, WINDOW)),
        "read": seconds(lambda: [loader.shards.read(sample) for sample in chosen]) / len(chosen) * 1e6,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A training's start; see tools/bench_growth.py.")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--asked", type=float, required=True)
    parser.add_argument("--batch", type=int, default=8)
    given = parser.parse_args(arguments)
    print(json.dumps(start(given.shards, given.asked, given.batch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
