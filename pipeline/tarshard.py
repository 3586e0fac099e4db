"""One shard: a USTAR tar of KEY.jpg, KEY.cls pairs, and the index beside it that DALI's webdataset reader takes.

Every member's header carries the CRC-32C of its data in the group-name field, which readers of tars ignore: a flipped
byte is found when the sample is read, not by a strange loss curve.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from crc32c import crc32c

from pipeline.atomic import atomic_file
from pipeline.bounded import read_bounded
from pipeline.errors import BadSample, InputError

BLOCK = 512  # tar: headers and data start at multiples of it
KEY = re.compile(r"^[A-Za-z0-9_-]{1,90}$")  # no dot (WebDataset splits there), no space (the index splits there), fits USTAR
INDEX_VERSION = "v1.2"
UNLABELLED = b"-1"  # of a test split, whose labels nobody has published
MAX_LABEL = 10  # bytes: a label is a number of few digits
MAX_JPEG = 64 << 20  # bytes: no picture of a shard comes near it, and a sample is read whole
MAX_LINE = 300  # bytes of a line of the index: two keys, two offsets of 19 digits
MAX_SAMPLES = 10**6  # of a shard, for an index read without its manifest
_NAME, _SIZE, _CRC = 0, 124, 297  # fields of a USTAR header; the sum is in the group name


@dataclass(frozen=True)
class WrittenShard:
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


class Keys(Sequence[str]):
    """The keys of a shard in the bytes that they have, 20 a key where a str takes 70: a process has all of 20 million at hand."""

    def __init__(self, text: bytes, ends: np.ndarray) -> None:
        """text: all keys, one behind the other; ends: (n,) int32, where each ends."""
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # a negative one counts from the end; IndexError
        return self._text[self._ends[row - 1] if row else 0 : self._ends[row]].decode("ascii")


@dataclass(frozen=True)
class Index:
    """Where the samples of one shard are, in bytes. (n,): jpeg_offset, of the data, int64; jpeg_size int32; label_size uint8."""

    keys: Keys
    jpeg_offset: np.ndarray
    jpeg_size: np.ndarray
    label_size: np.ndarray

    @property
    def label_offset(self) -> np.ndarray:
        """(n,) int64: of the labels' data, which follow from the pictures'."""
        return self.jpeg_offset + _label_distance(self.jpeg_size)


def _label_distance(jpeg_size: Any) -> Any:
    """From a picture's first byte to its label's: the picture in whole blocks, and the label's header."""
    return (jpeg_size + (BLOCK - 1)) // BLOCK * BLOCK + BLOCK


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
    index = ("\n".join(lines) + "\n").encode()
    with atomic_file(path.with_suffix(".idx")) as file:
        file.write(index)
    return WrittenShard(len(samples), position + len(end), digest.hexdigest(), hashlib.sha256(index).hexdigest())


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.gname = len(data), 0o644, f"crc32c:{crc32c(data):08x}"
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def read_index(path: Path, samples: int = MAX_SAMPLES) -> Index:
    """Read an index, and refuse one whose offsets cannot be those of a shard of ours. Raises InputError.

    samples: how many its shard has; a file too large to be the index of so many is refused before it is read.
    """
    try:
        content = read_bounded(path, (samples + 1) * MAX_LINE, f"the index of {samples:,} samples can have; {_AGAIN}")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {_AGAIN}") from None
    return _read_quickly(content) or _read_by_line(path, content)


