"""Where a loader's thread spends its time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

# read: samples from the shards, and their draws; decode: handing over to the decoder and waiting for it; augment: windows,
# mirror, mean, colour; copy: into the cache, between ranks, to the device; idle: nothing to do, batches wait for the training.
Stage = Literal["read", "decode", "augment", "copy", "idle"]
STAGES: tuple[Stage, ...] = ("read", "decode", "augment", "copy", "idle")


class StageTimes:
    """Seconds of each stage since the last `share`. Where ranks exchange pictures, the last steps run in the training's thread."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def share(self) -> dict[Stage, float]:
        """Percent of each stage since the last call; all 0 before the first batch."""
        seconds, self.seconds = self.seconds, dict.fromkeys(STAGES, 0.0)
        whole = sum(seconds.values())
        return {stage: 100 * seconds[stage] / whole if whole else 0.0 for stage in STAGES}
