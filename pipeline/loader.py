"""Batches of one split, in our order and with our draws, decoded by DALI on threads of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline.augment import Augmentation, central_draws, mean_for, training_draws
from pipeline.batch import Batch, LoadingGivenUp
from pipeline.cache import CacheSettings, Where
from pipeline.cache_plan import plan_cache
from pipeline.colour import read_colour_stats
from pipeline.decode import DaliPictures, PlanesPictures
from pipeline.device import chosen_device, upload
from pipeline.draws import Draws
from pipeline.exchange import Exchange
from pipeline.feed import Feed
from pipeline.graph import Decoder
from pipeline.manifest import SplitName
from pipeline.order import Order
from pipeline.passes import Passes
from pipeline.pixels import CpuPixels, Out
from pipeline.pixels_gpu import GpuPixels
from pipeline.producer import Producer, Ready
from pipeline.samples import OnBadSample, Samples, Skipped
from pipeline.settings import DecoderName, Views, check_numbers, check_place, check_scale, check_settings, check_state, check_words, decoded_as
from pipeline.shards import ShardSet
from pipeline.times import StageTimes
from pipeline.turbojpeg_planes import check_planes

WAIT = 0.2  # seconds between looks at whether the wait for a batch was given up


class ImageLoader:
    """Batches of a split of a shard folder.

    shards: folder made by make_shards, with its colour statistics, or an fsspec URL of one, fetched shard by shard into the
    folder `local`, of which it takes at most local_gb (10^9 bytes). split: "train", "val", "test" (labels may be -1). batch: images a step over ALL
    ranks. views: "train" (permuted order, random crop, flip and colour; N // batch steps an epoch, the N % batch samples left
    over are others in every epoch), "centre" or "ten" (stored order, every sample exactly once, the last batch short); by
    default "train" of the training split and "centre" of the other. crop: side of the pictures, 227 unless given here or by
    `augmentation`. rank, world: who of how many decodes; rank r takes the r-th of `world` equal parts of each batch. group:
    ranks that all need the same images (the two columns of the net) as a torch.distributed group of neighbouring ranks: each
    decodes its own part, and they exchange uint8 windows, so no image is decoded twice; every rank of it gets the parts of
    all. machine: group of the ranks of this machine, neighbouring too, which share a cache; with a cache all of them must make
    their loaders at the same time. device: "cpu" or "cuda[:k]". threads: decoding threads. prefetch: batches decoded ahead.
    out: see Batch. order: "global", any sample anywhere, or "windowed": whole shards read one behind the other, their samples
    mixed among `window` shards. decoder: "dali", or "turbojpeg", which keeps the JPEG's YUV planes until the window is cut, on
    the CPU's cores: the same pixels, less work. cache: of decoded pictures, "host", "device" or cache.CacheSettings.
    on_bad_sample: "stop" with an error that names it, or "skip" (samples.Samples); `skipped` lists them.

    Raises InputError for shards that cannot be trusted, and for a batch that does not divide over the ranks.
    """

    def __init__(
        self,
        shards: str | Path,
        split: SplitName,
        *,
        batch: int,
        views: Views | None = None,
        crop: int | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
        machine: dist.ProcessGroup | None = None,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        prefetch: int = 2,
        out: Out = "float32",
        order: Order = "global",
        window: int = 16,
        decoder: DecoderName = "dali",
        cache: CacheSettings | Where | None = None,
        on_bad_sample: OnBadSample = "stop",
        local: Path | None = None,
        local_gb: float | None = None,
    ) -> None:
        augmentation = augmentation or Augmentation()
        views = views or ("train" if split == "train" else "centre")
        cache = CacheSettings(cache) if isinstance(cache, str) else cache
        augmentation = augmentation if crop is None else replace(augmentation, crop=crop)
        self.device = chosen_device(device)
        self.shards = ShardSet(shards, split, local, local_gb)
        check_scale(self.shards, augmentation, decoder, cache)
        self._stats = read_colour_stats(self.shards.folder, self.shards.digest, self.shards.manifest.settings.size)
        self._size = augmentation.side(self.shards.manifest.settings.size)
        check_words(views=views, order=order, out=out, decoder=decoder, on_bad_sample=on_bad_sample, mean_window=augmentation.mean_window)
        check_numbers(window=window, prefetch=prefetch, threads=threads, world=world, batch=batch, crop=augmentation.crop)
        check_place(rank, world, seed, epoch)
        check_settings(self.shards, batch, augmentation.crop, self._size, views, world, out)
        self.augmentation = augmentation if views == "train" else augmentation.plain()
        self._mean = mean_for(augmentation, self._stats)
        self.batch, self.views, self.seed, self.epoch, self.position = batch, views, seed, epoch, 0
        self.rank, self.world, self.out = rank, world, out
        self._passes = Passes(self.shards, seed, views == "train", order, window)
        self.notes = self._passes.notes()  # what the user should know before the first step
        if self.shards.is_remote:
            self.notes.insert(0, f"shards: fetched from {shards} into {self.shards.folder} ahead of use, each checked against its sum")
        self._threads, self._prefetch, self._iterating = threads or os.cpu_count() or 1, prefetch, False
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        plan = plan_cache(cache or CacheSettings(), len(self.shards), self._size, self.device, rank, world, group, machine)
        self.notes += plan.notes
        self._share, self._group, self._cache = plan.share, plan.group, plan.cache
        if cache is not None and cache.where != "none" and cache.pixels == "yuv420" and decoder == "dali":
            self.notes.append("cache: YUV planes are decoded by TurboJPEG, since DALI gives none; the pixels are the same")
        self._decoder = decoded_as(decoder, cache, plan.cache is not None, self.device.type, augmentation.scale is not None)
        self.given_up: Callable[[], object] = lambda: False  # asked while a batch is waited for; if true, LoadingGivenUp is raised
        self.times, self._samples = StageTimes(), Samples(self.shards, on_bad_sample, replace=views == "train")
        self._feed = Feed(self._samples, batch, self._share, self.draws_of, self._cache)
        self._build()

    def _build(self) -> None:
        """The decoder, and what is done to its pictures."""
        whole = self.views == "ten"  # ten views are cut from the whole picture
        self._cut_to = replace(self.augmentation, crop=self._size) if whole else self.augmentation
        # Alone on a GPU, DALI's own operators do all.
        in_dali = self._decoder == "windows" and self._group is None and self.device.type == "cuda" and self.out == "float32" and not whole
        kinds: dict[str, Any] = {"windows": "float32" if in_dali else "windows", "rgb": "pictures"}
        # What is cached in main memory is decoded and cut by the CPU, and its windows go to the device.
        by_cpu = self._cache is not None and not isinstance(self._cache.store, torch.Tensor)
        place = torch.device("cpu") if by_cpu else self.device
        pictures: DaliPictures | PlanesPictures
        if self._decoder == "yuv420":
            check_planes(self._size)
            pictures = PlanesPictures(self._feed, self._size, place, self._threads)
        else:
            most = self._share.most_rows(min(self.batch, max(len(self.shards), self.world)))
            settings: dict[str, Any] = {"augmentation": self._cut_to, "mean_image": self._mean, "device": place}
            settings |= {"batch": most, "threads": self._threads, "prefetch": self._prefetch}
            pictures = DaliPictures(self._feed, partial(Decoder, kinds[self._decoder], **settings))
        cut, self._finish = self._make_pixels(self._cut_to, place), self._make_pixels(self.augmentation, self.device)
        self._finished = self._group is None and not whole and place == self.device
        self._producer = Producer(
            passes=self._passes,
            feed=self._feed,
            pictures=pictures,
            cut=cut,
            finish=self._finish,
            finished=self._finished,
            out=self.out,
            cache=self._cache,
            prefetch=self._prefetch,
            device=self.device,
            stream=self._stream,
            times=self.times,
        )
        self._passes.foresee(self.epoch)  # while whoever made the loader makes other things

    def _make_pixels(self, augmentation: Augmentation, place: torch.device) -> CpuPixels | GpuPixels:
        if place.type == "cpu":
            return CpuPixels(augmentation, self._mean, self._decoder, self._threads)
        return GpuPixels(augmentation, self._mean, self._decoder, self.device)

    def change(self, augmentation: Augmentation) -> None:
        """From the next batch asked for on, other colours; the cache and the place in the epoch stay."""
        kept = [(a.crop, a.scale, a.mean_window) for a in (augmentation, self.augmentation)]
        assert kept[0] == kept[1], "crop, scale and mean of a loader are fixed"
        assert not self._iterating, "finish or drop the iterator first"
        self.augmentation = augmentation
        del self._producer  # its decoder's memory goes before another's is taken
        self._build()

    @property
    def skipped(self) -> list[Skipped]:
        """The bad samples that this rank has skipped, each once."""
        return self._samples.skipped

    def __len__(self) -> int:
        """Batches from the present position to the end of the epoch."""
        return len(self._starts())

    def _starts(self) -> range:
        """Position of the first sample of every batch still to come."""
        count = len(self.shards)
        stop = count - self.batch + 1 if self.views == "train" else count
        return range(self.position, stop, self.batch)

    def ids_of(self, epoch: int) -> np.ndarray:
        """Sample id at every position of an epoch, int64; a bad sample that is skipped is not known yet."""
        return self._passes.ids_anew(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts: {epoch, position (samples consumed over all ranks), seed, digest of the shard set, order}."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "digest": self.shards.digest, "order": self._passes.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the very next image; ranks and batch may differ from those that wrote the state. Raises InputError."""
        check_state(state, self.state_dict(), self.shards)
        if self._iterating:
            raise RuntimeError("a state cannot be loaded while the loader is being iterated")
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """The batches left of this epoch; when all are taken, the loader stands at the start of the next epoch."""
        if self._iterating:
            raise RuntimeError("this loader is being iterated already; finish or drop that iterator first, or make a second loader")
        self._iterating = True
        ahead: queue.Queue[Ready | BaseException] = queue.Queue(self._prefetch)
        stop = threading.Event()
        starts = self._starts()
        producer = threading.Thread(target=self._producer.run, args=(self.epoch, starts, ahead, stop), daemon=True, name="image-loader")
        producer.start()
        crossing: deque[tuple[Ready, Exchange | None]] = deque()
        try:
            for start in starts:
                # While a batch is trained on, the next one crosses between the ranks of the group.
                while len(crossing) < (1 if self._group is None else 2) and start + len(crossing) * self.batch in starts:
                    ready = self._taken(ahead)
                    crossing.append((ready, self._cross(ready)))
                batch = self._complete(*crossing.popleft())
                self.position = start + self.batch
                yield batch
            self.epoch, self.position = self.epoch + 1, 0
        finally:
            stop.set()
            while producer.is_alive():  # it may wait for room in the queue
                try:
                    ahead.get(timeout=0.02)
                except queue.Empty:
                    continue
            producer.join()
            self._iterating = False
            for _, left in crossing:  # every rank of the group has begun it, so it ends
                if left is not None:
                    left.wait()

    def _taken(self, ahead: queue.Queue[Ready | BaseException]) -> Ready:
        while True:
            try:
                ready = ahead.get(timeout=WAIT)
            except queue.Empty:
                if self.given_up():
                    raise LoadingGivenUp from None
                continue
            if isinstance(ready, BaseException):
                raise ready
            return ready

    def _cross(self, ready: Ready) -> Exchange | None:
        """Begin to exchange a part with the ranks of the group; without a group there is nothing to exchange."""
        if self._stream is not None:
            # Made on the loader's stream: its memory must not be used again before the present stream is done with it.
            ready.pixels.record_stream(torch.cuda.current_stream(self.device))
        if self._group is None:
            return None
        part = ready.part
        assert part.way is not None, "a group exchanges"
        return Exchange(ready.pixels, upload(part.labels, self.device), upload(part.ids, self.device), part.way, self._group)

    def _complete(self, ready: Ready, crossing: Exchange | None) -> Batch:
        """From what this rank decoded to the rows that it needs, finished, on the device."""
        part, images = ready.part, ready.pixels
        if crossing is None:
            labels, ids = upload(part.labels, self.device), torch.from_numpy(part.ids)
        else:
            with self.times("copy"):
                images, labels, ids = crossing.wait()
        if self.views == "ten":
            with self.times("augment"):
                images = self._finish.ten_views(images)
        elif not self._finished:
            with self.times("augment"):
                images = self._finish.finish(images, part.needed_draws, part.needed_shift, self.out)
        return Batch(images, labels, ids, part.needed_draws, part.needed_shift)

    def draws_of(self, ids: np.ndarray, positions: np.ndarray) -> tuple[Draws, np.ndarray]:
        """Draws and colour shift, (n, 3) float32 grey levels, of samples that stand at `positions` of the present epoch."""
        a = self.augmentation
        if self.views == "train":
            draws = training_draws(a, self._size, self.seed, self.epoch, ids, positions)
        else:
            draws = central_draws(self._cut_to, self._size, len(ids))
        return draws, self._stats.shift(draws.normals, a.colour, a.sigma)