def _read_quickly(content: bytes) -> Index | None:
    """A right index; None for any other, and for one that is right and written in another way than ours."""
    from pipeline.index_lines import read_lines  # late: Numba takes half a second to import, and who writes shards reads no index

    count = content.count(b"\n") - 1
    head = f"{INDEX_VERSION} {count}\n".encode()
    if count < 0 or not content.endswith(b"\n") or not content.startswith(head):
        return None
    keys, ends = np.empty(len(content) // 2, np.uint8), np.empty(count, np.int32)  # each key stands twice
    index = np.empty(count, np.int64), np.empty(count, np.int32), np.empty(count, np.uint8)
    if not read_lines(np.frombuffer(content, np.uint8), len(head), *index, keys, ends):
        return None
    return Index(Keys(keys[: ends[-1] if count else 0].tobytes(), ends), *index)


def _read_by_line(path: Path, content: bytes) -> Index:
    """The same for an index that is wrong somewhere: it says where. Raises InputError."""
    try:
        lines = content.decode("ascii").splitlines()
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
    _check_layout(path, keys, numbers)
    ends = np.cumsum([len(key) for key in keys], dtype=np.int32)
    return Index(Keys("".join(keys).encode(), ends), numbers[:, 0].copy(), numbers[:, 1].astype(np.int32), numbers[:, 3].astype(np.uint8))


_AGAIN = "index and tar disagree: make the shards again with tools/make_shards.py"


def _check_layout(path: Path, keys: list[str], numbers: np.ndarray) -> None:
    """Members lie one behind the other, so every offset follows from the sizes. numbers: (n, 4) int64, offset and size of picture and label."""
    offsets, sizes = numbers[:, 0::2], numbers[:, 1::2]
    padded = BLOCK + (sizes + BLOCK - 1) // BLOCK * BLOCK
    ends = np.cumsum(padded.reshape(-1))
    expected = np.concatenate((np.zeros(1, np.int64), ends[:-1])).reshape(-1, 2) + BLOCK
    wrong = ((offsets != expected) | (sizes < 1)).any(axis=1) | (sizes > (MAX_JPEG, MAX_LABEL)).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}: line {row + 2} (sample {keys[row]}): offset or size does not fit the lines before; {_AGAIN}")


def _label_offset(index: Index, row: int) -> int:
    return int(index.jpeg_offset[row]) + int(_label_distance(int(index.jpeg_size[row])))


def tar_bytes(index: Index) -> int:
    """Size in bytes of the tar that this index describes."""
    if not len(index.keys):
        return 2 * BLOCK
    return _label_offset(index, -1) + BLOCK + 2 * BLOCK  # a label always fits one block


def read_sample(descriptor: int, path: Path, index: Index, row: int) -> tuple[np.ndarray, int]:
    """Encoded picture, (bytes,) uint8, and label of one sample, both checked against name, size and CRC in the tar's headers.

    One positioned read and no mmap: a tar that is cut short while it is read gives an error, not SIGBUS. Raises BadSample.
    """
    key, offset = index.keys[row], int(index.jpeg_offset[row])
    start = offset - BLOCK
    jpeg_end, label_at = BLOCK + int(index.jpeg_size[row]), _label_offset(index, row) - start
    end = label_at + int(index.label_size[row])
    try:
        buffer = os.pread(descriptor, end, start)
    except OSError as error:
        raise BadSample(path, key, offset, f"{error.strerror}", "check the disk", passing=True) from None
    if len(buffer) < end:
        raise BadSample(path, key, offset, f"the tar ends at {os.fstat(descriptor).st_size}")
    jpeg, label = memoryview(buffer)[BLOCK:jpeg_end], buffer[label_at:end]
    why = _disagreement(buffer, 0, f"{key}.jpg", jpeg) or _disagreement(buffer, label_at - BLOCK, f"{key}.cls", label)
    if why is None and not label.isdigit() and label != UNLABELLED:
        why = f"its label {label!r} is not a number"
    if why is not None:
        raise BadSample(path, key, offset, why)
    return np.frombuffer(jpeg, dtype=np.uint8), int(label)


def _disagreement(buffer: bytes, at: int, name: str, data: bytes | memoryview) -> str | None:
    """Why the header at byte `at` of the buffer does not belong to a member `name` with this data, or None."""
    if not buffer.startswith(name.encode() + b"\0", at + _NAME):
        return f"the tar has {buffer[at : at + 40].rstrip(bytes(1))!r} where {name} should be, so index and tar disagree"
    if not buffer.startswith(b"%011o\0" % len(data), at + _SIZE):
        return f"the tar gives {name} another size than the index ({len(data)} bytes)"
    if not buffer.startswith(b"crc32c:%08x\0" % crc32c(data), at + _CRC):
        return f"the bytes of {name} do not have the CRC-32C they were written with"
    return None
