"""Shards that are to lie at a URL: made on the disk of the machine that makes them, and sent from there (fsspec)."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import fsspec

from pipeline.errors import InputError

PAUSES = (1.0, 4.0, 16.0)  # seconds before another try


def state_folder(url: str) -> Path:
    """Where the progress of making shards at a URL is kept, and what has not been sent yet."""
    return Path(f"make_shards-{hashlib.sha256(url.encode()).hexdigest()[:12]}")


def open_store(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises InputError for a URL that cannot be used here."""
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
        except Exception as error:
            fault = " ".join(str(error).split()) or type(error).__name__
        if pause is not None:
            time.sleep(pause)
    raise InputError(f"{path.name} cannot be sent to {url}: {fault}; mend it and run the same command again to go on")


def size_there(url: str, name: str) -> int | None:
    """Bytes of a file of the folder at a URL; None when it is not there. Raises InputError."""
    system, folder = open_store(url)
    system.invalidate_cache()
    try:
        return int(system.info(f"{folder}/{name}")["size"])
    except FileNotFoundError:
        return None
    except Exception as error:
        raise InputError(f"{url} cannot be read: {' '.join(str(error).split())}; check the connection and your rights") from None


def fetch(url: str, name: str, to: Path) -> bool:
    """Copy a file from the folder at a URL, if it is there. Raises InputError."""
    if size_there(url, name) is None:
        return False
    system, folder = open_store(url)
    system.get_file(f"{folder}/{name}", str(to))
    return True
