"""What this rank does for a batch: which samples it decodes, read and ready for the decoder, and the facts of its group's rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipeline.cache import NOT_CACHED, Cache
from pipeline.draws import Draws
from pipeline.graph import Fed
from pipeline.samples import Samples
from pipeline.share import Route, Share, route
from pipeline.staging import Staging


@dataclass
class Part:
    """One batch on one rank.

    Of this rank's h rows: positions in the epoch; ids and labels, (h,) int64, of what was really read; draws and colour
    shift, (h, 3) float32 grey levels, which belong to the position's own id; slots in the cache, -1 for none. jpegs: the
    encoded pictures of the rows in `missing`, which have to be decoded; sources: ids of the samples that they are of. Of the
    rows that it needs after the exchange: needed_draws, needed_shift. way: what crosses, None where every row is this rank's own.
    """

    positions: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    draws: Draws
    shift: np.ndarray
    slots: np.ndarray
    needed_draws: Draws
    needed_shift: np.ndarray
    way: Route | None
    missing: np.ndarray
    jpegs: list[np.ndarray] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def fed(self) -> Fed:
        """What the decoder needs for the missing rows."""
        return Fed(self.jpegs, self.draws.rows(self.missing), self.shift[self.missing])


class Feed:
    """Prepares the batches of a pass, in their order."""

    def __init__(
        self,
        samples: Samples,
        batch: int,
        share: Share,
        draws_of: Callable[[np.ndarray, np.ndarray], tuple[Draws, np.ndarray]],
        cache: Cache | None,
    ) -> None:
        """draws_of: (ids, positions) -> draws and colour shift."""
        self.samples, self._batch, self._share, self._draws_of, self._cache = samples, batch, share, draws_of, cache
        self._order = np.empty(0, np.int64)
        self._staging: Staging | None = None

    def begin(self, order: np.ndarray, epoch: int, staging: Staging | None) -> None:
        """A new pass over this order of sample ids."""
        self._order, self._staging = order, staging
        self.samples.begin(order, epoch)

    def prepare(self, start: int) -> Part:
        """Read this rank's rows of the batch that starts at position `start`. Raises InputError."""
        count = min(self._batch, len(self._order) - start)
        rows = self._share.group_rows(count)
        positions = np.arange(start + rows.start, start + rows.stop)
        if self._staging is not None and len(positions):
            self._staging.reach(start, int(positions[-1]))
        ids = self._order[positions]
        draws, shift = self._draws_of(ids, positions)
        decoders = self._share.decoders(ids, count)
        mine = np.flatnonzero(decoders == self._share.rank - self._share.group.start)
        own = self._share.needs(self._share.rank, count)
        needed = np.arange(own.start - rows.start, own.stop - rows.start)
        part = Part(
            positions=positions[mine],
            ids=ids[mine],
            labels=np.empty(len(mine), np.int64),
            draws=draws.rows(mine),
            shift=shift[mine],
            slots=np.full(len(mine), -1),
            needed_draws=draws.rows(needed),
            needed_shift=shift[needed],
            way=route(self._share, decoders, count) if len(self._share.group) > 1 else None,
            missing=np.arange(len(mine)),
        )
        self._fill(part)
        return part

    def _fill(self, part: Part) -> None:
        """Labels from the cache, and the other samples from the shards."""
        if self._cache is not None:
            part.labels[:] = self._cache.labels_of(part.ids)
            part.labels[self.samples.known_bad(part.ids)] = NOT_CACHED
            part.missing = np.flatnonzero(part.labels == NOT_CACHED)
            part.slots = self._cache.slots(part.ids)
        read = [self._read(part, row) for row in part.missing.tolist()]
        part.sources, part.jpegs = [source for source, _ in read], [jpeg for _, jpeg in read]

    def _read(self, part: Part, row: int) -> tuple[int, np.ndarray]:
        source, jpeg, label = self.samples.read(int(part.positions[row]))
        part.labels[row] = label
        if label >= 0:  # what is not counted keeps its own id
            part.ids[row] = source
        if self._cache is not None:
            # What stands in for a sample that is not counted has its pixels, but not its label: it has no slot.
            part.slots[row] = self._cache.slots(part.ids[row : row + 1])[0] if label >= 0 else -1
        return source, jpeg

    def replace(self, part: Part, faults: dict[int, str]) -> None:
        """Rows that could not be decoded, with the decoder's words: name the sample, or read what takes its place."""
        for number, reason in faults.items():
            self.samples.reject(part.sources[number], reason)
        for number in faults:
            part.sources[number], part.jpegs[number] = self._read(part, int(part.missing[number]))

    def settle(self, part: Part) -> None:
        """All missing rows are decoded: what was read in place of a bad sample is final."""
        positions = part.positions[part.missing]
        if part.sources != self._order[positions].tolist():
            for position, source in zip(positions.tolist(), part.sources, strict=True):
                self.samples.settle(position, source)
