"""What the measured speeds and the free memory mean for a training: threads, prefetch, cache, order, and the most to expect."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.cache import Pixels, Room, Where
from pipeline.inspect_speed import PREFETCH, Speeds
from pipeline.order import Order
from pipeline.scaled import Scale
from pipeline.staging import AHEAD

WINDOW = 16  # shards, ImageLoader's default
_WORTH = 1.2  # times as fast, or a cache is not worth its memory
_MANY = 3  # times slower one sample at a time than one behind the other: seeks, or a round trip for every sample
_ENOUGH = 2  # times the loader's rate: then reads do not hold it up


@dataclass(frozen=True)
class Needs:
    """Of the training split: samples, bytes of its tars, bytes of the largest one. free: bytes of main memory. rooms: of a cache
    where `Speeds` has measured it."""

    samples: int
    bytes: int
    largest: int
    free: int
    rooms: dict[Pixels, Room]


@dataclass(frozen=True)
class Advice:
    """rate: images per second that the data plane gives at most."""

    threads: int
    prefetch: int
    cache: Where
    pixels: Pixels
    order: Order
    rate: float
    sentences: list[str]
    scale: Scale | None = None

    def options(self) -> list[str]:
        """For model.train."""
        cache = ["--set", f"data.cache={self.cache}", "--set", f"data.cache_pixels={self.pixels}"] if self.cache != "none" else []
        if self.scale is not None:
            cache = ["--recipe", "vgg", "--set", f"data.scale={list(self.scale)}"]
        ahead = ["--prefetch", str(self.prefetch)] if self.prefetch != PREFETCH else []
        return ["--threads", str(self.threads), *ahead, *cache, *(["--set", "data.order=windowed"] if self.order == "windowed" else [])]


def advise(speeds: Speeds, needs: Needs) -> Advice:
    order, uncached, why_order = _order(speeds, needs)
    cache, pixels, rate, why_cache = _cache(speeds, needs, uncached)
    if cache != "none" and needs.rooms[pixels].fit == needs.samples and order == "windowed":
        order, why_order = "global", "Order: global; after the first epoch nothing is read from the storage."
    epoch = duration(needs.samples / rate)
    later = " from the second epoch on" if cache != "none" else ""
    cores = ", and leaves it fewer of these cores" if speeds.device.type == "cpu" else ""
    sentences = [
        _threads(speeds),
        why_cache,
        why_order,
        f"The data plane gives {rate:,.0f} images/s at most{later}, {epoch} an epoch; a net may be slower{cores}.",
    ]
    return Advice(speeds.best_threads, speeds.best_prefetch, cache, pixels, order, rate, sentences, speeds.scale)


def _threads(speeds: Speeds) -> str:
    threads, prefetch = speeds.best_threads, speeds.best_prefetch
    default = "the default" if prefetch == PREFETCH else f"the default is {PREFETCH}"
    processes = " For one process: several share the cores." if torch.cuda.device_count() > 1 else ""
    return f"Threads: {threads}, prefetch: {prefetch} ({default}); so the loader gives {speeds.loader:,.0f} images/s from files in memory.{processes}"


def _order(speeds: Speeds, needs: Needs) -> tuple[Order, float, str]:
    """Order, images per second without a cache in it, and why."""
    storage, size = speeds.storage, f"{needs.bytes / 1e9:,.2f} GB"
    if storage is None:
        held = f"{min(needs.bytes, (WINDOW + AHEAD) * needs.largest) / 1e9:,.2f} GB"
        return "global", speeds.loader, f"Order: global if the local folder can hold all {size}; windowed makes do with {held}."
    if needs.bytes <= needs.free:
        return "global", speeds.loader, f"Order: global; the files, {size}, fit into the free memory and are read from storage only once."
    single, sequential = f"{storage.single:,.0f} images/s one sample at a time", f"{storage.sequential:,.0f} one behind the other"
    if storage.is_memory or storage.single >= _ENOUGH * speeds.loader:
        return "global", speeds.loader, f"Order: global; the storage gives {single}, which does not hold the loader up."
    if storage.sequential >= _MANY * storage.single:
        why = f"Order: windowed; the storage gives {single}, but {sequential}, and the files, {size}, do not fit into memory."
        return "windowed", min(speeds.loader, storage.sequential), why
    return "global", min(speeds.loader, storage.single), f"Order: global; the storage gives {single}, and {sequential}: windowed would gain little."


def _cache(speeds: Speeds, needs: Needs, uncached: float) -> tuple[Where, Pixels, float, str]:
    """Where and what to keep, images per second then, and why."""
    if speeds.scale is not None:
        return "none", "rgb", uncached, "Cache: none; whole pictures are decoded and brought to a scale anew each time."
    expected = {pixels: _with_cache(speeds.cached[pixels], needs.rooms[pixels], uncached) for pixels in speeds.cached}
    if not expected:
        return "none", "rgb", uncached, "Cache: none; it could not be measured."
    pixels = max(expected, key=lambda kind: (expected[kind] > 0.95 * max(expected.values()), kind == "rgb"))
    room = needs.rooms[pixels]
    fitting = f"all {room.pictures:,}" if room.fit == room.pictures else f"{room.fit:,} of {room.pictures:,}"
    share = f"{fitting} pictures fit into {room.where} as {pixels}"
    if expected[pixels] < _WORTH * uncached:
        return "none", "rgb", uncached, f"Cache: none; {share}, which gains too little ({expected[pixels]:,.0f} against {uncached:,.0f} images/s)."
    gain = f"{expected[pixels]:,.0f} against {uncached:,.0f} images/s"
    return speeds.cache_where, pixels, expected[pixels], f"Cache: {speeds.cache_where}, {pixels}; {share}: {gain}."


def _with_cache(cached: float, room: Room, uncached: float) -> float:
    """Images per second when what fits is cached and the others are decoded."""
    share = room.fit / room.pictures
    return 1 / (share / cached + (1 - share) / uncached)


def duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
