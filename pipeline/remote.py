"""Shards on object storage: any URL that fsspec knows. Fetched whole into a bounded local folder, checked, and read from there."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TypeVar

from pipeline.atomic import atomic_file
from pipeline.colour import MEAN_NAME, STATISTICS_NAME
from pipeline.errors import InputError
from pipeline.manifest import MAX_BYTES, NAME, Manifest, Shard, read_manifest
from pipeline.remote_folder import BoundedFolder, FetchStopped, Stopped, locked, pause, say
from pipeline.remote_source import DAMAGED, NotThere, Source, TransferError
from pipeline.tarshard import BLOCK, MAX_LINE, read_index, tar_bytes

T = TypeVar("T")
MOST_STATISTICS = 16 << 20  # bytes of pca.json, and of mean.npy: 1024 x 1024 pixels have 12 MB
LONGEST_WAIT = 30.0  # seconds between two tries
_JITTER = random.Random()  # of its own: the caller's stream of random numbers is not touched


def is_url(shards: str | Path) -> bool:
    """Whether shards lie elsewhere: s3://, gs://, http://, file:// ... A Path made from a URL has lost a slash and is none."""
    return "://" in str(shards)


class RemoteShards:
    """The shards at a URL. open() first; then fetch(), hold() and release() from any thread; close() at the end.

    cache: local folder, shared by any number of processes and sets of shards; default $XDG_CACHE_HOME or ~/.cache, then alexnet-shards/.
    limit: bytes of all tars in it; default half of what the disk has free at open(), the tars there counted as free.
    tries: for each file. backoff: seconds before the second try, doubled for each further one, with jitter. silence: seconds without
    a byte that end a try (http and https; the libraries of other stores have their own). connections: files that open() fetches at
    once. patience: seconds to wait for room in the cache that other processes hold.
    """

    folder: Path  # of this set, from open() on: cache / first 16 digits of the manifest's SHA-256

    def __init__(
        self,
        url: str,
        cache: Path | None = None,
        limit: int | None = None,
        *,
        tries: int = 8,
        backoff: float = 1.0,
        silence: float = 60.0,
        connections: int = 32,
        patience: float = 600.0,
    ) -> None:
        self._cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-shards"
        self._limit, self._tries, self._backoff, self._connections, self._patience = limit, tries, backoff, connections, patience
        self._source = Source(url, silence)
        self._closed = threading.Event()
        self._local: BoundedFolder | None = None

    def open(self) -> Path:
        """Fetch manifest, indexes and, where there, colour statistics; the local folder they lie in then.

        Indexes that an earlier open() fetched stay. Statistics may be computed anew for the same shards, so they are asked for each
        time. Raises InputError when something is missing, refused, or not what the manifest says.
        """
        manifest, content = self._small(NAME, MAX_BYTES, _checked_manifest)
        self.folder = self._cache / hashlib.sha256(content).hexdigest()[:16]
        self._local = BoundedFolder(self.folder, self._limit, self._patience)
        self._local.shrink(self._closed.is_set)
        with locked(self.folder / "locks" / "open", self._closed.is_set):
            for leftover in self.folder.glob(".*.[0-9]*.tmp"):  # atomic_file's, of a killed process
                leftover.unlink()
            self._fetch_indexes([shard for split in manifest.splits.values() for shard in split.shards])
            for name in (MEAN_NAME, STATISTICS_NAME):
                self._fetch_statistics(name)
            _keep(self.folder / NAME, content)  # last, as make_shards does: who finds it has the indexes too
        return self.folder

    def fetch(self, shard: Shard, stop: threading.Event | None = None) -> Path:
        """The local path of a whole tar whose size and SHA-256 are the manifest's. hold() it before, or it may be gone again.

        Raises InputError when it cannot be had; FetchStopped when `stop` is set or close() called meanwhile, looked at between blocks.
        """
        store, path = self._opened(), self.folder / shard.name

        def stopped() -> bool:
            return self._closed.is_set() or (stop is not None and stop.is_set())

        if store.ready(shard.name, shard.bytes):
            return path
        with store.loading(shard.name, stopped):
            if not store.ready(shard.name, shard.bytes):  # else another process fetched it while we waited
                with store.new_tar(shard.name, shard.bytes, stopped) as file:
                    self._retrying(shard.name, _Transfer(self._source, shard, file, stopped).attempt, stopped)
        return path

    def hold(self, name: str) -> None:
        """Keep the tar `name`, there or still to come, from being removed by any process, until as many calls of release."""
        self._opened().hold(name)

    def release(self, name: str) -> None:
        """Undo one hold. The tar stays until its room is needed."""
        self._opened().release(name)

    def close(self) -> None:
        """End what is under way and let go of all that is held. What was fetched stays for the next run."""
        self._closed.set()
        if self._local is not None:
            self._local.release_all()

    def _opened(self) -> BoundedFolder:
        assert self._local is not None, "open() comes first"
        return self._local

    def _fetch_indexes(self, shards: list[Shard]) -> None:
        """Fetch every index that is not there, several at once; the first that fails ends the others."""
        failed = threading.Event()
        there = set(os.listdir(self.folder))
        with ThreadPoolExecutor(self._connections, "fetch-index") as pool:
            missing = [shard for shard in shards if _index_name(shard) not in there]
            jobs = [pool.submit(self._fetch_index, shard, lambda: failed.is_set() or self._closed.is_set()) for shard in missing]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                failed.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch_index(self, shard: Shard, stopped: Stopped) -> None:
        name = _index_name(shard)
        most = MAX_LINE * (1 + min(shard.samples, shard.bytes // (4 * BLOCK)))  # in the tar a sample has four blocks at least
        self._small(name, most, lambda content: _keep_index(self.folder / name, content, shard), stopped)

    def _fetch_statistics(self, name: str) -> None:
        """Fetch a file that need not be there: the colour reader says what is missing. A store may refuse what it has not."""
        try:
            content = self._small(name, MOST_STATISTICS, lambda content: content)
        except NotThere:
            return
        _keep(self.folder / name, content)

    def _small(self, name: str, most: int, use: Callable[[bytes], T], stopped: Stopped | None = None) -> T:
        """What `use` makes of a file of at most `most` bytes."""

        def attempt() -> T:
            content = bytearray()
            with closing(self._source.blocks(name, 0)) as blocks:
                for _, block in blocks:
                    content += block
                    if len(content) > most:
                        raise TransferError(f"more than the {most:,} bytes come that it can have", DAMAGED)
            return use(bytes(content))

        return self._retrying(name, attempt, stopped or self._closed.is_set)

    def _retrying(self, name: str, attempt: Callable[[], T], stopped: Stopped) -> T:
        """What `attempt` returns, at the latest of all tries. Raises InputError, FetchStopped."""
        where = f"{self._source.shown}/{name}"
        for tried in range(1, self._tries + 1):
            try:
                return attempt()
            except TransferError as trouble:
                if tried == self._tries:
                    raise InputError(f"{where}: {trouble} (try {tried} of {tried}); {trouble.remedy}") from None
                wait = min(LONGEST_WAIT, self._backoff * 2 ** (tried - 1)) * _JITTER.uniform(0.5, 1.0)
                say(f"{where}: {trouble}; try {tried + 1} of {self._tries} in {wait:.1f} s")
            pause(wait, stopped)
        raise AssertionError("no try at all was allowed")


class _Transfer:
    """A tar on its way into `file`. What has come outlasts a cut-off: the next try goes on there, where the store can."""

    def __init__(self, source: Source, shard: Shard, file: IO[bytes], stopped: Stopped) -> None:
        self._source, self._shard, self._file, self._stopped = source, shard, file, stopped
        self._begin()

    def _begin(self) -> None:
        self._file.seek(0)
        self._got, self._digest = 0, hashlib.sha256()

    def attempt(self) -> None:
        """Fetch what is lacking and check the whole. Raises TransferError, FetchStopped."""
        try:
            if self._got < self._shard.bytes:
                self._take()
        except TransferError as trouble:
            what = f"{trouble}, after {self._got:,} of {self._shard.bytes:,} bytes"
            if trouble.anew:
                self._begin()
            raise TransferError(what, trouble.remedy) from None
        if self._got < self._shard.bytes:
            raise TransferError(f"ends after {self._got:,} of {self._shard.bytes:,} bytes", DAMAGED)
        found = self._digest.hexdigest()
        if found != self._shard.sha256:
            self._begin()
            raise TransferError(f"its bytes have the SHA-256 {found}, the manifest says {self._shard.sha256}", DAMAGED)

    def _take(self) -> None:
        with closing(self._source.blocks(self._shard.name, self._got)) as blocks:
            for offset, block in blocks:
                if self._stopped():
                    raise FetchStopped
                if offset == 0:
                    self._begin()  # the first block, or a store that cannot go on in the middle
                if self._got + len(block) > self._shard.bytes:
                    raise TransferError("more bytes come than the manifest says", DAMAGED, anew=True)
                self._file.write(block)
                self._digest.update(block)
                self._got += len(block)


def _index_name(shard: Shard) -> str:
    return f"{shard.name.removesuffix('.tar')}.idx"


def _checked_manifest(content: bytes) -> tuple[Manifest, bytes]:
    """The manifest and its bytes. Raises TransferError: a cut-off one may be seen only by its content."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(content)
        try:
            manifest, _ = read_manifest(path.parent)
        except InputError as error:
            raise TransferError(_fault(error, path), DAMAGED) from None
    names = [shard.name for split in manifest.splits.values() for shard in split.shards]
    if len(set(names)) < len(names):
        raise TransferError("a shard stands in two splits", DAMAGED)
    return manifest, content


def _keep_index(path: Path, content: bytes, shard: Shard) -> None:
    """Write an index to `path` if it is that of the shard. Raises TransferError."""
    with atomic_file(path) as file:
        file.write(content)
        file.flush()
        try:
            index = read_index(Path(file.name), shard.samples)
        except InputError as error:
            raise TransferError(_fault(error, Path(file.name)), DAMAGED) from None
        if (len(index.keys), tar_bytes(index)) != (shard.samples, shard.bytes):
            raise TransferError(
                f"has {len(index.keys)} samples in {tar_bytes(index):,} bytes, the manifest says {shard.samples} in {shard.bytes:,}", DAMAGED
            )


def _fault(error: InputError, path: Path) -> str:
    """What a reader found wrong in a file, without its place, which was for a moment, and its advice, which is for whoever made it."""
    return " ".join(str(error).removeprefix(str(path)).removeprefix(": ").split()).rpartition("; ")[0]


def _keep(path: Path, content: bytes) -> None:
    """Write a file, unless it has that content already: a reader in another process keeps what it has."""
    if not path.exists() or path.read_bytes() != content:
        with atomic_file(path) as file:
            file.write(content)
