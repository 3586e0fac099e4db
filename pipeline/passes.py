"""The order of a split's samples in each pass over it, and what brings their shards near."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pipeline.order import Order, order, windowed_order
from pipeline.shards import ShardSet
from pipeline.staging import AHEAD, Staging, visits


@dataclass(frozen=True)
class Passes:
    """kind, window: of a permuted order (permuted False: as stored); see order.py."""

    shards: ShardSet
    seed: int
    permuted: bool
    kind: Order = "global"
    window: int = 16
    _ahead: dict[int, Future[np.ndarray]] = field(default_factory=dict, repr=False)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "order"), repr=False)

    @property
    def name(self) -> str:
        """What a resumed run must agree in."""
        return self.kind if self.kind == "global" else f"windowed over {self.window} shards"

    def ids(self, epoch: int) -> np.ndarray:
        """Sample id at every position of an epoch; that of the next is computed meanwhile, a tenth of a second for ImageNet."""
        ready = self._ahead.pop(epoch, None)
        found = ready.result() if ready is not None else self.ids_anew(epoch)
        self._ahead.clear()
        self.foresee(epoch + 1)
        return found

    def foresee(self, epoch: int) -> None:
        """Begin to compute the order of an epoch that will be asked for."""
        if epoch not in self._ahead:
            self._ahead[epoch] = self._thread.submit(self.ids_anew, epoch)

    def ids_anew(self, epoch: int) -> np.ndarray:
        """Sample id at every position of any epoch."""
        if not self.permuted:
            return np.arange(len(self.shards))
        if self.kind == "global":
            return order(self.seed, epoch, len(self.shards))
        return windowed_order(self.seed, epoch, self.shards.first, self.window)

    def staging(self, ids: np.ndarray, position: int, stop: threading.Event) -> Staging | None:
        """What brings the shards of a pass from `position` on near, where they are far or are to be read one behind the other."""
        if self.kind == "global" and not self.shards.is_remote:
            return None
        numbers = np.arange(len(self.shards.shards), dtype=np.min_scalar_type(len(self.shards.shards)))  # of 16 bits they are sorted in linear time
        shard_of = np.repeat(numbers, np.diff(self.shards.first))[ids]
        window = 1 if not self.permuted else self.window if self.kind == "windowed" else len(self.shards.shards)
        shards = max(len(self.shards.shards), 1)
        gap = max(len(ids) * (shards - window) // shards // 2, 1) if window < shards else len(ids)  # half of what lies between two visits
        return Staging(visits(ids, position, shard_of, gap), window, self.shards.bring, self.shards.leave, stop)

    def notes(self) -> list[str]:
        """What the user should know before the first step."""
        if self.kind == "global" or not self.permuted:
            return []
        held = min(self.window + AHEAD, len(self.shards.shards))
        size = held * max(shard.bytes for shard in self.shards.shards)
        return [f"order: windowed, shards are read one behind the other, {held} of them at a time: {size / 1e9:.2f} GB of memory for files"]
