"""Shards are brought ahead of use, in the order of their need, and not too many at a time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.order import windowed_order
from pipeline.staging import AHEAD, Staging, Visit, visits


def test_visits_cover_each_shards_positions() -> None:
    first = np.arange(0, 2100, 50)  # 41 shards of 50
    ids = windowed_order(3, 1, first, 4)
    shard_of = np.searchsorted(first, ids, side="right") - 1
    found = visits(ids, 0, shard_of, 900)
    assert [visit.first for visit in found] == sorted(visit.first for visit in found)
    inside = np.zeros(len(ids), int)
    for visit in found:
        own = np.flatnonzero(shard_of == visit.shard)
        inside[own[(own >= visit.first) & (own <= visit.last)]] += 1
        assert visit.last - visit.first < len(ids) // 2  # a shard over the end of the circle has two short visits, not a long one
    assert (inside == 1).all()
    assert 41 < len(found) <= 41 + 4
    later = visits(ids, 1000, shard_of, 900)
    assert min(visit.first for visit in later) == 1000  # nothing that was consumed is visited


class Shelf:
    """What has been brought and not left; bring() waits at `gate` if it is given."""

    def __init__(self) -> None:
        self.here, self.most, self.brought = set[int](), 0, list[int]()
        self.lock = threading.Lock()

    def bring(self, shard: int, stop: threading.Event) -> None:
        with self.lock:
            self.here.add(shard)
            self.brought.append(shard)
            self.most = max(self.most, len(self.here))

    def leave(self, shard: int) -> None:
        with self.lock:
            self.here.remove(shard)


def test_every_sample_finds_its_shard_here_and_no_more_than_the_window_is() -> None:
    first = np.arange(0, 2100, 50)
    ids = windowed_order(0, 0, first, 4)
    shard_of = np.searchsorted(first, ids, side="right") - 1
    shelf = Shelf()
    staging = Staging(visits(ids, 0, shard_of, 900), 4, shelf.bring, shelf.leave, threading.Event())
    for start in range(0, len(ids), 16):
        staging.reach(start, min(start + 15, len(ids) - 1))
        assert set(shard_of[start : start + 16]) <= shelf.here
    staging.close()
    assert not shelf.here
    assert shelf.most <= 4 + AHEAD + 1  # a batch may lie across a border
    assert len(shelf.brought) <= 41 + 4


@pytest.mark.parametrize(("shards", "window"), [(5, 1), (20, 10), (20, 16), (24, 16), (30, 16), (200, 16)])
def test_no_more_shards_are_needed_than_is_said(shards: int, window: int) -> None:
    """Also where the window is nearly as wide as the circle, and a shard's two visits nearly meet."""
    first = np.arange(0, 50 * shards + 1, 50)
    for epoch in range(3):
        ids = windowed_order(1, epoch, first, window)
        gap = len(ids) * (shards - window) // shards // 2
        found = visits(ids, 0, np.searchsorted(first, ids, side="right") - 1, gap)
        at_once = [sum(visit.first <= at <= visit.last for visit in found) for at in range(0, len(ids), 7)]
        assert max(at_once) <= min(window + AHEAD, shards)


def test_an_error_while_bringing_reaches_the_reader_and_closing_ends_a_wait() -> None:
    def bring(shard: int, stop: threading.Event) -> None:
        if shard == 2:
            raise InputError("shard 2 is lost")
        if shard == 7:
            stop.wait()

    ahead = [Visit(10 * n, 10 * n + 9, n) for n in range(5)]
    staging = Staging(ahead, 1, bring, lambda shard: None, threading.Event())
    staging.reach(0, 15)
    with pytest.raises(InputError, match="shard 2 is lost"):
        staging.reach(16, 25)
    staging.close()
    waiting = Staging([Visit(0, 9, 7)], 1, bring, lambda shard: None, threading.Event())
    waiting.close()  # bring() is under way, and gives up
