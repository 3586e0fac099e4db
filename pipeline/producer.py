"""The loader's thread: from samples to the pixels of one batch after the other, ahead of the training."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline.cache import Cache
from pipeline.decode import DaliPictures, PlanesPictures
from pipeline.device import upload
from pipeline.errors import InputError
from pipeline.feed import Feed, Part
from pipeline.freed import FreedMemory
from pipeline.passes import Passes
from pipeline.pixels import CpuPixels, Out
from pipeline.pixels_gpu import GpuPixels
from pipeline.staging import Staging
from pipeline.times import StageTimes


@dataclass
class Ready:
    """A part with its pixels: finished images, or windows that have still to cross or to be cut further, (rows, bytes) uint8."""

    part: Part
    pixels: torch.Tensor


@dataclass
class Producer:
    """cut: to windows, finish: to a batch; which of the two, `finished` says. prefetch: batches kept in the decoder beside the one
    that is being finished. device: where pixels are handed over; stream: of it, for all that this thread does there."""

    passes: Passes
    feed: Feed
    pictures: DaliPictures | PlanesPictures
    cut: CpuPixels | GpuPixels
    finish: CpuPixels | GpuPixels
    finished: bool
    out: Out
    cache: Cache | None
    prefetch: int
    device: torch.device
    stream: torch.cuda.Stream | None
    times: StageTimes
    freed: FreedMemory = field(default_factory=FreedMemory)

    def run(self, epoch: int, starts: range, ahead: queue.Queue[Ready | BaseException], stop: threading.Event) -> None:
        """This rank's rows of the batches that start at `starts`, into the queue; an error goes in as itself."""
        staging: Staging | None = None
        try:
            with self.times("read"):
                ids = self.passes.ids(epoch)
                staging = self.passes.staging(ids, starts.start, stop)
                self.feed.begin(ids, epoch, staging)
            for ready in self._decoded(starts, stop):
                self.freed.hand_back()
                with self.times("idle"):
                    ahead.put(ready)
        except BaseException as error:
            ahead.put(error)
        finally:
            self.pictures.drain()
            if staging is not None:
                staging.close()

    def _decoded(self, starts: range, stop: threading.Event) -> Iterator[Ready]:
        under_way: deque[Part] = deque()
        for start in starts:
            if stop.is_set():
                return
            try:
                with self.times("read"):
                    part = self.feed.prepare(start)
            except InputError:  # the batches before it are good
                yield from map(self._ready, under_way)
                raise
            with self.times("decode"):
                self.pictures.schedule(part)
            under_way.append(part)
            if len(under_way) > self.prefetch:
                yield self._ready(under_way.popleft())
        while under_way and not stop.is_set():
            yield self._ready(under_way.popleft())

    def _nothing(self) -> torch.Tensor:
        """The pixels of no rows."""
        crop = self.cut.augmentation.crop
        if self.finished:
            return torch.empty((0, 3, crop, crop), dtype=torch.float32 if self.out == "float32" else torch.uint8, device=self.device)
        return torch.empty((0, crop * crop * 3), dtype=torch.uint8, device=self.device)

    def _ready(self, part: Part) -> Ready:
        if not len(part.ids):  # of a short last batch, or of one whose pictures all are in other ranks' caches
            return Ready(part, self._nothing())
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            with self.times("decode"):
                decoded = self.pictures.take(part)
            if self.cache is not None and decoded is not None:
                with self.times("copy"):
                    _keep(self.cache, part, decoded)
            with self.times("augment"):
                if self.finished:
                    pixels = self.finish.batch(part, decoded, self.cache, self.out)
                else:
                    pixels = self.cut.windows(part, decoded, self.cache)
                    pixels = pixels if pixels.device == self.device else upload(pixels.numpy(), self.device)
                if self.stream is not None:
                    self.stream.synchronize()
        return Ready(part, pixels)


def _keep(cache: Cache, part: Part, decoded: torch.Tensor) -> None:
    """Put into the cache what was decoded and has a slot."""
    slots = part.slots[part.missing]
    chosen = np.flatnonzero(slots >= 0)
    if not len(chosen):
        return
    pictures: Any = decoded.flatten(1)
    if isinstance(cache.store, torch.Tensor):
        pictures = pictures if len(chosen) == len(slots) else pictures[upload(chosen, pictures.device)]
    else:
        pictures = pictures.numpy()[chosen]
    cache.put(slots[chosen], pictures, part.labels[part.missing][chosen])
