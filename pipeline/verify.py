"""Whether the bytes of a folder of shards are those that its manifest names, read at the speed of disk or SHA-256.

A sample's CRC-32C is in the same file as the sample; the manifest's SHA-256 covers every byte of it, and is in another.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.bounded import open_regular
from pipeline.errors import InputError
from pipeline.manifest import Shard, read_manifest
from pipeline.tarshard import BLOCK, Index, read_index, read_sample, tar_bytes

PIECE = 4 << 20  # bytes read at once; a multiple of BLOCK, so no header of a tar is cut in two
NAMED = 5  # damaged samples named in a fault; the others are counted
_COPY = "copy or make this shard again"

Progress = Callable[[int], object]  # told how many bytes more are done; what it raises ends the check


class _Stopped(Exception):
    """Another thread has ended the check."""


def _silent(count: int) -> None:
    """No progress shown."""


def verify_folder(
    folder: str | Path, split: str | None = None, workers: int | None = None, progress: Progress = _silent, only_there: bool = False
) -> None:
    """Read every byte of a split's shards, or of all splits', and compare with the manifest. workers: threads, one a core unless given.

    only_there: shards that are not there are no fault; the folder holds what was fetched of a set elsewhere.

    Raises InputError with the first fault and how many other shards have one.
    """
    faults = check_folder_contents(Path(folder), workers or len(os.sched_getaffinity(0)), progress, split, only_there)
    if faults:
        others = f"; {len(faults) - 1} more with faults: python tools/check_shards.py --shards {folder}" if len(faults) > 1 else ""
        raise InputError(faults[0] + others)


def check_folder_contents(folder: Path, workers: int, progress: Progress = _silent, split: str | None = None, only_there: bool = False) -> list[str]:
    """One line for each shard with a fault, in the manifest's order; of one split, or of all. workers: threads.

    Raises InputError when the manifest cannot be used.
    """
    manifest, _ = read_manifest(folder)
    shards = [shard for name, part in manifest.splits.items() if split in (None, name) for shard in part.shards]
    if only_there:
        shards = [shard for shard in shards if (folder / shard.name).exists()]
    return [fault for fault in check_shards(folder, shards, workers, progress) if fault is not None]


def check_shards(folder: Path, shards: Sequence[Shard], workers: int, progress: Progress = _silent) -> list[str | None]:
    """check_shard of each, on `workers` threads, one shard a thread; progress is called by one of them at a time."""
    stop, lock = threading.Event(), threading.Lock()

    def advance(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            progress(count)

    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(check_shard, folder, shard, advance) for shard in shards]
        return [future.result() for future in futures]
    finally:
        stop.set()  # after Ctrl-C it ends the threads within a piece
        pool.shutdown(cancel_futures=True)


def check_shard(folder: Path, shard: Shard, progress: Progress = _silent) -> str | None:
    """What is wrong with a shard's tar or index, in one line that names the damaged samples; None when every byte is right."""
    path = folder / shard.name
    try:
        with open_regular(path) as file:
            return _check_open(file.fileno(), path, shard, progress)
    except FileNotFoundError:
        return f"{path} is missing, though the manifest lists it; copy it back or make the shards again"
    except OSError as error:
        return f"{path}: {error.strerror}; check the disk, then {_COPY}"
    except InputError as error:
        return str(error)


def _check_open(descriptor: int, path: Path, shard: Shard, progress: Progress) -> str | None:
    index, why = _index_of(path, shard)
    size = os.fstat(descriptor).st_size
    if size != shard.bytes:
        return f"{path} has {size:,} bytes, the manifest says {shard.bytes:,}; {_damage(descriptor, path, index, progress)}; {_COPY}"
    digest, row = _read_through(descriptor, path, shard.bytes, index, progress)
    if digest != shard.sha256:
        return f"{path} does not have the SHA-256 that the manifest says; {_damage(descriptor, path, index, progress)}; {_COPY}"
    if index is not None and row is not None:
        place = f"sample {index.keys[row]} at offset {index.jpeg_offset[row]}"
        return f"{path.with_suffix('.idx')}: {place}: the tar, which is whole, has another name or size there; copy or make the index again"
    return why and f"{why} (the tar is whole)"


def _index_of(path: Path, shard: Shard) -> tuple[Index | None, str | None]:
    """A shard's index, or why it cannot be used."""
    place = path.with_suffix(".idx")
    try:
        index = read_index(place, shard.samples)
    except InputError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{place}: {error.strerror}; check the disk, then copy or make the index again"
    if len(index.keys) != shard.samples or tar_bytes(index) != shard.bytes:
        found = f"{len(index.keys):,} samples in {tar_bytes(index):,} bytes"
        return None, f"{place} has {found}, the manifest says {shard.samples:,} in {shard.bytes:,}; copy or make the index again"
    return index, None


