"""The store that shards lie in: files read from any byte on, and what the errors of many libraries mean."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies

from pipeline.errors import InputError

BLOCK = 8 << 20  # bytes read at once, at most
DAMAGED = "copy the shards to the store again, all of what make_shards wrote"
UNREACHED = "check the connection and the store, then run the same command again"


class TransferError(Exception):
    """A try that failed, where the next may succeed. anew: what has come so far is of no use to it."""

    def __init__(self, what: str, remedy: str, anew: bool = False) -> None:
        super().__init__(what)
        self.remedy, self.anew = remedy, anew


class NotThere(InputError):
    """The store has no such file, or does not show it to us. No further try would help."""


class Source:
    """The folder at a URL, only read. shown: the URL without password and query, for messages.

    silence: seconds without a byte that end a read, over http and https. Raises InputError for a URL that cannot be used here.
    """

    def __init__(self, url: str, silence: float) -> None:
        import fsspec  # not above: with asyncio it takes longer to import than all else here, and shards in a folder need none of it

        self._parts, self._silence = urlsplit(url), silence
        self._http = self._parts.scheme in ("http", "https")
        self.shown = urlunsplit((self._parts.scheme, self._parts.netloc.rpartition("@")[2], self._parts.path.rstrip("/"), "", ""))
        try:
            self._system, self._path = fsspec.url_to_fs(url, **(self._http_options() if self._http else {}))
        except ImportError as error:
            package = error.name or getattr(error.__cause__, "name", None) or f"of fsspec for {self._parts.scheme}"
            raise InputError(f"{self.shown}: {self._parts.scheme}:// needs the package {package}; install it: pip install {package}") from None
        except ValueError as error:
            raise InputError(f"{self.shown}: {error}; give a folder, or a URL such as s3://, gs://, https:// or file://") from None

    def blocks(self, name: str, start: int) -> Generator[tuple[int, bytes], None, None]:
        """(offset, bytes) of a file from byte `start` on, or from 0 where the store cannot do that. Raises TransferError, InputError."""
        try:
            with self._over_http(name, start) if self._http else self._over_fsspec(name, start) as (file, offset):
                while block := file.read(BLOCK):
                    yield offset, block
                    offset += len(block)
        except TransferError:
            raise
        except Exception as error:  # each library has its own, and none can be listed without importing it
            raise self._translated(name, error) from None

    @contextmanager
    def _over_fsspec(self, name: str, start: int) -> Iterator[tuple[IO[bytes], int]]:
        """The open file and the offset it stands at."""
        with self._system.open(f"{self._path.rstrip('/')}/{name}", "rb", block_size=BLOCK, cache_type="none") as file:
            try:
                file.seek(start)
            except (ValueError, NotImplementedError):  # io.UnsupportedOperation is a ValueError too
                start = 0
            yield file, start

    @contextmanager
    def _over_http(self, name: str, start: int) -> Iterator[tuple[IO[bytes], int]]:
        """The same as one stream: fsspec's file of ranges takes into memory whatever a server answers to a range."""
        url = urlunsplit(self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{name}"))
        headers = {**self._system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with self._system.open(url, "rb", block_size=0, size=1, headers=headers) as file:  # size: any, or it would ask for it first
            if file.r.status != 206:
                yield file, 0
                return
            found = file.r.headers.get("Content-Range", "")
            if not found.startswith(f"bytes {start}-"):
                raise TransferError(f"the server sends the range {found[:80]!r} when asked for one from {start} on", UNREACHED, anew=True)
            yield file, start

    def _http_options(self) -> dict[str, Any]:
        import aiohttp
        import fsspec

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._silence, sock_read=self._silence)
        # fsspec keeps what it made of these options to the end of the process. That is wanted: it closes an instance's connections where
        # the garbage collector finds it, in any thread, and waits for its own thread to do it, which may need a lock held just there.
        given = fsspec.config.conf.get(self._parts.scheme, {}).get("client_kwargs", {})
        netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        environment = bool(getproxies()) or netrc.exists()  # proxies and passwords: looked up for each request, which takes as long as one
        return {"client_kwargs": {"trust_env": environment, **given, "timeout": timeout}}

    def _translated(self, name: str, error: Exception) -> Exception:
        """What a library's error means here."""
        where, status = f"{self.shown}/{name}", getattr(error, "status" if hasattr(error, "status") else "code", None)
        if isinstance(error, (FileNotFoundError, NotADirectoryError)) or status in (404, 410):
            return NotThere(f"{where} is not there; check the URL, and that all that make_shards wrote was copied to it")
        if isinstance(error, PermissionError) or status in (401, 403) or "credentials" in str(error):
            return NotThere(f"{where}: the store refuses access ({_text(error, status)}); check the credentials and the URL")
        if status == 416:
            return TransferError("the file ends there", DAMAGED, anew=True)
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # two classes up to Python 3.10
            return TransferError(f"no byte came for {self._silence:g} s" if self._http else "the store did not answer in time", UNREACHED)
        if type(error).__name__ == "ClientPayloadError":  # aiohttp's, which says it in three layers
            return TransferError("the connection was cut off", UNREACHED)
        return TransferError(_text(error, status), UNREACHED)


_SECRET = re.compile(r"(?<=//)[^/\s@]+@|(?<=\?)[^\s'\")]+")  # of a URL: user and password; the query, which may be a key to the store


def _text(error: Exception, status: object) -> str:
    """An error of a library in one line of bounded length, without what may be secret in a URL."""
    message = getattr(error, "message", None)
    text = f"HTTP {status} {message}" if status and message else f"{type(error).__name__}: {error}"
    return _SECRET.sub("", " ".join(text.split()))[:300]
