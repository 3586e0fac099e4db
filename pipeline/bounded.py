"""Files of a shard folder are untrusted: only regular ones are opened, and none is read whole before its size is known to be possible."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import InputError


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, and InputError for a folder, a device, or a pipe (which could be waited for for ever)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise InputError(f"{path} is not a regular file; put the file itself there")


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """The whole of a regular file, refused before it is read when it has more than `limit` bytes. Raises InputError, OSError.

    what: for the message, what is known to be no larger, and what to do.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise InputError(f"{path} has {size:,} bytes, more than the {limit:,} that {what}")
        return file.read(size)
