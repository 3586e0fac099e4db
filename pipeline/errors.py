"""What a user did wrong, in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A full disk, or a place that cannot be written to: the user's to mend.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_THE_PLACE = {
    *_FULL,
    *(errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
}


class InputError(ValueError):
    """Something given by the user cannot be used. The message is one line: what, why, what to do."""


class BadSample(InputError):
    """One sample that cannot be used: its shard, key, byte offset of its picture in the shard, and why.

    passing: the system could not read it, and may be able to in a moment.
    """

    def __init__(self, shard: Path, key: str, offset: int, reason: str, remedy: str = "copy or make this shard again", passing: bool = False) -> None:
        super().__init__(f"{shard}: sample {key} at offset {offset}: {reason}; {remedy}")
        self.shard, self.key, self.offset, self.reason, self._remedy, self.passing = shard, key, offset, reason, remedy, passing

    def __reduce__(self) -> tuple[Any, ...]:
        return BadSample, (self.shard, self.key, self.offset, self.reason, self._remedy, self.passing)  # worker processes hand it to their parent


def line_of_place(error: OSError) -> str | None:
    """What to tell of a full disk or a place that cannot be written to; None for any other error of the system."""
    if error.errno not in _OF_THE_PLACE:
        return None
    where = f" at {error.filename}" if error.filename else ""
    remedy = "free space or choose another folder" if error.errno in _FULL else "mend its rights or choose another place"
    return f"{error.strerror}{where}; {remedy}, then run the same command again"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a user's mistake, or a full or unreadable disk, into one line on stderr and exit code 2.

    Everything else is a fault of ours and keeps its traceback.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        line = line_of_place(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C; run the same command again to go on or begin anew", file=sys.stderr)
        sys.exit(130)
