"""A split of a shard folder: every sample by its id, checked by size before the first is read."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.errors import BadSample, InputError
from pipeline.jpeg_header import size_fault
from pipeline.manifest import Manifest, Shard, no_collection, read_manifest
from pipeline.remote import RemoteShards, is_url
from pipeline.tarshard import Index, read_index, read_sample, tar_bytes

OPEN_FILES = 256  # descriptors kept at once; a full ImageNet has more shards than some systems allow open files
READERS, STRETCH = 16, 32  # threads that read indexes on opening, and shards that each takes at a time
END_OF_IMAGE = b"\xff\xd9"
BLOCK = 8 << 20  # bytes read at once where a shard is brought near


def remote_shards(url: str, local: Path | None, local_gb: float | None) -> RemoteShards:
    """local, local_gb: see ShardSet. Raises InputError."""
    if local_gb is not None and not 0 < local_gb < 1e9:
        raise InputError(f"--local-gb must be a number of 10^9 bytes above 0, not {local_gb}")
    return RemoteShards(url, local, None if local_gb is None else int(local_gb * 1e9))


class ShardSet:
    """The samples of one split ("train", "val" or "test"), numbered 0 .. len - 1 through its shards in the manifest's order.

    Raises InputError on opening when a shard is missing or its size, index and manifest entry do not agree. Shards at a
    URL are fetched whole into a local folder, when `bring` is called or a sample is read.
    """

    def __init__(self, folder: str | Path, split: str, local: Path | None = None, local_gb: float | None = None) -> None:
        """local, local_gb: of shards at a URL, the folder they are fetched into and the most of it they may take."""
        self._remote: RemoteShards | None = None
        if is_url(folder):
            self._remote = remote_shards(str(folder), local, local_gb)
            folder = self._remote.open()
        self.folder, self.split = Path(folder), split
        self.manifest: Manifest
        self.manifest, self.digest = read_manifest(self.folder)
        self._square = self.manifest.settings.shape == "square"
        if split not in self.manifest.splits:
            raise InputError(
                f"{self.folder} has no {split} split, only {', '.join(self.manifest.splits)}; make the shards again from a source that has one"
            )
        self.shards: tuple[Shard, ...] = self.manifest.splits[split].shards
        with no_collection():
            self._paths = [self.folder / shard.name for shard in self.shards]
            self._indexes = _read_indexes(self._paths, self.shards, self._remote is None)
        self.first = np.cumsum([0, *(shard.samples for shard in self.shards)])  # sample id of each shard's first, then their number
        self._first: list[int] = self.first.tolist()
        self._open: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def is_remote(self) -> bool:
        return self._remote is not None

    def place(self, sample: int) -> tuple[Path, str, int]:
        """Shard, key and byte offset of a sample id: what an error message has to say."""
        shard = bisect_right(self._first, sample) - 1
        index, row = self._indexes[shard], sample - self._first[shard]
        return self._paths[shard], index.keys[row], int(index.jpeg_offset[row])

    def read(self, sample: int) -> tuple[np.ndarray, int]:
        """Encoded picture, (bytes,) uint8, and label of a sample id, checked against the tar's headers; -1 for none. Raises BadSample."""
        shard = bisect_right(self._first, sample) - 1
        index, path, row = self._indexes[shard], self._paths[shard], sample - self._first[shard]
        jpeg, label = read_sample(self._descriptor(shard), path, index, row)
        if label < 0 and self.split != "test":
            raise BadSample(path, index.keys[row], int(index.jpeg_offset[row]), "it has no label, which only a test split may lack")
        if label >= len(self.manifest.classes):
            why = f"its label is {label}, but the manifest has {len(self.manifest.classes)} classes"
            raise BadSample(path, index.keys[row], int(index.jpeg_offset[row]), why)
        fault = size_fault(jpeg, self.manifest.settings.size, self._square)  # before a decoder allocates what the picture's header asks for
        if fault is None and jpeg[-2:].tobytes() != END_OF_IMAGE:  # a decoder would find that only in some windows of the picture
            fault = "it is cut short: it does not end as a JPEG does"
        if fault:
            raise BadSample(path, index.keys[row], int(index.jpeg_offset[row]), fault)
        return jpeg, label

    def bring(self, shard: int, stop: threading.Event) -> None:
        """Read a shard through in large blocks, so that its samples come from memory, or fetch it and hold it here."""
        if self._remote is not None:
            self._fetch(shard, stop)
            return
        with suppress(OSError), open(self._paths[shard], "rb", buffering=0) as file:  # reading a sample will name it
            while not stop.is_set() and file.read(BLOCK):
                pass

    def leave(self, shard: int) -> None:
        """A shard that was brought is not needed for now."""
        if self._remote is not None:
            if shard in self._open:
                self._close(shard, self._open.pop(shard))
            self._remote.release(self.shards[shard].name)

    def _fetch(self, shard: int, stop: threading.Event | None = None) -> None:
        """Have a shard of a URL here, and hold it, so that no process removes it."""
        assert self._remote is not None, "only shards at a URL are fetched"
        self._remote.hold(self.shards[shard].name)
        try:
            self._remote.fetch(self.shards[shard], stop)
        except BaseException:
            self._remote.release(self.shards[shard].name)
            raise

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= OPEN_FILES:
            self._close(*self._open.popitem(last=False))
        if self._remote is not None:
            self._fetch(shard)  # held as long as it is open: a removed file would keep its place on the disk
        try:
            self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
        except OSError as error:
            remedy = "it was there when the run began; put it back, then go on with --resume"
            raise InputError(f"{self._paths[shard]} cannot be opened: {error.strerror}; {remedy}") from None
        return self._open[shard]

    def _close(self, shard: int, descriptor: int) -> None:
        os.close(descriptor)
        if self._remote is not None:
            self._remote.release(self.shards[shard].name)

    def close(self) -> None:
        """Close the shards' files; reading opens them again."""
        while self._open:
            self._close(*self._open.popitem())

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()
            if self._remote is not None:
                self._remote.close()


