"""The rows of tools/bench_loader.py that run in its own process, each with what is in it. A row more is one Kind more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from pipeline.cache import CacheSettings, Pixels, Where, room_for
from pipeline.errors import InputError
from pipeline.loader import DecoderName
from pipeline.turbojpeg_planes import check_planes
from tools.bench_dali import HARDWARE_SHARE, SHUFFLE, Form, bare_picture
from tools.bench_rows import Pass, Setup, decoded, decoded_by_share, fed_to_dali, feed_only, loaded, plain_dali

# A row that decodes nothing takes so many times the images, or its pass would be over in an instant. For the cached ones, of which one setting has
# four, that is memory: 5,120 pictures are 1 GB as RGB.
FED, CACHED = 4, 2

Section = Literal["uint8 from JPEG", "float32 from JPEG", "from decoded pictures", "feeding", "share of the JPEG engines"]
Out = Literal["uint8", "float32"]


@dataclass(frozen=True)
class Kind:
    """A row. what: is in it; times: as many times the images of the others, and a whole pass that does not count comes first, which
    fills a cache; threads: whether the decoder's matter; needs: raises InputError where the row cannot be had."""

    key: str
    section: Section
    what: str
    begin: Callable[[Setup], Pass]
    times: int = 1
    threads: bool = True
    needs: Callable[[Setup], None] = lambda s: None


def our_kinds(device: torch.device) -> list[Kind]:
    where: Where = "host" if device.type == "cpu" else "device"
    return [
        Kind("ours-feed", "feeding", f"{_FED}, draws; no DALI; one thread", feed_only, FED, threads=False),
        Kind("ours-feed-dali", "feeding", f"{_FED}, draws, and the encoded pictures handed to DALI; one thread", fed_to_dali, FED, threads=False),
        Kind("ours-decode", "uint8 from JPEG", f"{_FED}; whole pictures decoded by DALI; neither crop nor flip", decoded),
        _from_jpeg("ours-uint8", "uint8", "dali"),
        _from_jpeg("ours-float32", "float32", "dali"),
        _from_jpeg("ours-turbojpeg-uint8", "uint8", "turbojpeg"),
        _from_jpeg("ours-turbojpeg-float32", "float32", "turbojpeg"),
        _cached("ours-cached-uint8", "uint8", where, "rgb"),
        _cached("ours-cached-float32", "float32", where, "rgb"),
        _cached("ours-cached-yuv-uint8", "uint8", where, "yuv420"),
        _cached("ours-cached-yuv-float32", "float32", where, "yuv420"),
    ]


_FED = "our order (a permutation of the whole set), read, CRC-32C, header check, labels"
_DONE: dict[Out, str] = {"uint8": "crop, flip, uint8 out", "float32": "crop, flip, mean image at the same window, colour shift, float32 out"}


def _from_jpeg(key: str, out: Out, decoder: DecoderName) -> Kind:
    name = {"dali": "DALI's decoder", "turbojpeg": "TurboJPEG's planes, cut before they are upsampled"}[decoder]
    section: Section = "uint8 from JPEG" if out == "uint8" else "float32 from JPEG"
    needs = planes if decoder == "turbojpeg" else anywhere
    return Kind(key, section, f"ImageLoader: {_FED}, {name}, {_DONE[out]}", partial(loaded, out=out, decoder=decoder), needs=needs)


def _cached(key: str, out: Out, where: Where, pixels: Pixels) -> Kind:
    kept = {"rgb": "RGB", "yuv420": "YUV 4:2:0 planes"}[pixels]
    what = f"ImageLoader, all pictures in the {where}'s memory as {kept}: our order, labels, {_DONE[out]}; nothing read or decoded"
    cache = CacheSettings(where, pixels)
    return Kind(key, "from decoded pictures", what, partial(loaded, out=out, cache=cache), CACHED, needs=partial(room, cache))


def anywhere(s: Setup) -> None:
    """Needs nothing."""


def planes(s: Setup) -> None:
    check_planes(s.size)


def room(cache: CacheSettings, s: Setup) -> None:
    """Raises InputError where the cache would hold a part only, and the row would decode the others."""
    if cache.pixels == "yuv420":
        planes(s)
    there = room_for(cache, len(s.shards), s.size, s.device)
    if there.fit < len(s.shards):
        raise InputError(f"{there}; to measure the cache alone, give shards of fewer samples")


def dali_kinds(device: torch.device) -> list[Kind]:
    """Plain DALI."""
    on_gpu = "" if device.type == "cpu" else f"; mixed decoder, hw_decoder_load {HARDWARE_SHARE}"
    shuffled = f"readers.webdataset (shuffle buffer of {SHUFFLE:,} samples), labels as text"
    crop = "decoders.image_crop" if device.type == "cpu" else "decoders.image, crop"
    bare = "bare decoding: readers.webdataset in stored order, decoders.image, whole pictures, uint8; no labels, crop or flip"
    direct = f"{shuffled}, {crop} less a slice of the mean image, flip, colour shift, float32 out: the direct form (A)"
    fastest = f"{shuffled}, decoders.image less the mean image, crop_mirror_normalize with the shift, float32 out: the fastest form (B)"
    return [
        Kind("dali-decode", "uint8 from JPEG", bare + on_gpu, partial(plain_dali, what=bare_picture, shuffled=False)),
        Kind("dali-uint8", "uint8 from JPEG", f"{shuffled}, {crop}, flip, uint8 out{on_gpu}", partial(plain_dali, what=Form.uint8)),
        Kind("dali-float32-a", "float32 from JPEG", direct + on_gpu, partial(plain_dali, what=Form.float32_a)),
        Kind("dali-float32-b", "float32 from JPEG", fastest + on_gpu, partial(plain_dali, what=Form.float32_b)),
    ]


def share_kinds(shares: list[float]) -> list[Kind]:
    """A row for each share of the JPEG engines."""
    what = "our feed, whole pictures decoded by DALI's mixed decoder, uint8 on the GPU, hw_decoder_load"
    section: Section = "share of the JPEG engines"
    return [Kind(f"ours-decode-share-{share:g}", section, f"{what} {share:g}", partial(decoded_by_share, share=share)) for share in shares]
