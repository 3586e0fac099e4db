"""What a worker process of make_shards does: the pictures of one shard, or of one piece of a stream, converted and written."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.atomic import atomic_file
from pipeline.errors import InputError
from pipeline.manifest import Settings
from pipeline.tarshard import write_shard
from tools.picture import PictureError, convert
from tools.pixel_sums import Sums, empty_sums, summed_side
from tools.shard_upload import send
from tools.source_entries import MAX_FILE
from tools.sources import Entry, read_stream
from tools.workers import count_one


@dataclass(frozen=True)
class Task:
    """One shard to make of pictures that can be read anywhere. to: URL that it is sent to, and not kept; None: it stays."""

    split: str
    path: Path
    entries: list[Entry]
    settings: Settings
    to: str | None = None


@dataclass(frozen=True)
class Piece:
    """Pictures that stand one behind the other in the source, to be converted into one file; shards are put together from such later.

    read: their bytes, where the parent has read them. streamed: their files can only be read from one picture to the next.
    """

    path: Path
    entries: list[Entry]
    settings: Settings
    summed: bool
    streamed: bool
    read: list[bytes] | None = None


@dataclass(frozen=True)
class Assembly:
    """One shard to put together from pieces. entries: those of the source; places: of each, (piece, offset, bytes); to: as of Task."""

    split: str
    path: Path
    entries: list[Entry]
    places: list[tuple[Path, int, int]]
    to: str | None = None


@dataclass(frozen=True)
class Done:
    """One shard or piece made.

    samples may be fewer than planned, or none, when files were rejected; rejected and doubtful: (name, reason), the first in no
    shard, the second in one, though libjpeg found a fault. index_sha256: of a shard's .idx. sizes: of a piece, the bytes of each
    picture, 0 if rejected.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str = ""
    rejected: list[tuple[str, str]] = field(default_factory=list)
    doubtful: list[tuple[str, str]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class _Converter:
    """Converts one picture after the other, and keeps what is to be told of them. sums: of all its pictures, or None."""

    def __init__(self, settings: Settings, summed: bool) -> None:
        self.settings = settings
        self.sums: Sums | None = empty_sums(summed_side(settings)) if summed else None
        self.rejected: list[tuple[str, str]] = []
        self.doubtful: list[tuple[str, str]] = []

    def __call__(self, entry: Entry, data: bytes | None) -> bytes | None:
        """The JPEG; None for a file that is no picture. data: None for a picture that has still to be read."""
        try:
            made = convert(read_entry(entry) if data is None else data, self.settings)
        except PictureError as error:
            self.rejected.append((entry.name, str(error)))
            return None
        finally:
            count_one()
        if made.doubt is not None:
            self.doubtful.append((entry.name, made.doubt))
        if self.sums is not None:
            self.sums.add(made.pixels)
        return made.jpeg


def make_shard(task: Task) -> tuple[Done, Sums | None]:
    """In a worker: convert the pictures of one shard and write it."""
    converter = _Converter(task.settings, summed_up(task.split))
    samples = []
    for entry in task.entries:
        jpeg = converter(entry, None)
        if jpeg is not None:
            samples.append((entry.key, jpeg, entry.label))
    made = _written(task, samples)
    if made.samples and converter.sums is not None:
        converter.sums.of.add(made.name)
    return replace(made, rejected=converter.rejected, doubtful=converter.doubtful), converter.sums


def summed_up(split: str) -> bool:
    """Whether pixels of a split are summed for the colour statistics."""
    return split == "train"


def _written(task: Task | Assembly, samples: list[tuple[str, bytes, int]]) -> Done:
    """Write a shard, and send it where it is to be."""
    if not samples:
        return Done(task.path.name, 0, 0, "")
    if task.to is None:
        written = write_shard(task.path, samples)
    else:
        with tempfile.TemporaryDirectory() as folder:  # on the disk of this machine of the cluster
            path = Path(folder) / task.path.name
            written = write_shard(path, samples)
            send(path.with_suffix(".idx"), task.to)
            send(path, task.to)
    return Done(task.path.name, written.samples, written.bytes, written.sha256, written.index_sha256)


def look(entry: Entry, streamed: bool, settings: Settings, beside: Path | None) -> tuple[str, str]:
    """What a machine sees of a job: digests of a picture as it is converted there, and of the file `beside` the shards. Raises InputError."""
    try:
        made = convert(next(read_stream(entry.file, entry.offset, 1)) if streamed else read_entry(entry), settings).jpeg
    except PictureError as error:
        made = str(error).encode()
    return hashlib.sha256(made).hexdigest(), hashlib.sha256(beside.read_bytes()).hexdigest() if beside else ""


def read_entry(entry: Entry) -> bytes:
    """Raises PictureError for a file that cannot be read, or is larger than any picture, InputError for one that is not there."""
    if entry.size > MAX_FILE:
        raise PictureError(f"it has {entry.size:,} bytes, more than the {MAX_FILE:,} that a picture may have")
    try:
        with open(entry.file, "rb") as file:
            data = os.pread(file.fileno(), entry.size, entry.offset)
    except FileNotFoundError:  # or shards that call themselves complete would lack its picture
        raise InputError(f"{entry.file} was listed, and is not there on {socket.gethostname()}") from None
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}") from None
    if len(data) != entry.size:
        raise PictureError(f"only {len(data)} of its {entry.size} bytes could be read")
    return data


def make_piece(piece: Piece) -> tuple[Done, Sums | None]:
    """In a worker: convert pictures that stand one behind the other in their file, into one file, one behind the other."""
    converter, digest, sizes = _Converter(piece.settings, piece.summed), hashlib.sha256(), []
    with atomic_file(piece.path) as file:
        for entry, data in zip(piece.entries, _stream(piece), strict=True):
            jpeg = converter(entry, data) or b""
            sizes.append(len(jpeg))
            digest.update(jpeg)
            file.write(jpeg)
    if converter.sums is not None:
        converter.sums.of.add(piece.path.name)
    samples = sum(size > 0 for size in sizes)
    return Done(piece.path.name, samples, sum(sizes), digest.hexdigest(), "", converter.rejected, converter.doubtful, sizes), converter.sums


def _stream(piece: Piece) -> Iterable[bytes | None]:
    if piece.read is not None:
        return piece.read
    return _consecutive(piece.entries) if piece.streamed else [None] * len(piece.entries)


def _consecutive(entries: list[Entry]) -> Iterator[bytes]:
    """The pictures of entries that may begin in one file and end in the next."""
    start = 0
    for k in range(1, len(entries) + 1):
        if k == len(entries) or entries[k].file != entries[start].file:
            yield from read_stream(entries[start].file, entries[start].offset, k - start)
            start = k


def assemble_shard(task: Assembly) -> tuple[Done, None]:
    """In a worker: a shard from pictures that were converted already."""
    samples = []
    for entry, (piece, offset, size) in zip(task.entries, task.places, strict=True):
        if size:
            with open(piece, "rb") as file:
                samples.append((entry.key, os.pread(file.fileno(), size, offset), entry.label))
    return _written(task, samples), None
