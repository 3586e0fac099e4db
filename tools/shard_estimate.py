"""Before the work: how large the shards will be and how long they will take, from a sample of the source's pictures."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pipeline.errors import InputError
from pipeline.manifest import Settings
from tools.picture import PictureError, convert
from tools.shard_worker import read_entry
from tools.sources import Listing, read_stream

SAMPLE = 64  # pictures; their mean size is within some 5 % of the whole's
OVERHEAD = 2048 + 512  # bytes of a sample in a tar beside its JPEG: two headers, the label, rounding up; and its line in the index
SPARE = 64 << 20  # bytes for what else is written, and for what the sample does not show


@dataclass(frozen=True)
class Estimate:
    """bytes_a_picture: in a shard, with its headers; seconds_a_picture: to convert, on one core; sampled: pictures that could be
    converted, of `tried`."""

    bytes_a_picture: float
    seconds_a_picture: float
    sampled: int
    tried: int


def estimate(listing: Listing, settings: Settings) -> Estimate:
    """Convert a sample, evenly spread where the source can be read anywhere, else its first pictures. Raises InputError."""
    sizes, seconds, tried = list[int](), list[float](), 0
    for data in _sample(listing):
        tried += 1
        began = time.perf_counter()
        try:
            sizes.append(len(convert(data, settings).jpeg))
        except PictureError:  # it will be listed when its turn comes
            continue
        seconds.append(time.perf_counter() - began)
    if not sizes:
        raise InputError("none of the pictures that were looked at can be decoded; is this the right source?")
    rest = seconds[1:] or seconds  # the first waits for the kernels to be compiled
    return Estimate(sum(sizes) / len(sizes) + OVERHEAD, sum(rest) / len(rest), len(sizes), tried)


def _sample(listing: Listing) -> Iterator[bytes]:
    entries = list(chain.from_iterable(listing.splits.values()))
    if listing.streamed:
        first = next(iter(entries), None)
        if first is not None:
            count = min(SAMPLE, sum(entry.file == first.file for entry in entries[:SAMPLE]))
            yield from read_stream(first.file, first.offset, count)
        return
    for k in range(0, len(entries), max(len(entries) // SAMPLE, 1)):
        try:
            yield read_entry(entries[k])
        except PictureError:
            continue


def check_space(out: Path, needed: float) -> int:
    """Free bytes where `out` is or will be. Raises InputError when `needed` are not there, or nothing may be written."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise InputError(f"{out} cannot be written: {place} does not allow it; mend its rights or choose another --out")
    free = shutil.disk_usage(place).free
    if needed + SPARE > free:
        raise InputError(f"{out}: about {gigabytes(needed)} are needed and {gigabytes(free)} are free; free space or choose another --out")
    return free


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
