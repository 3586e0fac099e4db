"""Images per second that this machine gets out of a set of shards at each stage of the loader, by the loader's own parts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pipeline.augment import Augmentation, mean_for
from pipeline.cache import CacheSettings, Pixels, Where, free_memory, picture_bytes
from pipeline.colour import ColourStats, read_colour_stats
from pipeline.decode import DaliPictures
from pipeline.errors import InputError
from pipeline.feed import Feed, Part
from pipeline.graph import Decoder
from pipeline.inspect_shards import CACHED, cached_shards, measured_shards, only_first
from pipeline.inspect_storage import Storage, measure_storage
from pipeline.loader import ImageLoader
from pipeline.manifest import read_manifest
from pipeline.order import order
from pipeline.samples import Samples
from pipeline.scaled import Scale
from pipeline.shards import ShardSet
from pipeline.share import Share
from pipeline.turbojpeg_planes import check_planes

CROP, PREFETCH, PREFETCHES = 227, 2, (1, 2, 4)  # PREFETCH: ImageLoader's default
_READ_THROUGH = 4 << 30  # bytes of shards that are brought into the page cache beforehand, at most
_WARM_UP = 2  # batches that do not count: kernels are compiled, files opened
_ROUNDS, _SHORTEST = 3, 4  # batches of a pass, where the shards have so many: shorter ones would measure how it fills
_STEPS = 5  # numbers of threads tried

Say = Callable[[str], None]
Pass = Callable[[int], int]  # the number of batches, from nothing under way to nothing under way -> images
Passes = tuple[Pass, int]  # and the most batches that one can have


@dataclass
class Speeds:
    """Images per second; decode, uint8, float32 by decoding threads; prefetch, at best_threads, by batches ahead; cached by what is
    kept. fetch: of shards at a URL, None when none had to be fetched. storage: None for shards at a URL. scale: that whole pictures
    are brought to; they are not cached."""

    device: torch.device
    batch: int
    crop: int
    fetch: float | None = None
    storage: Storage | None = None
    read: float = 0.0
    decode: dict[int, float] = field(default_factory=dict)
    uint8: dict[int, float] = field(default_factory=dict)
    float32: dict[int, float] = field(default_factory=dict)
    prefetch: dict[int, float] = field(default_factory=dict)
    cached: dict[Pixels, float] = field(default_factory=dict)
    scale: Scale | None = None

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.crop, "same" if self.scale is None else "channel", scale=self.scale)

    @property
    def cache_where(self) -> Where:
        return "device" if self.device.type == "cuda" else "host"

    @property
    def best_threads(self) -> int:
        """The fewest that come within 5 % of the fastest."""
        return min(count for count, rate in self.float32.items() if rate >= 0.95 * max(self.float32.values()))

    @property
    def best_prefetch(self) -> int:
        """The default; more if that is more than 10 % faster, never less: a training takes its batches less evenly than is done here."""
        best = max((count for count in self.prefetch if count >= PREFETCH), key=self.prefetch.__getitem__)
        return best if self.prefetch[best] > 1.1 * self.prefetch[PREFETCH] else PREFETCH

    @property
    def loader(self) -> float:
        """Of the loader without a cache, files in memory, at its best threads and prefetch."""
        return self.prefetch[self.best_prefetch]


def thread_steps(cores: int) -> list[int]:
    """1, 2, 4, 8 ... cores; not more than five numbers, the first and the last among them."""
    steps = [*(1 << k for k in range(cores.bit_length()) if 1 << k < cores), cores]
    if len(steps) <= _STEPS:
        return steps
    return [steps[round(k * (len(steps) - 1) / (_STEPS - 1))] for k in range(_STEPS)]


def rates_of(passes: dict[int, Passes], seconds: float) -> dict[int, float]:
    """Images per second of each, by its key: medians of three rounds in turn, so that a busy moment hits one round of all.

    About `seconds` for each, in whole passes. A pass begins with nothing under way and ends so: neither is filling left out
    nor running ahead given away.
    """
    a_batch, found = dict[int, float](), {key: list[float]() for key in passes}
    for key, (one_pass, most) in passes.items():
        _clocked(one_pass, min(_WARM_UP, most))
        a_batch[key] = _clocked(one_pass, min(_SHORTEST, most))[1] / min(_SHORTEST, most)
    for _ in range(_ROUNDS):
        for key, (one_pass, most) in passes.items():
            images, spent = 0, 0.0
            while spent < 0.9 * seconds / _ROUNDS:
                batches = min(most, max(_SHORTEST, round((seconds / _ROUNDS - spent) / a_batch[key])))
                got, took = _clocked(one_pass, batches)
                images, spent, a_batch[key] = images + got, spent + took, took / batches
            found[key].append(images / spent)
    return {key: median(rates) for key, rates in found.items()}


def _clocked(one_pass: Pass, batches: int) -> tuple[int, float]:
    """Images and seconds of a pass."""
    begun = time.perf_counter()
    images = one_pass(batches)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return images, time.perf_counter() - begun


def measure(shards: ShardSet, stats: ColourStats | None, speeds: Speeds, threads: list[int], seconds: float, say: Say) -> None:
    """Fill `speeds`; each row is said as soon as it is known. About `seconds` for every number. Raises InputError."""
    count, to_cache = measured_shards(shards), cached_shards(shards)
    some = shards.shards[:count]
    if sum(shard.bytes for shard in some) <= _READ_THROUGH:
        for shard in range(count):
            shards.bring(shard, threading.Event())
    speeds.batch = min(speeds.batch, int(shards.first[to_cache]))
    settings = f"{speeds.device}, batch {speeds.batch}, crop {speeds.crop}{f', scale {speeds.scale[0]} to {speeds.scale[1]}' if speeds.scale else ''}"
    say(f"Images/s of this machine ({settings}; the first {int(shards.first[count]):,} training pictures, files in memory)\n")
    with only_first(shards, count, stats) as folder:
        stages = _Stages(folder, speeds, seconds, say)
        stages.by_threads(threads)
        stages.by_prefetch()
    if speeds.scale is None:
        with only_first(shards, to_cache, stats) as folder:
            _Stages(folder, speeds, seconds, say).from_caches()
    if not shards.is_remote:
        speeds.storage = measure_storage(shards, seconds)
        _say_storage(speeds.storage, say)
    elif speeds.fetch is not None:
        say(f"\n  {'fetched from the store':<34}{speeds.fetch:>9,.0f}")


def _say_storage(storage: Storage, say: Say) -> None:
    say("\n  from the storage, page cache emptied")
    rows = {
        "one behind the other, 8 MiB reads": storage.sequential,
        "one sample at a time": storage.single,
        "each at once again, from memory": storage.again,
    }
    for name, rate in rows.items():
        say(f"  {name:<34}{rate:>9,.0f}{rate * storage.sample_bytes / 1e6:>9,.0f} MB/s")


@dataclass
class _Stages:
    """The stages over the shards in `folder`, their numbers put into `speeds`."""

    folder: Path
    speeds: Speeds
    seconds: float
    say: Say

    def by_threads(self, threads: list[int]) -> None:
        s = self.speeds
        self.say(f"  {'decoding threads':<34}" + "".join(f"{n:>9}" for n in threads))
        s.read = self._rate(self._reading())
        self.say(f"  {'read, check, draw (one thread)':<34}{s.read:>9,.0f}")
        self._row("+ decode the crop's window", s.decode, threads, self._decoding)
        self._row("+ mirror, uint8 out: ImageLoader", s.uint8, threads, lambda n: self._loading(threads=n, out="uint8"))
        self._row("+ mean, colour, float32 out", s.float32, threads, lambda n: self._loading(threads=n))

    def by_prefetch(self) -> None:
        best = self.speeds.best_threads
        self.say(f"\n  {f'prefetch; decoding threads: {best}':<34}" + "".join(f"{n:>9}" for n in PREFETCHES))
        self._row("ImageLoader, float32 out", self.speeds.prefetch, PREFETCHES, lambda n: self._loading(threads=best, prefetch=n))

    def from_caches(self) -> None:
        self.say("\n  from a cache in " + ("the device's memory" if self.speeds.cache_where == "device" else "main memory"))
        kinds: tuple[Pixels, ...] = ("rgb", "yuv420")
        for pixels in kinds:
            try:
                self.speeds.cached[pixels] = self._rate(self._cached(pixels))
                self.say(f"  {f'float32 out, kept as {pixels}':<34}{self.speeds.cached[pixels]:>9,.0f}")
            except InputError as error:
                self.say(f"  {f'float32 out, kept as {pixels}':<34}{'-':>9}  {error}")

    def _row(self, name: str, rates: dict[int, float], settings: list[int] | tuple[int, ...], of: Callable[[int], Passes]) -> None:
        rates.update(rates_of({setting: of(setting) for setting in settings}, self.seconds))
        self.say(f"  {name:<34}" + "".join(f"{rates[setting]:>9,.0f}" for setting in settings))

    def _rate(self, passes: Passes) -> float:
        return rates_of({0: passes}, self.seconds)[0]

    def _loader(self, **options: Any) -> ImageLoader:
        s = self.speeds
        common: dict[str, Any] = {"batch": s.batch, "augmentation": s.augmentation, "device": s.device, "prefetch": PREFETCH, "on_bad_sample": "skip"}
        return ImageLoader(self.folder, "train", **{**common, **options})

    def _loading(self, **options: Any) -> Passes:
        """Through an ImageLoader: the last batches of an epoch, where it does not run ahead of what is taken."""
        loader = self._loader(**options)
        an_epoch = len(loader)

        def one_pass(batches: int) -> int:
            loader.load_state_dict({**loader.state_dict(), "epoch": 0, "position": (an_epoch - batches) * loader.batch})
            return sum(len(batch.images) for batch in loader)

        return one_pass, an_epoch

    def _cached(self, pixels: Pixels) -> Passes:
        """Batches that are in the cache. Raises InputError where they cannot be."""
        manifest, _ = read_manifest(self.folder)
        size, where = manifest.settings.size, self.speeds.cache_where
        if pixels == "yuv420":
            check_planes(size)
        free = free_memory() if where == "host" else torch.cuda.mem_get_info(self.speeds.device)[0]
        if manifest.splits["train"].samples * picture_bytes(pixels, size) > free // 2:
            raise InputError("too little memory is free to measure it")
        one_pass, an_epoch = self._loading(threads=self.speeds.best_threads, cache=CacheSettings(where, pixels))
        most = min(an_epoch, CACHED // self.speeds.batch or 1)
        one_pass(most)
        return one_pass, most

    def _feed(self) -> tuple[Feed, Callable[[int], Iterator[Part]], int]:
        """What reads, and the parts that it makes of the last batches of an epoch."""
        loader = self._loader(threads=1)
        feed = Feed(Samples(loader.shards, "skip", True), loader.batch, Share(), loader.draws_of, None)
        an_epoch = len(loader)

        def parts(batches: int) -> Iterator[Part]:
            feed.begin(order(0, 0, len(loader.shards)), 0, None)
            return (feed.prepare(number * loader.batch) for number in range(an_epoch - batches, an_epoch))

        return feed, parts, an_epoch

    def _reading(self) -> Passes:
        _, parts, an_epoch = self._feed()
        return lambda batches: sum(len(part.ids) for part in parts(batches)), an_epoch

    def _decoding(self, threads: int) -> Passes:
        """Through the decoder alone, with as many batches under way as the loader has."""
        feed, parts, an_epoch = self._feed()
        manifest, digest = read_manifest(self.folder)
        a = self.speeds.augmentation
        mean = mean_for(a, read_colour_stats(self.folder, digest, manifest.settings.size))
        settings: dict[str, Any] = {"augmentation": a, "mean_image": mean, "batch": self.speeds.batch}
        pictures = DaliPictures(feed, partial(Decoder, "windows", threads=threads, device=self.speeds.device, prefetch=PREFETCH, **settings))

        def taken(part: Part) -> int:
            decoded = pictures.take(part)
            return 0 if decoded is None else len(decoded)

        def one_pass(batches: int) -> int:
            under_way, images = deque[Part](), 0
            for part in parts(batches):
                pictures.schedule(part)
                under_way.append(part)
                if len(under_way) > PREFETCH:
                    images += taken(under_way.popleft())
            return images + sum(taken(part) for part in under_way)

        return one_pass, an_epoch
