"""How fast the disk or file system under a set of shards gives them: one behind the other, and one sample at a time."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadSample
from pipeline.order import order
from pipeline.shards import BLOCK, ShardSet

_BEFORE, _DROPPED = 8 << 10, 1 << 20  # bytes before a sample, and in all, that leave the page cache: a sample is shorter
_MEMORY = 0.3  # of the rate at once after: what comes so fast is not held up by a disk


@dataclass(frozen=True)
class Storage:
    """Images per second. sequential, single: with the page cache emptied of what is read, in blocks of 8 MiB and one sample at a
    time in a permuted order; again: each of these samples at once after, from memory. sample_bytes: of one, in the tar, on average."""

    sequential: float
    single: float
    again: float
    sample_bytes: float

    @property
    def is_memory(self) -> bool:
        """It is memory, or as fast, or the page cache cannot be emptied."""
        return self.single > _MEMORY * self.again


def measure_storage(shards: ShardSet, seconds: float) -> Storage:
    """On one thread, as the loader reads; at most about `seconds` for each number."""
    sample_bytes = sum(shard.bytes for shard in shards.shards) / len(shards)
    sequential = _sequential(shards, seconds) / sample_bytes
    count, cold, warm = 0, 0.0, 0.0
    for sample in order(0, 0, len(shards)).tolist():
        path, _, offset = shards.place(sample)
        _drop(path, max(0, offset - _BEFORE), _DROPPED)
        cold += _timed(shards, sample)
        warm += _timed(shards, sample)
        count += 1
        if cold > seconds:
            break
    return Storage(sequential, count / cold, count / warm, sample_bytes)


def _timed(shards: ShardSet, sample: int) -> float:
    begun = time.perf_counter()
    with suppress(BadSample):  # its bytes were read, and it is named elsewhere
        shards.read(sample)
    return time.perf_counter() - begun


def _sequential(shards: ShardSet, seconds: float) -> float:
    """Bytes per second of shards from all over the set, each read through."""
    got, spent = 0, 0.0
    for number in order(0, 0, len(shards.shards)).tolist():
        path = shards.folder / shards.shards[number].name
        _drop(path, 0, 0)
        begun = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while spent + time.perf_counter() - begun < seconds and (block := file.read(BLOCK)):
                got += len(block)
        spent += time.perf_counter() - begun
        if spent >= seconds:
            break
    return got / spent


def _drop(path: Path, start: int, length: int) -> None:
    """Put a stretch of a file, all of it for 0, 0, out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
