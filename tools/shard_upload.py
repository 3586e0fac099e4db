"""Shards that are to lie at a URL: made on the disk of the machine that makes them, and sent from there (fsspec)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

PAUSES = (1.0, 4.0, 16.0)  # seconds before another try


def state_folder(url: str) -> Path:
    """Where this user's progress of making shards at a URL is kept, whatever folder the command is run in."""
    return Path.home() / ".cache" / "make_shards" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def open_store(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises InputError for a URL that cannot be used here."""
    import fsspec  # not above: shards in a folder need none of it

    try:
        system, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"--out {url}: {error}; give a folder, or a URL such as s3://bucket/folder") from None
    if system.protocol in ("http", "https") or "http" in system.protocol:
        raise InputError(f"--out {url}: nothing can be written over http; give a folder, or a URL such as s3://bucket/folder")
    return system, path.rstrip("/")


def send(path: Path, url: str) -> None:
    """Copy a file to the folder at a URL, and see that it is there whole; tried again after a pause. Raises InputError."""
    system, folder = open_store(url)
    target, size = f"{folder}/{path.name}", path.stat().st_size
    for pause in (*PAUSES, None):
        try:
            system.makedirs(folder, exist_ok=True)
            system.put_file(str(path), target)
            system.invalidate_cache()
            if system.info(target)["size"] == size:
                return
            fault = "it arrived with another size"
        except Exception as error:  # see _readable
            fault = " ".join(str(error).split()) or type(error).__name__
        if pause is not None:
            time.sleep(pause)
    raise InputError(f"{path.name} cannot be sent to {url}: {fault}; mend it and run the same command again to go on")


def sizes_there(url: str) -> dict[str, int]:
    """Bytes of each file of the folder at a URL, by name; empty where there is no such folder. Raises InputError."""
    system, folder = open_store(url)
    system.invalidate_cache()
    with _readable(url):
        try:
            found = system.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in found if entry["type"] == "file"}


def fetch(url: str, name: str, to: Path) -> None:
    """Copy a file from the folder at a URL; where it is not there, it is not there afterwards. Raises InputError."""
    to.unlink(missing_ok=True)
    if name in sizes_there(url):
        system, folder = open_store(url)
        with _readable(url):
            system.get_file(f"{folder}/{name}", str(to))


@contextmanager
def _readable(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every library behind fsspec has errors of its own
        raise InputError(f"{url} cannot be read: {' '.join(str(error).split())}; check the connection and your rights") from None
