"""What may be asked of a loader, and what cannot be had together."""

from __future__ import annotations

from typing import Literal, get_args

from pipeline.cache import CacheSettings
from pipeline.errors import InputError
from pipeline.order import Order
from pipeline.pixels import Decoded, Out
from pipeline.shards import ShardSet

Views = Literal["train", "centre", "ten"]
DecoderName = Literal["dali", "turbojpeg"]


def decoded_as(decoder: DecoderName, cache: CacheSettings | None, cached: bool) -> Decoded:
    """What comes out of the decoder: DALI cuts windows where nothing is kept. Raises InputError."""
    if cache is None or not cached:
        return "yuv420" if decoder == "turbojpeg" else "windows"
    if decoder == "turbojpeg" and cache.pixels == "rgb":
        raise InputError("decoder turbojpeg gives YUV planes, which is what is cached; use cache_pixels: yuv420, or decoder: dali for rgb")
    return cache.pixels


def check_choices(order_kind: str, out: str, decoder: str, window: int, prefetch: int, threads: int | None) -> None:
    """Words that must be among a few, and numbers that must be at least 1. Raises InputError."""
    words = {"order_kind": (order_kind, Order), "out": (out, Out), "decoder": (decoder, DecoderName)}
    for name, (word, allowed) in words.items():
        if word not in get_args(allowed):
            raise InputError(f"{name} must be one of {', '.join(get_args(allowed))}, not {word!r}")
    for name, number in (("window", window), ("prefetch", prefetch), ("threads", threads)):
        if number is not None and number < 1:
            raise InputError(f"{name} must be at least 1, not {number}")


def check_settings(shards: ShardSet, batch: int, crop: int, size: int, views: Views, world: int, out: Out) -> None:
    """Sizes that must fit each other. Raises InputError."""
    if crop > size:
        raise InputError(f"a {crop} crop does not fit the {size} pixels of {shards.folder}; use a smaller input or shards of a larger --size")
    if batch < world:
        raise InputError(f"batch {batch} is smaller than the {world} ranks that share it; use a batch of at least {world} or fewer devices")
    if views == "train" and batch % world:
        raise InputError(f"batch {batch} does not divide over {world} ranks; the nearest that does is {max(1, round(batch / world)) * world}")
    if views == "train" and batch > len(shards):
        raise InputError(f"batch {batch} is larger than the {len(shards)} samples of {shards.folder} ({shards.split}); use a smaller batch")
    if views == "ten" and out == "uint8":
        raise InputError('the ten views come finished, out="float32"; use views="centre" for uint8')
