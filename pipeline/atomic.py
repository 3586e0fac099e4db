"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import InputError


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside `path`; on leaving, fsync it and rename it over `path`.

    A path that is there and no regular file, a folder or a device, is refused with InputError. After an error or a SIGKILL
    `path` is what it was before; a leftover temporary ends in `.tmp` and is read by nobody.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is there, and is no file that could be replaced; name another")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; make it, or name another place for {path.name}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # process numbers repeat among machines
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename is None:  # write() and fsync() do not say which file; the user has to know
            error.filename = str(path)
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
