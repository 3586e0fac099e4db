"""One shard: a USTAR tar of KEY.jpg, KEY.cls pairs, and the index beside it that DALI's webdataset reader takes.

Every member's header carries the CRC-32C of its data in the group-name field, which readers of tars ignore: a flipped
byte is found when the sample is read, not by a strange loss curve.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crc32c import crc32c

from pipeline.atomic import atomic_file
from pipeline.errors import InputError

BLOCK = 512  # tar: headers and data start at multiples of it
KEY = re.compile(r"^[A-Za-z0-9_-]{1,90}$")  # no dot (WebDataset splits there), no space (the index splits there), fits USTAR
INDEX_VERSION = "v1.2"
MAX_LABEL = 10  # bytes: a label is a number of few digits
_CRC_FIELD = slice(297, 329)  # gname of a USTAR header
_SIZE_FIELD = slice(124, 136)
_NAME_FIELD = slice(0, 100)


@dataclass(frozen=True)
class WrittenShard:
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Where the samples of one shard are. Offsets and sizes in bytes, (n,) int64; `jpeg` and `label` point at the data."""

    keys: list[str]
    jpeg_offset: np.ndarray
    jpeg_size: np.ndarray
    label_offset: np.ndarray
    label_size: np.ndarray


def write_shard(path: Path, samples: list[tuple[str, bytes, int]]) -> WrittenShard:
    """Write (key, JPEG, label) samples to `path` and its index to `path` with suffix .idx; the same samples give the same bytes."""
    digest, position, lines = hashlib.sha256(), 0, [f"{INDEX_VERSION} {len(samples)}"]
    with atomic_file(path) as file:
        for key, jpeg, label in samples:
            assert KEY.match(key), f"key {key!r} would break readers of the shard"
            entries = []
            for extension, data in (("jpg", jpeg), ("cls", str(label).encode())):
                block = _member(f"{key}.{extension}", data)
                entries.append(f"{extension} {position + BLOCK} {len(data)} {key}.{extension}")
                file.write(block)
                digest.update(block)
                position += len(block)
            lines.append(" ".join(entries))
        end = bytes(2 * BLOCK)
        file.write(end)
        digest.update(end)
    with atomic_file(path.with_suffix(".idx"), "w") as file:
        file.write("\n".join(lines) + "\n")
    return WrittenShard(len(samples), position + len(end), digest.hexdigest())


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.gname = len(data), 0o644, f"crc32c:{crc32c(data):08x}"
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def read_index(path: Path) -> Index:
    """Read an index, and refuse one whose offsets cannot be those of a shard of ours. Raises InputError."""
    try:
        lines = path.read_text("ascii").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not ASCII; {_AGAIN}") from None
    if not lines or lines[0] != f"{INDEX_VERSION} {len(lines) - 1}":
        raise InputError(f"{path}: first line is not '{INDEX_VERSION} {len(lines) - 1}', the version and number of samples; {_AGAIN}")
    keys: list[str] = []
    numbers = np.empty((len(lines) - 1, 4), dtype=np.int64)
    for row, line in enumerate(lines[1:]):
        fields = line.split(" ")
        key = fields[3][:-4] if len(fields) == 8 else ""
        if [fields[0], *fields[3:5], *fields[7:]] != ["jpg", f"{key}.jpg", "cls", f"{key}.cls"] or not KEY.match(key):
            raise InputError(f"{path}: line {row + 2} is not 'jpg OFFSET SIZE KEY.jpg cls OFFSET SIZE KEY.cls'; {_AGAIN}")
        try:
            numbers[row] = fields[1], fields[2], fields[5], fields[6]
        except (ValueError, OverflowError):
            raise InputError(f"{path}: line {row + 2}: an offset or size is not a number; {_AGAIN}") from None
        keys.append(key)
    index = Index(keys, *numbers.T.copy())
    _check_layout(path, index)
    return index


_AGAIN = "index and tar disagree: make the shards again with tools/make_shards.py"


