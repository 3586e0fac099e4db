"""Tars read in place: where their members are, by their headers alone, also of a tar within a tar."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from tqdm import tqdm

from pipeline.errors import InputError
from tools.source_entries import is_hidden, printable

CUT = "the download is incomplete; fetch it again"
LONGEST_END = 1 << 20  # bytes: the largest record that tar pads to is of 1 MiB, with -b 2048


class Member(NamedTuple):
    """A regular file of a tar: its printable name, and in bytes of the outermost file where header and data are."""

    name: str
    header: int
    data: int
    size: int

    @property
    def base(self) -> str:
        return self.name.rsplit("/", 1)[-1]


# What tarfile raises over headers that nobody wrote in good faith.
DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, MemoryError, RecursionError)


class StrictInfo(tarfile.TarInfo):
    """Where tarfile sees no header, it takes the archive for finished; only a block of zeros is its end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if not buf:
                raise tarfile.ReadError("no end-of-archive mark at its end") from None
            if any(buf):
                raise tarfile.ReadError("no header where one should be") from None
            raise


def members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """Regular members of an uncompressed tar, or of one that is a member of it; hidden ones are left out.

    Raises InputError for a tar that is cut short or damaged anywhere, with the byte, and for members that are no files.
    """
    start, size = (within.data, within.size) if within else (0, path.stat().st_size)
    where = f"{path}: {within.name}" if within else str(path)
    with _Window(path, start, size) as window:
        at = 0
        try:
            with tarfile.open(fileobj=cast(IO[bytes], window), mode="r:", tarinfo=StrictInfo) as tar:
                while (found := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                    at = found.offset
                    if found.offset_data + found.size > size:
                        raise tarfile.ReadError(f"member {printable(found.name)} runs past the end at {start + size:,}")
                    if is_picture(found, where):
                        yield Member(printable(found.name), start + found.offset, start + found.offset_data, found.size)
                    at = tar.offset
                _check_rest(window, tar.offset, size)
        except DAMAGE as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where}: {error} (byte {start + min(at, size):,} of {start + size:,}): {CUT}") from None


def is_picture(member: tarfile.TarInfo, where: str) -> bool:
    """Whether a member is a file and not hidden. Raises InputError for one that is neither file nor folder."""
    if member.isfile() and not member.issparse():
        return not is_hidden(member.name)
    if not member.isdir():
        raise InputError(f"{where}: member {printable(member.name)} is a link or device, not a file: is this the official archive?")
    return False


def _check_rest(file: io.RawIOBase, end: int, size: int) -> None:
    """Behind the mark of the end, at byte `end`, are zeros only, and few: a download may have left a hole of zeros in the middle."""
    file.seek(end)
    if any(file.read(min(size - end, LONGEST_END)) or b"") or size - end > LONGEST_END:
        raise tarfile.ReadError(f"zeros in the middle, {size - end:,} bytes before its end")


def first_names(path: Path, count: int) -> list[str]:
    """Names of the first regular members; fewer, or none, where it is no uncompressed tar."""
    names: list[str] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while len(names) < count and (found := tar.next()) is not None:
                if found.isfile() and not is_hidden(found.name):
                    names.append(found.name)
    except (tarfile.TarError, EOFError, OSError):
        pass
    return names


def read_member(file: IO[bytes], member: Member) -> bytes:
    """The data of a small member of an open file."""
    return os.pread(file.fileno(), member.size, member.data)


def bytes_bar(total: int, what: str) -> tqdm:
    """A progress bar in bytes, for what may take minutes; nothing is shown of what takes less than two seconds."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, unit="B", unit_scale=True, desc=what, delay=2, leave=False, mininterval=interval)


class _Window(io.RawIOBase):
    """A range of a file as a file of its own: the tar inside a tar, without unpacking it."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._at = open(path, "rb", buffering=0), start, size, 0

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = os.pread(self._file.fileno(), min(len(buffer), max(0, self._size - self._at)), self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()
