"""A split of a shard folder: every sample by its id, checked by size before the first is read."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.errors import InputError
from pipeline.manifest import Manifest, read_manifest
from pipeline.tarshard import Index, read_index, read_label, read_sample, tar_bytes

T = TypeVar("T")
OPEN_FILES = 256  # descriptors kept at once; a full ImageNet has more shards than some systems allow open files


class ShardSet:
    """The samples of one split ("train" or "val"), numbered 0 .. len - 1 through its shards in the manifest's order.

    Raises InputError on opening when a shard is missing or its size, index and manifest entry do not agree.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.manifest: Manifest
        self.manifest, self.digest = read_manifest(self.folder)
        if split not in self.manifest.splits:
            raise InputError(
                f"{self.folder} has no {split} split, only {', '.join(self.manifest.splits)}; make the shards again from a source that has one"
            )
        self._paths: list[Path] = []
        self._indexes: list[Index] = []
        first = [0]
        for shard in self.manifest.splits[split].shards:
            path = self.folder / shard.name
            index = read_index(path.with_suffix(".idx"))
            _check_sizes(path, index, shard.samples, shard.bytes)
            self._paths.append(path)
            self._indexes.append(index)
            first.append(first[-1] + shard.samples)
        self._first = first
        self._open: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return self._first[-1]

    def place(self, sample: int) -> tuple[Path, str, int]:
        """Shard, key and byte offset of a sample id: what an error message has to say."""
        shard = bisect_right(self._first, sample) - 1
        index, row = self._indexes[shard], sample - self._first[shard]
        return self._paths[shard], index.keys[row], int(index.jpeg_offset[row])

    def read(self, sample: int) -> tuple[np.ndarray, int]:
        """Encoded picture, (bytes,) uint8, and label of a sample id, checked against the tar's headers. Raises InputError."""
        jpeg, label = self._checked(read_sample, sample)
        return jpeg, self._known(label, sample)

    def read_label(self, sample: int) -> int:
        """The label of a sample id, checked in the same way. Raises InputError."""
        return self._known(self._checked(read_label, sample), sample)

    def _checked(self, read: Callable[[int, Path, Index, int], T], sample: int) -> T:
        shard = bisect_right(self._first, sample) - 1
        index, path, row = self._indexes[shard], self._paths[shard], sample - self._first[shard]
        try:
            return read(self._descriptor(shard), path, index, row)
        except OSError as error:
            raise InputError(f"{path}: sample {index.keys[row]}: {error.strerror}; check the disk, then go on with --resume") from None

    def _known(self, label: int, sample: int) -> int:
        if label < len(self.manifest.classes):
            return label
        path, key, _ = self.place(sample)
        raise InputError(f"{path}: sample {key}: label {label}, but the manifest has {len(self.manifest.classes)} classes; make this shard again")

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._open[shard]

    def close(self) -> None:
        """Close the shards' files; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()


def _check_sizes(path: Path, index: Index, samples: int, size: int) -> None:
    try:
        found = path.stat().st_size
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