def _read_through(descriptor: int, path: Path, size: int, index: Index | None, progress: Progress) -> tuple[str, int | None]:
    """SHA-256 of the first `size` bytes of a tar, and the first row of its index that a header in it does not agree with."""
    digest, wrong = hashlib.sha256(), None
    buffer = memoryview(bytearray(min(PIECE, size)))
    headers = None if index is None else np.stack((index.jpeg_offset, index.label_offset), axis=1).reshape(-1) - BLOCK
    for start in range(0, size, PIECE):
        piece = buffer[: min(PIECE, size - start)]
        _fill(piece, descriptor, path, start)
        digest.update(piece)
        if index is not None and headers is not None and wrong is None:
            wrong = _first_disagreement(piece, start, index, headers)
        progress(len(piece))
    return digest.hexdigest(), wrong


def _fill(piece: memoryview, descriptor: int, path: Path, start: int) -> None:
    done = 0
    while done < len(piece):
        count = os.preadv(descriptor, [piece[done:]], start + done)
        if not count:
            raise InputError(f"{path} ended at {start + done:,} bytes while it was read; {_COPY}")
        done += count


def _first_disagreement(piece: memoryview, start: int, index: Index, headers: np.ndarray) -> int | None:
    """The first row whose names and sizes are not in the tar headers of this piece, which begins at byte `start` of the tar.

    headers: offset of every header, two a row, (2n,) int64, rising.
    """
    first, last = np.searchsorted(headers, (start, start + len(piece)))
    members = range(int(first), int(last))
    blocks = np.frombuffer(piece, np.uint8).reshape(-1, BLOCK)[(headers[first:last] - start) // BLOCK]
    names = np.array([f"{index.keys[i // 2]}.{'cls' if i % 2 else 'jpg'}" for i in members], dtype="S100")
    sizes = np.stack((index.jpeg_size, index.label_size), axis=1).reshape(-1)[first:last]
    octal = sizes[:, None] // 8 ** np.arange(10, -1, -1) % 8 + ord("0")
    wrong = (blocks[:, :100] != names.view(np.uint8).reshape(-1, 100)).any(axis=1) | (blocks[:, 124:135] != octal).any(axis=1)
    return members[int(np.argmax(wrong))] // 2 if wrong.any() else None


def _damage(descriptor: int, path: Path, index: Index | None, progress: Progress) -> str:
    """Where in a tar that is not what it was the damage lies, by the samples' own headers and sums."""
    if index is None:
        return "its index cannot be used either, so its damaged samples are not known"
    rows = list(_damaged_rows(descriptor, path, index, progress))
    if rows:
        named = ", ".join(f"{index.keys[row]} at offset {index.jpeg_offset[row]}" for row in rows[:NAMED])
        more = f" and {len(rows) - NAMED:,} more" if len(rows) > NAMED else ""
        return f"{len(rows):,} of its {len(index.keys):,} samples {'is' if len(rows) == 1 else 'are'} damaged: {named}{more}"
    outside = _damage_outside(descriptor, index, progress)
    if outside is None:
        return "every sample is whole, so it is a shard of another set"
    return f"every sample is whole: the damage, at offset {outside}, is in padding or in fields that nobody reads"


def _damaged_rows(descriptor: int, path: Path, index: Index, progress: Progress) -> Iterator[int]:
    for row in range(len(index.keys)):
        progress(0)
        try:
            read_sample(descriptor, path, index, row)
        except InputError:
            yield row


def _damage_outside(descriptor: int, index: Index, progress: Progress) -> int | None:
    """Offset of the first header whose own sum is wrong, or of the first padding or end that is not zeros; None when there is none."""
    offsets, sizes = (np.stack(pair, axis=1) for pair in ((index.jpeg_offset, index.label_offset), (index.jpeg_size, index.label_size)))
    for offset, size in zip(offsets.reshape(-1).tolist(), sizes.reshape(-1).tolist(), strict=True):
        progress(0)
        try:
            tarfile.TarInfo.frombuf(os.pread(descriptor, BLOCK, offset - BLOCK), "ascii", "surrogateescape")
        except tarfile.HeaderError:
            return offset - BLOCK
        if any(os.pread(descriptor, -size % BLOCK, offset + size)):
            return offset + size
    end = tar_bytes(index) - 2 * BLOCK
    return None if os.pread(descriptor, 2 * BLOCK + 1, end) == bytes(2 * BLOCK) else end
