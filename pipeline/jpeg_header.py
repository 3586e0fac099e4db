"""What a JPEG claims to be, read from its frame header (SOF) without decoding.

A decoder allocates what this header says: 20 KB of file can ask for 65,535 x 65,535 pixels, 13 GB of RGB. So it is read first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

MAX_SEGMENTS = 1000  # before the frame header: a colour profile of the largest kind has 255; garbage must not be walked for long
_BASELINE = 0xC0
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15; the three others are Huffman tables, reserved, arithmetic tables
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDB)})  # no length follows, or the header is over: RST, SOI, EOI, SOS
_SAMPLINGS = {"4:2:0": ((2, 2), (1, 1), (1, 1)), "4:4:4": ((1, 1), (1, 1), (1, 1))}


class Frame(NamedTuple):
    """width, height: pixels; bits: of a sample; sampling: (horizontal, vertical) factor of every colour component."""

    width: int
    height: int
    bits: int
    baseline: bool
    sampling: tuple[tuple[int, int], ...]


def read_frame(jpeg: bytes | np.ndarray) -> Frame | None:
    """The first frame header of a JPEG, (bytes,) uint8; None when there is none before the picture's data, or it is cut short.

    Strict: segments must lie one behind the other, so that no decoder finds another header than this one.
    """
    data = jpeg.data if isinstance(jpeg, np.ndarray) else memoryview(jpeg)
    end, at = len(data), 2
    if end < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return None
    for _ in range(MAX_SEGMENTS):
        if at + 4 > end or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in _FRAMES:
            return _frame(data[at : at + 10 + 3 * 255].tobytes(), marker)
        if marker == 0xFF:  # a fill byte, allowed before any marker
            at += 1
        elif marker in _BARE:
            return None
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _frame(segment: bytes, marker: int) -> Frame | None:
    """segment: from its marker on, and perhaps more than it."""
    components = segment[9] if len(segment) > 9 else 0
    length = 8 + 3 * components
    if not components or len(segment) < 2 + length or int.from_bytes(segment[2:4], "big") != length:
        return None
    width, height = int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
    if not width or not height:  # a height that comes later (DNL): no decoder of ours takes it
        return None
    sampling = tuple((factors >> 4, factors & 15) for factors in segment[11 : 2 + length : 3])
    return Frame(width, height, segment[4], marker == _BASELINE, sampling)


def jpeg_size(jpeg: bytes | np.ndarray) -> tuple[int, int] | None:
    """(width, height) in pixels that a JPEG claims, of whatever kind; None when it has no frame header that can be read."""
    frame = read_frame(jpeg)
    return (frame.width, frame.height) if frame else None


def size_fault(jpeg: bytes | np.ndarray, size: int, square: bool = True) -> str | None:
    """Why a JPEG is not one of `size` x `size` pixels in three colours, by its header; None when it is. For a message: no remedy in it.

    square: False for pictures of which only the shorter side has `size` pixels.
    """
    if square and _begins_like_ours(size)(jpeg):
        return None
    return _size_fault(read_frame(jpeg), size, square)


@lru_cache
def _begins_like_ours(size: int) -> Callable[[bytes | np.ndarray], object]:
    """Whether a JPEG begins with the segments that make_shards writes, SOF of this size included: 0.4 us, the walk takes 3."""
    jfif, tables, side = rb"\xff\xd8\xff\xe0\x00\x10.{14}", rb"(?:\xff\xdb\x00\x43.{65}){2}", size.to_bytes(2, "big")
    pattern = re.compile(jfif + tables + rb"\xff\xc0\x00\x11." + re.escape(side + side) + rb"\x03.{9}", re.DOTALL)
    match: Callable[[Any], object] = pattern.match
    return match


def _size_fault(frame: Frame | None, size: int, square: bool) -> str | None:
    if frame is None:
        return "it has no JPEG header that can be read"
    right = {frame.width, frame.height} == {size} if square else min(frame.width, frame.height) == size
    if not right or len(frame.sampling) != 3:
        colours = f"{len(frame.sampling)} colour{'s' * (len(frame.sampling) != 1)}"
        wanted = f"{size} x {size}" if square else f"a shorter side of {size}"
        return f"its JPEG header says {frame.width} x {frame.height} pixels in {colours}, not {wanted} in 3"
    return None


def format_fault(jpeg: bytes | np.ndarray, size: int, square: bool = True, subsampling: str = "4:2:0") -> str | None:
    """As size_fault, and also why it is not what the shard format asks for: baseline, 8 bits, 4:2:0 or 4:4:4."""
    frame = read_frame(jpeg)
    why = _size_fault(frame, size, square)
    if why or frame is None:
        return why
    if not frame.baseline or frame.bits != 8:
        return f"it is not a baseline JPEG of 8 bits (baseline: {'yes' if frame.baseline else 'no'}, bits: {frame.bits})"
    if frame.sampling != _SAMPLINGS[subsampling]:
        found, wanted = (", ".join(f"{h}x{v}" for h, v in sampling) for sampling in (frame.sampling, _SAMPLINGS[subsampling]))
        return f"its colours are sampled {found}, not {wanted} ({subsampling})"
    return None
