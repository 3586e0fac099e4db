"""What a worker process of make_shards does: the pictures of one shard, converted and written."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.manifest import Settings
from pipeline.tarshard import write_shard
from tools.picture import PictureError, convert
from tools.sources import Entry


@dataclass(frozen=True)
class Task:
    """One shard to make."""

    split: str
    path: Path
    entries: list[Entry]
    settings: Settings


@dataclass(frozen=True)
class Done:
    """One shard made. samples may be fewer than planned, or none, when files were rejected; rejected: (name, reason)."""

    split: str
    name: str
    samples: int
    bytes: int
    sha256: str
    rejected: list[tuple[str, str]]


_counter: Any = None


def start_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no worker outlives a killed parent and writes on


def make_shard(task: Task) -> Done:
    """In a worker: convert the pictures of one shard and write it."""
    samples, rejected = [], []
    for entry in task.entries:
        try:
            jpeg = convert(_read(entry), task.settings.size, task.settings.quality)
            samples.append((entry.key, jpeg, entry.label))
        except PictureError as error:
            rejected.append((entry.name, str(error)))
        with _counter.get_lock():
            _counter.value += 1
    if not samples:
        return Done(task.split, task.path.name, 0, 0, "", rejected)
    written = write_shard(task.path, samples)
    return Done(task.split, task.path.name, written.samples, written.bytes, written.sha256, rejected)


def _read(entry: Entry) -> bytes:
    try:
        with open(entry.file, "rb") as file:
            data = os.pread(file.fileno(), entry.size, entry.offset)
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}") from None
    if len(data) != entry.size:
        raise PictureError(f"only {len(data)} of its {entry.size} bytes could be read")
    return data