def _read_indexes(paths: Sequence[Path], shards: Sequence[Shard], local: bool) -> list[Index]:
    """The shards' indexes, each checked, on threads: a disk behind a network answers late. Raises InputError for the first with a fault."""

    def read(start: int) -> list[Index]:
        stretch = slice(start, start + STRETCH)
        return [_read_checked(path, shard, local) for path, shard in zip(paths[stretch], shards[stretch], strict=True)]

    with ThreadPoolExecutor(READERS, "indexes") as pool:
        return [index for stretch in pool.map(read, range(0, len(paths), STRETCH)) for index in stretch]


def _read_checked(path: Path, shard: Shard, local: bool) -> Index:
    index = read_index(path.with_suffix(".idx"), shard.samples)
    _check_sizes(path, index, shard.samples, shard.bytes, local)
    return index


def _check_sizes(path: Path, index: Index, samples: int, size: int, local: bool) -> None:
    try:
        found = path.stat().st_size if local else size
    except FileNotFoundError:
        raise InputError(f"{path} is missing, though the manifest lists it; copy it back or make the shards again") from None
    if found != size:
        last = int(np.searchsorted(index.label_offset + index.label_size, found, side="right"))
        lost = f", so samples from {index.keys[last]} on are lost" if last < len(index.keys) else ""
        raise InputError(f"{path} has {found:,} bytes, the manifest says {size:,}{lost}; copy or make this shard again")
    if len(index.keys) != samples or tar_bytes(index) != size:
        raise InputError(
            f"{path.with_suffix('.idx')} has {len(index.keys)} samples in {tar_bytes(index):,} bytes, the manifest says "
            f"{samples} in {size:,}; index and tar disagree: make the shards again"
        )
