"""The local folder that fetched tars lie in: never more bytes than allowed, shared by threads and processes.

All exclusion is by flock on files that are never removed, so nothing stays locked after SIGKILL. Of every tar there are two,
in locks/: NAME.loading, exclusive for whoever downloads it, and NAME.held, shared for whoever reads it, exclusive for the
moment of its removal. One more in the cache, `.lock`, is taken while bytes are counted and set aside. A download sets its
whole size aside before its first byte, so the sum of the files is right at any time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.atomic import fsync_folder
from pipeline.errors import InputError

Stopped = Callable[[], bool]
POLL = 0.05  # seconds between looks at a lock that another process has
_SET = re.compile(r"^[0-9a-f]{16}$")  # folders and files of other names are not ours, and are left alone
_TAR = re.compile(r"^(?:(?P<tar>(?:train|val|test)-[0-9]{6}\.tar)|\.(?P<coming>(?:train|val|test)-[0-9]{6}\.tar)\.tmp)$")
_FULL = {errno.ENOSPC, errno.EDQUOT}


_FOLDERS: weakref.WeakSet[BoundedFolder] = weakref.WeakSet()  # of this process


class FetchStopped(Exception):
    """The caller asked for the end of a fetch while it was under way."""


@dataclass(frozen=True)
class _File:
    """A tar, or one on its way. used: time of last use, 0 for one on its way; lock: who has it exclusively may remove it."""

    path: Path
    bytes: int
    used: float
    lock: Path


class BoundedFolder:
    """The tars of one set of shards in `folder`; with those of its sister folders at most `limit` bytes.

    limit: None for half of what the disk has free, the tars there counted as free. patience: seconds to wait for room
    that other processes hold.
    """

    def __init__(self, folder: Path, limit: int | None, patience: float) -> None:
        self.folder, self._patience = folder, patience
        self._locks = folder / "locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self._held: dict[str, tuple[int, int]] = {}  # name: times held, descriptor of the lock
        self._mutex = threading.Lock()
        _FOLDERS.add(self)
        self.limit = limit if limit is not None else (shutil.disk_usage(folder).free + _total(self._files())) // 2

    def ready(self, name: str, size: int) -> bool:
        """Whether the tar is there; says so only of one with its final name, which none gets unchecked. Counts as a use of it."""
        try:
            if (self.folder / name).stat().st_size != size:
                return False
            os.utime(self.folder / name)
        except FileNotFoundError:
            return False
        return True

    def hold(self, name: str) -> None:
        """Keep the tar `name`, there or still to come, from being removed, by any process, until as many calls of release."""
        with self._mutex:
            times, descriptor = self._held.get(name) or (0, _open_lock(self._lock(name, "held")))
            if not times:
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits at most for the moment of a removal
            self._held[name] = times + 1, descriptor

    def release(self, name: str) -> None:
        with self._mutex:
            assert name in self._held, f"{name} is released but was not held"
            times, descriptor = self._held.pop(name)
            if times > 1:
                self._held[name] = times - 1, descriptor
            else:
                _close_lock(descriptor)

    def release_all(self) -> None:
        with self._mutex:
            while self._held:
                _close_lock(self._held.popitem()[1][1])

    @contextmanager
    def loading(self, name: str, stopped: Stopped) -> Iterator[None]:
        """The right to download `name`: one thread of one process at a time. Raises FetchStopped."""
        with locked(self._lock(name, "loading"), stopped):
            yield

    @contextmanager
    def new_tar(self, name: str, size: int, stopped: Stopped) -> Iterator[IO[bytes]]:
        """A temporary file with `size` bytes set aside, to be filled and checked; on leaving, fsync and rename to `name`.

        The caller has loading(name). Raises InputError when there is no room for it, FetchStopped.
        """
        temporary = self._temporary(name)
        descriptor = self._reserve(name, size, stopped)
        try:
            with os.fdopen(descriptor, "r+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with self._counting(stopped):  # a count that meets a rename may see neither name
                os.replace(temporary, self.folder / name)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise InputError(self._disk_full(name, size)) from None
            raise
        fsync_folder(self.folder)

    def shrink(self, stopped: Stopped) -> None:
        """Remove leftovers of killed processes, and what is over the limit and not held."""
        with self._counting(stopped):
            self._lacking(0)

    def _reserve(self, name: str, size: int, stopped: Stopped) -> int:
        """Descriptor of the temporary file, `size` bytes long. Waits while only others stand in the way."""
        patience_ends, said = time.monotonic() + self._patience, False
        while True:
            with self._counting(stopped):
                self._temporary(name).unlink(missing_ok=True)  # of a process that was killed: we have loading(name)
                (self.folder / name).unlink(missing_ok=True)  # has another size than it should
                lacking = self._lacking(size)
                if not lacking:
                    return self._allocate(name, size)
                own = self._own_bytes()
            if own + size > self.limit or time.monotonic() >= patience_ends:
                raise InputError(self._no_room(name, size, own, lacking))
            if not said:
                say(f"{name} waits for room in {self.folder.parent}: {lacking:,} bytes too few, held by other readers")
                said = True
            pause(4 * POLL, stopped)

    def _lacking(self, need: int) -> int:
        """Remove what was used least recently and is not held until `need` bytes fit; bytes that are still too few, or 0."""
        files = self._files()
        total = _total(files)
        for file in sorted(files, key=lambda file: file.used):
            if (total + need > self.limit or file.used == 0) and _remove(file):
                total -= file.bytes
        return max(0, total + need - self.limit)

    def _allocate(self, name: str, size: int) -> int:
        """Set `size` bytes of the disk aside; when it is full, remove what is not held, one by one."""
        while True:
            descriptor = os.open(self._temporary(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.posix_fallocate(descriptor, 0, size)
                return descriptor
            except OSError as error:
                os.close(descriptor)
                self._temporary(name).unlink()
                if error.errno not in _FULL:
                    raise
                if not any(_remove(file) for file in sorted(self._files(), key=lambda file: file.used)):
                    raise InputError(self._disk_full(name, size)) from None

    def _files(self) -> list[_File]:
        """Every tar of every set in the cache, whole or on its way."""
        found: list[_File] = []
        for folder in self.folder.parent.iterdir():
            for entry in os.scandir(folder) if _SET.match(folder.name) else ():
                match = _TAR.match(entry.name)
                if not match:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # given up at this moment by the process that downloaded it
                lock = folder / "locks" / (f"{match['tar']}.held" if match["tar"] else f"{match['coming']}.loading")
                found.append(_File(Path(entry.path), status.st_size, status.st_mtime if match["tar"] else 0, lock))
        return found

    def _own_bytes(self) -> int:
        """Bytes of the tars in the cache that this process itself holds, for training and validation, and so would wait for in vain."""
        held: set[Path] = set()
        for sister in list(_FOLDERS):
            if sister.folder.parent == self.folder.parent:
                with sister._mutex:
                    held.update(sister.folder / name for name in sister._held)
        return sum(path.stat().st_size for path in held if path.exists())

    def _lock(self, name: str, kind: str) -> Path:
        match = _TAR.match(name)
        assert match, f"{name!r} is no name of a shard"
        assert match["tar"], f"{name!r} is no name of a shard"
        return self._locks / f"{name}.{kind}"

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}.tmp"

    @contextmanager
    def _counting(self, stopped: Stopped) -> Iterator[None]:
        with locked(self.folder.parent / ".lock", stopped):
            yield

    def _no_room(self, name: str, size: int, own: int, lacking: int) -> str:
        return (
            f"{self.folder / name}: {size:,} bytes are needed, but the limit of the folder is {self.limit:,} and {lacking:,} are lacking "
            f"beside the shards being read ({own:,} bytes by this process); allow more bytes (--local-gb), "
            "or read fewer shards at a time (--set data.order=windowed, and a smaller data.window)"
        )

    def _disk_full(self, name: str, size: int) -> str:
        free = shutil.disk_usage(self.folder).free
        return f"{self.folder / name}: {size:,} bytes are needed, but the disk has {free:,} free; free space or choose another folder for the cache"


def _total(files: list[_File]) -> int:
    return sum(file.bytes for file in files)


def _remove(file: _File) -> bool:
    """Remove a tar that nobody holds, or what a killed process left of a download. False when somebody has it."""
    descriptor = _open_lock(file.lock)
    try:
        if not _try_lock(descriptor):
            return False
        file.path.unlink(missing_ok=True)
        return True
    finally:
        _close_lock(descriptor)


@contextmanager
def locked(path: Path, stopped: Stopped) -> Iterator[None]:
    """The exclusive flock of `path`, waited for. Raises FetchStopped."""
    descriptor = _open_lock(path)
    try:
        while not _try_lock(descriptor):
            pause(POLL, stopped)
        yield
    finally:
        _close_lock(descriptor)


def pause(seconds: float, stopped: Stopped) -> None:
    """Sleep, unless the caller wants an end. Raises FetchStopped."""
    end = time.monotonic() + seconds
    while not stopped():
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, POLL))
    raise FetchStopped


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # in one piece: print() writes the newline apart, and threads say things at the same time
    sys.stderr.flush()


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close_lock(descriptor: int) -> None:
    """Unlock, not only close: a process forked meanwhile has the same open file and would keep the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
