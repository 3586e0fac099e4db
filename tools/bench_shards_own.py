"""Our rows of the conversion benchmark: `python -m tools.bench_shards_own --rows NAME ...`, started by tools/bench_shards.py.

What make_shards does to a picture, and the limit of it: libjpeg-turbo's own time for the same picture, decoded at the same scale and cropped to the
same columns, and encoded, without anything between the two.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np

from pipeline.manifest import Settings
from tools.jpeg_codec import Decoding, encode
from tools.peer_conversions import serve
from tools.peer_converters import QUALITY, SIZE, Conversion, Kind
from tools.picture import convert
from tools.pixel_sums import empty_sums


def settings(**more: Any) -> Settings:
    """make_shards' own, but for `more`."""
    return Settings(**{"size": SIZE, "quality": QUALITY, "shard_size": 1, "seed": 0, "decode": "scaled", **more})


def _ours(**more: Any) -> Callable[[list[bytes]], Conversion]:
    given = settings(**more)
    return lambda pictures: Conversion(lambda jpeg: convert(jpeg, given).jpeg)


def with_sums(pictures: list[bytes]) -> Conversion:
    """inside: "sums"."""
    given, sums, inside = settings(), empty_sums(SIZE), dict[str, float]()

    def work(jpeg: bytes) -> bytes:
        converted = convert(jpeg, given)
        began = time.perf_counter()
        sums.add(converted.pixels)
        inside["sums"] = inside.get("sums", 0) + time.perf_counter() - began
        return converted.jpeg

    return Conversion(work, inside=inside)


def asked(jpeg: bytes, given: Settings) -> tuple[Any, ...]:
    """With which arguments `convert` has this picture decoded. Raises ValueError for one that libjpeg-turbo is not asked for."""
    calls, decode = list[tuple[Any, ...]](), Decoding.pixels

    def noted(decoding: Decoding, *arguments: Any) -> Any:
        calls.append(arguments)
        return decode(decoding, *arguments)

    with patch.object(Decoding, "pixels", noted):
        convert(jpeg, given)
    if len(calls) != 1:
        raise ValueError("it is decoded by Pillow")
    return calls[0]


def limit(pictures: list[bytes]) -> Conversion:
    """inside: "decode" and "encode"."""
    given, ready, inside = settings(), dict[bytes, tuple[tuple[Any, ...], np.ndarray]](), dict[str, float]()
    for jpeg in pictures:
        try:
            ready[jpeg] = (asked(jpeg, given), convert(jpeg, given).pixels)
        except ValueError:
            continue  # such a picture fails in `work`, and is counted there

    def work(jpeg: bytes) -> bytes:
        if jpeg not in ready:
            raise ValueError("libjpeg-turbo is not asked for this picture")
        arguments, pixels = ready[jpeg]
        began = time.perf_counter()
        with Decoding(jpeg) as picture:
            picture.pixels(*arguments)
        decoded = time.perf_counter()
        encoded = encode(pixels, given.quality, given.subsampling)
        inside["decode"] = inside.get("decode", 0) + decoded - began
        inside["encode"] = inside.get("encode", 0) + time.perf_counter() - decoded
        return encoded

    return Conversion(work, inside=inside)


OWN = {
    "ours": Kind("make_shards: reduced and cropped decoding, antialiased bicubic of the exact square, optimised Huffman tables", _ours()),
    "ours-sums": Kind("ours, and the sums for colour statistics and mean image", with_sums, written=False),
    "ours-full": Kind("ours, decoded at full size", _ours(decode="full")),
    "ours-444": Kind("ours, chroma 4:4:4", _ours(subsampling="4:4:4"), sampling="4:4:4"),
    "ours-q80": Kind("ours, quality 80", _ours(quality=80), quality=80),
    "limit": Kind("libjpeg-turbo alone: ours without what is between decoding and encoding", limit, written=False),
}

if __name__ == "__main__":
    sys.exit(serve(OWN))
