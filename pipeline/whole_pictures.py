"""Whole pictures of a split at one or several scales, none of them cropped: what a net that takes any size is evaluated on."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from pipeline.colour import mean_colour, read_colour_stats
from pipeline.decode import DaliPictures
from pipeline.device import chosen_device, upload
from pipeline.draws import Draws, fixed
from pipeline.errors import InputError
from pipeline.feed import Feed, Part
from pipeline.graph import Fed, decode
from pipeline.manifest import SplitName
from pipeline.passes import Passes
from pipeline.samples import OnBadSample, Samples, Skipped
from pipeline.settings import MAX_SCALE, check_numbers, check_place, check_words
from pipeline.shards import ShardSet
from pipeline.share import Share

AHEAD = 2  # batches that DALI works on while one is used
SCALES = range(16, MAX_SCALE + 1)  # pixels of a shorter side


@dataclass(frozen=True)
class WholeBatch:
    """pictures: for each scale n pictures, each (3, h, w) float32 grey levels less the mean colour, RGB, its shorter side the scale.

    labels, ids: (n,) int64 as in Batch, a label of -1 for a sample that is not counted. All on the loader's device but ids.
    """

    pictures: list[list[torch.Tensor]]
    labels: torch.Tensor
    ids: torch.Tensor


class WholePictures:
    """This rank's part of a split, in stored order, every picture once, decoded once and resized to each of `scales`.

    shards, split, rank, world, device, threads, on_bad_sample, local, local_gb: as in ImageLoader, but of whole pictures too. scales:
    shorter sides in pixels, the longer one is rounded; (): the one that the shards have. batch: pictures at a time over ALL ranks; all
    ranks come to equally many batches, of which the last may have no pictures for some. Raises InputError.
    """

    def __init__(
        self,
        shards: str | Path,
        split: SplitName,
        scales: tuple[int, ...],
        batch: int,
        *,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
        threads: int = 1,
        on_bad_sample: OnBadSample = "stop",
        local: Path | None = None,
        local_gb: float | None = None,
    ) -> None:
        self.shards = ShardSet(shards, split, local, local_gb)
        check_words(on_bad_sample=on_bad_sample)
        check_numbers(batch=batch, world=world, threads=threads)
        check_place(rank, world, 0, 0)
        self.scales = scales or (self.shards.manifest.settings.size,)
        _check_scales(self.scales)
        self.batch, self.device = batch, chosen_device(device)
        self._mean = _mean_of(self.shards, self.device)
        self._samples, self._iterating = Samples(self.shards, on_bad_sample, replace=False), False
        share = Share(rank, world, range(rank, rank + 1))
        self._feed = Feed(self._samples, batch, share, _nothing_drawn, None)
        # In a Decoder's place: what puts a batch with a bad picture together again hands on what comes out, whatever it is.
        make: Any = partial(Resizer, self.scales, batch=share.most_rows(batch), threads=threads, device=self.device)
        self._decoder: Any = DaliPictures(self._feed, make)

    @property
    def skipped(self) -> list[Skipped]:
        """The bad samples that this rank has skipped, each once."""
        return self._samples.skipped

    def __len__(self) -> int:
        """Batches of the whole split."""
        return len(self._starts())

    def _starts(self) -> range:
        return range(0, len(self.shards), self.batch)

    def __iter__(self) -> Iterator[WholeBatch]:
        """The whole split, from its start. Raises InputError where a bad sample is not to be skipped, with its place."""
        assert not self._iterating, "finish or drop the iterator first"
        self._iterating, stop, under_way = True, threading.Event(), deque[Part]()
        passes = Passes(self.shards, 0, permuted=False)
        order = passes.ids_anew(0)
        staging = passes.staging(order, 0, stop)
        self._feed.begin(order, 0, staging)
        try:
            for start in self._starts():
                under_way.append(self._scheduled(start))
                if len(under_way) > AHEAD:
                    yield self._taken(under_way.popleft())
            while under_way:
                yield self._taken(under_way.popleft())
        finally:
            self._decoder.drain()
            if staging is not None:
                staging.close()
            self._iterating = False

    def _scheduled(self, start: int) -> Part:
        part = self._feed.prepare(start)
        self._decoder.schedule(part)
        return part

    def _taken(self, part: Part) -> WholeBatch:
        pictures = self._decoder.take(part) or [[] for _ in self.scales]
        less = [[picture.permute(2, 0, 1).float() - self._mean for picture in of_scale] for of_scale in pictures]
        return WholeBatch(less, upload(part.labels, self.device), torch.from_numpy(part.ids))


def _check_scales(scales: tuple[int, ...]) -> None:
    if any(scale not in SCALES for scale in scales):
        raise InputError(f"scales must be shorter sides of {SCALES.start} to {MAX_SCALE} pixels, not {', '.join(map(str, scales))}")


def _mean_of(shards: ShardSet, device: torch.device) -> torch.Tensor:
    """(3, 1, 1) float32 grey levels of 0..255, RGB: the mean colour of the training pictures. Raises InputError."""
    stats = read_colour_stats(shards.folder, shards.digest, shards.manifest.settings.size)
    return torch.from_numpy(mean_colour(stats.statistics, 1)).view(3, 1, 1).to(device)


def _nothing_drawn(ids: np.ndarray, positions: np.ndarray) -> tuple[Draws, np.ndarray]:
    return fixed(len(ids), 0, 0), np.zeros((len(ids), 3), np.float32)


class Resizer:
    """DALI working ahead, as graph.Decoder does: batches are handed in by `schedule` and come out by `take` in the same order."""

    def __init__(self, scales: tuple[int, ...], *, batch: int, threads: int, device: torch.device) -> None:
        """batch: most pictures in a batch."""
        self._device, self._under_way = device, 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        device_id: Any = None if device.type == "cpu" else device.index or 0
        # With a queue of one DALI's first run asks for one batch; more may be under way all the same.
        graph = pipeline_def(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True)(_graph)
        self._pipe = graph(scales, device.type)
        self._pipe.build()

    def schedule(self, fed: Fed) -> None:
        """Begin to decode a batch; at least one picture."""
        self._pipe.feed_input("jpeg", fed.jpegs)
        self._pipe.schedule_run()
        self._under_way += 1

    def take(self) -> list[list[torch.Tensor]]:
        """For each scale the pictures, (h, w, 3) uint8, of the oldest batch under way. Raises RuntimeError when one could not be decoded."""
        self._under_way -= 1
        outputs = self._pipe.outputs()
        if self._stream is None:
            return [[torch.from_dlpack(picture) for picture in of_scale] for of_scale in outputs]
        with torch.cuda.stream(self._stream):  # see graph.to_torch
            copies = [[torch.from_dlpack(picture).clone() for picture in of_scale] for of_scale in outputs]
        self._stream.synchronize()
        present = torch.cuda.current_stream(self._device)
        for copy in (picture for of_scale in copies for picture in of_scale):
            copy.record_stream(present)  # its memory must not be used again before the present stream, which may be behind, is done with it
        return copies

    def drain(self) -> None:
        """Wait for all batches under way and forget them."""
        while self._under_way:
            try:
                self.take()
            except RuntimeError:  # a picture that cannot be decoded, in a batch that nobody wants any more
                continue


def _graph(scales: tuple[int, ...], device: str) -> Any:
    jpeg = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, batch=True)
    picture = decode(jpeg, device)
    # Without subpixel_scale=False the rounding of the longer side would cut up to half a pixel off the picture's ends.
    how = {"interp_type": types.INTERP_LINEAR, "antialias": True, "subpixel_scale": False}
    return tuple(fn.resize(picture, resize_shorter=float(scale), **how) for scale in scales)


def plain_whole(jpeg: np.ndarray, scale: int) -> np.ndarray:
    """The plain form, with Pillow: a picture resized so that its shorter side is `scale`, (h, w, 3) uint8; the longer side is rounded.

    Both average over the pixels that are merged to one, with weights that fall linearly; Pillow leaves out those beyond the picture's
    edge, DALI repeats the edge, as is done here. DALI's differs by at most 1 grey level, since Pillow rounds after each of two passes.
    """
    pixels = np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    beyond = -(-shorter // scale) + 1
    size = tuple((2 * side * scale + shorter) // (2 * shorter) for side in (width, height))
    wider = Image.fromarray(np.pad(pixels, ((beyond, beyond), (beyond, beyond), (0, 0)), "edge"))
    return np.asarray(wider.resize(size, Image.Resampling.BILINEAR, box=(beyond, beyond, beyond + width, beyond + height)))
