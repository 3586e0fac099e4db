"""Shards brought near ahead of use: read through once in large blocks, or fetched from remote storage, and let go after use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

AHEAD = 2  # shards brought before the window comes to them
PATIENCE = 0.2  # seconds between looks at whether to give up


class GivenUp(Exception):
    """Nobody wants the samples any more."""


@dataclass(frozen=True)
class Visit:
    """A stretch of an epoch, first .. last position, in which samples of a shard are read."""

    first: int
    last: int
    shard: int


def visits(ids: np.ndarray, start: int, shard_of: np.ndarray, gap: int) -> list[Visit]:
    """The visits of an epoch from position `start` on, by first position. shard_of: (positions,) shard of every position.

    A shard that reaches over the end of the windowed order's circle has two, one at each end of the epoch: a visit ends where
    more than `gap` positions pass without a sample of the shard.
    """
    positions, rest = np.arange(start, len(ids)), shard_of[start:]
    by_shard = np.argsort(rest, kind="stable")
    shards, at = rest[by_shard], positions[by_shard]
    new = np.ones(len(at), bool)
    new[1:] = (shards[1:] != shards[:-1]) | (at[1:] - at[:-1] > gap)
    begins = np.flatnonzero(new)
    lasts = at[np.append(begins[1:], len(at)) - 1] if len(at) else at
    found = [Visit(int(first), int(last), int(shard)) for first, last, shard in zip(at[begins], lasts, shards[begins], strict=True)]
    return sorted(found, key=lambda visit: visit.first)


class Staging:
    """A thread that brings the shards of a list of visits, at most `window` + AHEAD of them at a time if they suffice."""

    def __init__(
        self, ahead: list[Visit], window: int, bring: Callable[[int, threading.Event], Any], leave: Callable[[int], Any], stop: threading.Event
    ) -> None:
        """bring: called in the thread with a shard and `stop`, which asks it, and whoever waits for it, to give up; leave: when its
        visit is over."""
        self._visits, self._most, self._bring, self._leave = ahead, window + AHEAD, bring, leave
        self._brought, self._here = 0, list[Visit]()  # how many visits have been brought; those that have not ended
        self._needed = -1  # position up to which the reader waits for shards
        self._error: BaseException | None = None
        self._changed, self._stop = threading.Condition(), stop
        self._thread = threading.Thread(target=self._run, daemon=True, name="staging")
        self._thread.start()

    def reach(self, first: int, last: int) -> None:
        """Let go of the shards whose visits end before `first`, and wait until those of positions up to `last` are here."""
        with self._changed:
            for visit in [visit for visit in self._here if visit.last < first]:
                self._here.remove(visit)
                self._leave(visit.shard)
            self._needed = max(self._needed, last)
            self._changed.notify_all()
            while self._brought < len(self._visits) and self._visits[self._brought].first <= last:
                if self._error is not None:
                    raise self._error
                if self._stop.is_set():
                    raise GivenUp
                self._changed.wait(PATIENCE)

    def _run(self) -> None:
        for visit in self._visits:
            with self._changed:
                while len(self._here) >= self._most and visit.first > self._needed and not self._stop.is_set():
                    self._changed.wait(PATIENCE)
            if self._stop.is_set():
                return
            try:
                self._bring(visit.shard, self._stop)
            except BaseException as error:
                self._error = error
            with self._changed:
                if self._error is None:
                    self._brought += 1
                    self._here.append(visit)
                self._changed.notify_all()
            if self._error is not None:
                return

    def close(self) -> None:
        """End the thread, and let go of what is still here."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        self._thread.join()
        for visit in self._here:
            self._leave(visit.shard)
        self._here = []
