from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.jpeg_header import format_fault, jpeg_size, read_frame, size_fault
from pipeline.shards import ShardSet

SIDE = 64


def jpeg(mode: str = "RGB", width: int = SIDE, height: int = SIDE, **options: Any) -> bytes:
    """A real JPEG of noise; by default as make_shards writes them."""
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    pixels = rng.integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(out, "JPEG", **{"quality": 90, "subsampling": "4:2:0", "optimize": True, **options})
    return out.getvalue()


def with_size(picture: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose header claims another size."""
    at = picture.index(b"\xff\xc0\x00\x11") + 5
    return picture[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + picture[at + 4 :]


KINDS: dict[str, tuple[dict[str, Any], str | None]] = {  # options, and what the format has against it
    "ours": ({}, None),
    "fixed tables": ({"optimize": False}, None),
    "a big colour profile": ({"icc_profile": bytes(300_000)}, None),  # five APP2 segments of up to 64 KB
    "EXIF": ({"exif": b"Exif\0\0" + bytes(60_000)}, None),
    "a comment": ({"comment": b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" * 9}, None),  # looks like a frame header, is none
    "other size": ({"width": 80, "height": 48}, "80 x 48 pixels in 3 colours, not 64 x 64"),
    "progressive": ({"progressive": True}, "not a baseline"),
    "4:4:4": ({"subsampling": "4:4:4"}, "1x1, 1x1, 1x1, not 2x2"),
    "4:2:2": ({"subsampling": "4:2:2"}, "2x1, 1x1, 1x1, not 2x2"),
    "grey": ({"mode": "L"}, "64 x 64 pixels in 1 colour, not 64 x 64 in 3"),
    "CMYK": ({"mode": "CMYK"}, "in 4 colours"),
}


@pytest.mark.parametrize(("options", "fault"), KINDS.values(), ids=KINDS.keys())
def test_size_and_format_are_those_that_pillow_sees(options: dict[str, Any], fault: str | None) -> None:
    picture = jpeg(**options)
    opened = Image.open(io.BytesIO(picture))
    array = np.frombuffer(picture, np.uint8)
    frame = read_frame(array)
    assert frame is not None
    assert jpeg_size(picture) == jpeg_size(array) == opened.size == (frame.width, frame.height)
    assert len(frame.sampling) == len(opened.getbands())
    assert frame.baseline == ("progressive" not in opened.info)
    assert (size_fault(array, SIDE) is None) == (opened.size == (SIDE, SIDE) and opened.mode == "RGB")
    why = format_fault(array, SIDE)
    assert (why is None) if fault is None else (why is not None and fault in why), why


def test_what_make_shards_writes_is_right(made_shards: Path) -> None:
    shards = ShardSet(made_shards, "train")
    for sample in range(len(shards)):
        picture, _ = shards.read(sample)
        assert format_fault(picture, 256) is None
        assert size_fault(picture, 256) is None
        assert size_fault(picture, 224) is not None


def test_a_header_that_asks_for_13_gb_is_refused_and_named() -> None:
    picture = with_size(jpeg(), 65_500, 65_500)
    assert jpeg_size(picture) == (65_500, 65_500)
    why = size_fault(picture, SIDE)
    assert why is not None
    assert "65500 x 65500" in why


def test_a_picture_cut_short_has_a_size_only_when_the_whole_frame_header_is_there() -> None:
    picture = jpeg()
    end = picture.index(b"\xff\xc0\x00\x11") + 2 + 17
    for length in range(end + 3):
        assert (read_frame(picture[:length]) is not None) == (length >= end), length
        assert (size_fault(picture[:length], SIDE) is None) == (length >= end), length


def test_the_short_way_for_our_own_pictures_says_what_the_long_way_says() -> None:
    """Whatever a byte of the header becomes: size_fault recognises our own headers by a pattern, before it walks."""
    good = np.frombuffer(jpeg(), np.uint8)
    for position in range(180):
        for value in (0x00, 0x01, 0x03, 0x11, 0x40, 0x43, 0xC0, 0xC2, 0xD8, 0xDA, 0xDB, 0xFF):
            changed = good.copy()
            changed[position] = value
            frame = read_frame(changed)
            right = frame is not None and (frame.width, frame.height, len(frame.sampling)) == (SIDE, SIDE, 3)
            assert (size_fault(changed, SIDE) is None) == right, (position, value, frame)


GARBAGE = {
    "nothing": b"",
    "two bytes": b"\xff\xd8",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zeros after the start": b"\xff\xd8" + bytes(100),
    "the data before any frame": b"\xff\xd8\xff\xda\x00\x08" + jpeg(),
    "a second start": b"\xff\xd8" + jpeg(),
    "garbage between segments": b"\xff\xd8garbage" + jpeg()[2:],
    "a segment of no length": b"\xff\xd8\xff\xe0\x00\x00" + jpeg()[2:],
    "a segment of length one": b"\xff\xd8\xff\xe0\x00\x01\x00" + jpeg()[2:],
    "a segment past the end": b"\xff\xd8\xff\xe0\xff\xff" + jpeg()[2:300],
    "no colours": jpeg().replace(b"\xff\xc0\x00\x11\x08\x00\x40\x00\x40\x03", b"\xff\xc0\x00\x08\x08\x00\x40\x00\x40\x00"),
    "no height": with_size(jpeg(), SIDE, 0),
    "no width": with_size(jpeg(), 0, SIDE),
    "thousands of empty segments": b"\xff\xd8" + b"\xff\xe1\x00\x02" * 1_000_000 + jpeg()[2:],
    "thousands of fill bytes": b"\xff\xd8" + b"\xff" * 1_000_000 + jpeg()[2:],
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_has_no_size(garbage: bytes) -> None:
    for data in (garbage, np.frombuffer(garbage, np.uint8)):
        assert read_frame(data) is None
        assert jpeg_size(data) is None
        for fault in (size_fault, format_fault):
            assert fault(data, SIDE) == "it has no JPEG header that can be read"


def test_fill_bytes_before_a_marker_are_no_fault() -> None:
    picture = b"\xff\xd8" + b"\xff" * 3 + jpeg()[2:]
    Image.open(io.BytesIO(picture)).load()
    assert jpeg_size(picture) == (SIDE, SIDE)
    assert format_fault(picture, SIDE) is None


def test_random_bytes_never_raise() -> None:
    rng = np.random.default_rng(0)
    good = np.frombuffer(jpeg(), np.uint8)
    for _ in range(3000):
        data = good[: rng.integers(1, len(good))].copy()
        at = rng.integers(0, min(len(data), 700), 4)
        data[at] = rng.integers(0, 256, 4)
        frame = read_frame(data)
        assert frame is None or (frame.width > 0 and frame.height > 0)
        assert (format_fault(data, SIDE) is None) <= (size_fault(data, SIDE) is None)
