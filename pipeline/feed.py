"""What DALI decodes next: this rank's part of every batch of a pass, read, and the facts of the whole batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipeline.draws import Draws
from pipeline.graph import Fed
from pipeline.shards import ShardSet


@dataclass(frozen=True)
class Part:
    """This rank's windows of a batch (None where its share of a last batch is empty), and all rows of its group: labels, ids,
    draws, and colour shift (n, 3) float32 grey levels. sizes: rows that each rank of the group decodes."""

    images: torch.Tensor | None
    labels: np.ndarray
    ids: np.ndarray
    draws: Draws
    shift: np.ndarray
    sizes: list[int]


@dataclass(frozen=True)
class Share:
    """Who decodes what of a batch: `rank` of `world`, and the ranks `group` that need each other's parts (itself among them)."""

    rank: int
    world: int
    group: range

    def rows(self, rank: int, count: int) -> range:
        """Rows of a batch of `count` that a rank decodes."""
        return range(count * rank // self.world, count * (rank + 1) // self.world)


class Feed:
    """DALI takes batches ahead of giving results; `taken` holds those whose result is still to come."""

    def __init__(
        self, shards: ShardSet, batch: int, share: Share, draws_of: Callable[[np.ndarray, np.ndarray], tuple[Draws, np.ndarray]], ahead: int
    ) -> None:
        """draws_of: (ids, positions) -> draws and colour shift. ahead: batches that DALI may have taken ahead."""
        self._shards, self._batch, self._share, self._draws_of, self._ahead = shards, batch, share, draws_of, ahead
        self._starts: deque[int] = deque()
        self._taken: deque[Part] = deque()
        self._order = np.empty(0, np.int64)
        self._drained = True

    def begin(self, order: np.ndarray, starts: range) -> None:
        """A new pass: sample id at every position, and the position of the first sample of every batch."""
        assert self._drained, "DALI ended with an error; results of that pass could be taken for the next one's: make a new loader"
        self._order, self._starts = order, deque(starts)
        self._taken.clear()

    def _rows(self, start: int, rank: int) -> range:
        return self._share.rows(rank, min(self._batch, len(self._order) - start))

    def next_is_empty(self) -> bool:
        """Whether the next result is a share of no images at all, which DALI must not be asked for."""
        return not self._taken and bool(self._starts) and not self._rows(self._starts[0], self._share.rank)

    def feed(self) -> Fed:
        """DALI's callback: read and draw the next batch."""
        if not self._starts or not self._rows(self._starts[0], self._share.rank):
            raise StopIteration
        part, fed = self._read(self._starts[0])
        self._starts.popleft()
        self._taken.append(part)
        return fed

    def _read(self, start: int) -> tuple[Part, Fed]:
        """Facts of the group's rows of a batch; the pictures of this rank's, and only the labels of the others'."""
        ranks = [self._rows(start, rank) for rank in self._share.group]
        positions = np.arange(start + ranks[0].start, start + ranks[-1].stop)
        ids = self._order[positions]
        draws, shift = self._draws_of(ids, positions)
        own = self._rows(start, self._share.rank)
        first = own.start - ranks[0].start
        mine = slice(first, first + len(own))
        labels = np.empty(len(ids), np.int64)
        jpegs = []
        for row, sample in enumerate(ids.tolist()):
            if mine.start <= row < mine.stop:
                jpeg, labels[row] = self._shards.read(sample)
                jpegs.append(jpeg)
            else:
                labels[row] = self._shards.read_label(sample)
        own_draws = Draws(draws.x[mine], draws.y[mine], draws.flip[mine], draws.normals[mine])
        return Part(None, labels, ids, draws, shift, [len(rows) for rows in ranks]), Fed(jpegs, own_draws, shift[mine])

    def oldest_ids(self) -> np.ndarray:
        """Ids of the batch whose result comes next, all of its group."""
        return self._taken[0].ids

    def take(self, images: torch.Tensor | None) -> Part:
        """Join the next result with what was fed for it."""
        if images is None:
            part, _ = self._read(self._starts.popleft())
            return part
        return replace(self._taken.popleft(), images=images)

    def drain(self, pipe: Any) -> None:
        """Empty DALI's queue, so that the next pass starts with its own first batch."""
        self._starts.clear()
        self._drained = False
        for _ in range(self._ahead + 2):
            try:
                pipe.run()
            except StopIteration:
                pipe.reset()
                self._drained = True
                return
            except RuntimeError:  # a picture that cannot be decoded, in a batch that nobody wants any more
                continue