def _check_layout(path: Path, index: Index) -> None:
    """Members lie one behind the other, so every offset follows from the sizes."""
    sizes = np.stack((index.jpeg_size, index.label_size), axis=1)
    padded = BLOCK + (sizes + BLOCK - 1) // BLOCK * BLOCK
    ends = np.cumsum(padded.reshape(-1))
    expected = np.concatenate((np.zeros(1, np.int64), ends[:-1])).reshape(-1, 2) + BLOCK
    offsets = np.stack((index.jpeg_offset, index.label_offset), axis=1)
    wrong = ((offsets != expected) | (sizes < 1)).any(axis=1) | (sizes[:, 1] > MAX_LABEL)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}: line {row + 2} (sample {index.keys[row]}): offset or size does not fit the lines before; {_AGAIN}")


def tar_bytes(index: Index) -> int:
    """Size in bytes of the tar that this index describes."""
    if not index.keys:
        return 2 * BLOCK
    return int(index.label_offset[-1] + BLOCK + 2 * BLOCK)  # a label always fits one block


def read_sample(descriptor: int, path: Path, index: Index, row: int) -> tuple[np.ndarray, int]:
    """Encoded picture, (bytes,) uint8, and label of one sample, both checked against name, size and CRC in the tar's headers.

    One positioned read and no mmap: a tar that is cut short while it is read gives an error, not SIGBUS. Raises InputError.
    """
    start = int(index.jpeg_offset[row]) - BLOCK
    buffer = _read(descriptor, path, index, row, start)
    jpeg = _member_data(buffer, path, start, f"{index.keys[row]}.jpg", 0, int(index.jpeg_size[row]))
    return np.frombuffer(jpeg, dtype=np.uint8), _label(buffer, path, index, row, start)


def read_label(descriptor: int, path: Path, index: Index, row: int) -> int:
    """The label of one sample, checked like read_sample does, without reading its picture. Raises InputError."""
    start = int(index.label_offset[row]) - BLOCK
    return _label(_read(descriptor, path, index, row, start), path, index, row, start)


def _read(descriptor: int, path: Path, index: Index, row: int, start: int) -> bytes:
    """The tar from `start` to the end of the sample's label."""
    size = int(index.label_offset[row] + index.label_size[row]) - start
    buffer = os.pread(descriptor, size, start)
    if len(buffer) < size:
        end = os.fstat(descriptor).st_size
        raise InputError(f"{path}: sample {index.keys[row]} at offset {start}: the tar ends at {end}; copy or make this shard again")
    return buffer


def _label(buffer: bytes, path: Path, index: Index, row: int, start: int) -> int:
    at = int(index.label_offset[row]) - BLOCK - start
    label = _member_data(buffer, path, start, f"{index.keys[row]}.cls", at, int(index.label_size[row]))
    if not label.isdigit():
        raise InputError(f"{path}: sample {index.keys[row]}: label {label!r} is not a number; make this shard again")
    return int(label)


def _member_data(buffer: bytes, path: Path, start: int, name: str, at: int, size: int) -> bytes:
    """Data of the member whose header is at `at` of the buffer, which begins at byte `start` of the tar."""
    data = buffer[at + BLOCK : at + BLOCK + size]
    why = _disagreement(buffer[at : at + BLOCK], name, data)
    if why:
        key = name.rsplit(".", 1)[0]
        raise InputError(f"{path}: sample {key}, {name} at offset {start + at}: {why}; copy or make this shard again")
    return data


def _disagreement(header: bytes, name: str, data: bytes) -> str | None:
    """Why header and data are not the member `name`, or None."""
    found = header[_NAME_FIELD].rstrip(b"\0")
    if found != name.encode():
        return f"the tar has {found[:40]!r} there, so index and tar disagree"
    if header[_SIZE_FIELD].rstrip(b"\0 ") != b"%011o" % len(data):
        return f"the tar says another size than the index ({len(data)} bytes)"
    if header[_CRC_FIELD].rstrip(b"\0") != b"crc32c:%08x" % crc32c(data):
        return "its bytes do not have the CRC-32C they were written with"
    return None
