"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress

EVERY = 10  # seconds


class FreedMemory:
    """Handed back to the system now and then.

    Decoding threads take memory that other threads free; under glibc each thread's heap then fills with holes that are used
    again only by chance, and a loading process grows to twice what it needs.
    """

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = None
        with suppress(OSError, AttributeError):  # another C library, which has its own ways
            self._trim = ctypes.CDLL(None).malloc_trim
        self._last = time.monotonic()

    def hand_back(self) -> None:
        """Every 10 s, and nothing in between: it takes some 25 ms, and the pages have to be asked for again."""
        if self._trim is not None and time.monotonic() - self._last >= EVERY:
            self._trim(0)
            self._last = time.monotonic()
