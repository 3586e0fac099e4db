"""Who decodes which rows of a batch, who needs them, and what has to cross between ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """One rank's share of every batch.

    rank of world. group: neighbouring ranks, this one among them, that exchange pictures. columns: how many neighbouring
    ranks need the same rows (the columns of one net). by_id: pictures are decoded by the rank of the group that caches
    them, not by equal parts of the batch.
    """

    rank: int = 0
    world: int = 1
    group: range = range(1)
    columns: int = 1
    by_id: bool = False

    def group_rows(self, count: int) -> range:
        """Rows of a batch of `count` that the group decodes and needs."""
        return self._rows(self.group.start, self.group.stop, count)

    def _rows(self, first: int, stop: int, count: int) -> range:
        return range(count * first // self.world, count * stop // self.world)

    def needs(self, rank: int, count: int) -> range:
        """Rows that a rank trains on: the part of all columns of its net."""
        first = rank - rank % self.columns
        return self._rows(first, first + self.columns, count)

    def decoders(self, ids: np.ndarray, count: int) -> np.ndarray:
        """For each of the group's rows, (n,) ids, which rank of the group decodes it: 0 .. len(group) - 1."""
        if self.by_id:
            return ids % len(self.group)
        ends = [self._rows(rank, rank + 1, count).stop for rank in self.group]
        rows = self.group_rows(count)
        return np.searchsorted(ends, np.arange(rows.start, rows.stop), side="right")

    def most_rows(self, batch: int) -> int:
        """The most rows that this rank may have to decode of one batch."""
        return len(self.group_rows(batch)) if self.by_id else -(-batch // self.world)


@dataclass(frozen=True)
class Route:
    """What crosses for one batch. send: which of the rows that this rank decodes, by destination; sizes: rows to and from
    each rank of the group; arrival: for each row that this rank needs, where it is in what arrives."""

    send: np.ndarray
    send_sizes: list[int]
    receive_sizes: list[int]
    arrival: np.ndarray


def route(share: Share, decoders: np.ndarray, count: int) -> Route:
    """The route of a batch of `count`; decoders: of the group's rows, see Share.decoders."""
    me, first = share.rank - share.group.start, share.group_rows(count).start
    mine = np.flatnonzero(decoders == me)
    needed = [share.needs(rank, count) for rank in share.group]
    sent = [np.flatnonzero((mine + first >= rows.start) & (mine + first < rows.stop)) for rows in needed]
    own = needed[me]
    by_row = decoders[own.start - first : own.stop - first]
    arrived = np.argsort(by_row, kind="stable")  # rows come sorted by sender, and in order of rows from each
    arrival = np.empty(len(own), np.int64)
    arrival[arrived] = np.arange(len(own))
    sizes = np.bincount(by_row, minlength=len(share.group)).tolist()
    return Route(np.concatenate(sent), [len(rows) for rows in sent], sizes, arrival)
