"""The peers of the conversion benchmark: each library's own way from a JPEG of any size to a square one.

All do the same: shorter side to 256 with antialiasing, central 256 x 256, RGB, baseline JPEG of quality 90 with 4:2:0 chroma, in memory, one thread.
Runs in the peers' environment and imports nothing of pipeline. A library that is not installed is the ImportError of its import.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

SIZE, QUALITY = 256, 90  # pixels a side; of the JPEG, where a row does not say otherwise


@dataclass(frozen=True)
class Conversion:
    """What a row does to a picture.

    convert: JPEG file -> JPEG file; raises whatever the library raises.
    inside: seconds that named parts of the work took, added up by `convert` where it clocks them.
    """

    convert: Callable[[bytes], bytes]
    inside: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """what: the row in words; make: its conversion, given the pictures that it will be asked for; quality, sampling: of what it writes;
    written: whether there is a picture of its own to judge."""

    what: str
    make: Callable[[list[bytes]], Conversion]
    quality: int = QUALITY
    sampling: str = "4:2:0"
    written: bool = True


def pillow(pictures: list[bytes]) -> Conversion:
    """The exact, possibly half-pixel, central square in one call."""

    def convert(jpeg: bytes) -> bytes:
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
        left, top = ((side - min(picture.size)) / 2 for side in picture.size)
        box = (left, top, left + min(picture.size), top + min(picture.size))
        out = io.BytesIO()
        picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box).save(out, "JPEG", quality=QUALITY, subsampling="4:2:0")
        return out.getvalue()

    return Conversion(convert)


def img2dataset(pictures: list[bytes]) -> Conversion:
    """Its Resizer with what its command line sets by default, but for mode, size and quality."""
    from img2dataset.resizer import Resizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

    resizer = Resizer(
        image_size=SIZE,
        resize_mode="center_crop",
        resize_only_if_bigger=False,
        upscale_interpolation="lanczos",
        downscale_interpolation="area",
        encode_quality=QUALITY,
        encode_format="jpg",
        skip_reencode=False,
    )

    def convert(jpeg: bytes) -> bytes:
        written, *_, error = resizer(io.BytesIO(jpeg))
        if written is None:
            raise ValueError(error)
        return bytes(written)

    return Conversion(convert)


def opencv(pictures: list[bytes]) -> Conversion:
    """Decoded at 1/2, 1/4 or 1/8 where that leaves enough; OpenCV does not tell a size before it decodes, so Pillow reads the header."""
    import cv2  # type: ignore[import-not-found,import-untyped,unused-ignore]

    cv2.setNumThreads(0)
    reduced = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

    def convert(jpeg: bytes) -> bytes:
        short = min(Image.open(io.BytesIO(jpeg)).size)
        flags = reduced[max(by for by in reduced if by == 1 or short >= SIZE * by)] | cv2.IMREAD_IGNORE_ORIENTATION
        picture: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags)
        if picture is None:
            raise ValueError("imdecode gives nothing")
        height, width = picture.shape[:2]
        scale = SIZE / min(height, width)
        new = (max(round(width * scale), SIZE), max(round(height * scale), SIZE))
        picture = cv2.resize(picture, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        left, top = (new[0] - SIZE) // 2, (new[1] - SIZE) // 2
        done, out = cv2.imencode(".jpg", picture[top : top + SIZE, left : left + SIZE], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not done:
            raise ValueError("imencode gives nothing")
        return bytes(out.tobytes())

    return Conversion(convert)


def pyvips(pictures: list[bytes]) -> Conversion:
    """thumbnail_buffer, which decodes JPEGs at a reduced scale. At quality 90 it would write 4:4:4 if it were not told otherwise."""
    os.environ["VIPS_CONCURRENCY"] = "1"  # read when the library is loaded
    import pyvips as vips  # type: ignore[import-not-found,import-untyped,unused-ignore]

    vips.cache_set_max(0)  # it would know a picture again by its place in memory, and do nothing

    def convert(jpeg: bytes) -> bytes:
        picture = vips.Image.thumbnail_buffer(jpeg, SIZE, height=SIZE, crop="centre", no_rotate=True)
        if picture.bands < 3:
            picture = picture.colourspace("srgb")
        return bytes(picture.jpegsave_buffer(Q=QUALITY, subsample_mode="on", keep="none"))

    return Conversion(convert)


def check_torchvision() -> None:
    """Its compiled part loads beside the torch that it was built for only. Raises ModuleNotFoundError beside another."""
    try:
        import torchvision  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except RuntimeError:
        raise ModuleNotFoundError("No module named 'torchvision' that fits this torch", name="torchvision") from None


def torchvision(pictures: list[bytes]) -> Conversion:
    """v2's functions on uint8; those without v2 go through float32 and take more than twice as long."""
    import torch

    check_torchvision()
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from torchvision.transforms import InterpolationMode  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from torchvision.transforms.v2 import functional  # type: ignore[import-not-found,import-untyped,unused-ignore]

    torch.set_num_threads(1)
    side, bicubic = [SIZE, SIZE], InterpolationMode.BICUBIC

    def convert(jpeg: bytes) -> bytes:
        picture = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
        picture = functional.center_crop(functional.resize(picture, [SIZE], interpolation=bicubic, antialias=True), side)
        return bytes(encode_jpeg(picture, quality=QUALITY).numpy().tobytes())

    return Conversion(convert)


PEERS = {
    "img2dataset": Kind("img2dataset's Resizer as it is run: OpenCV, INTER_AREA (INTER_LANCZOS4 to enlarge), whole pixels", img2dataset),
    "torchvision": Kind("decode_jpeg, v2 uint8 antialiased bicubic, whole pixels, encode_jpeg", torchvision),
    "pillow": Kind("full decode, antialiased bicubic of the exact square", pillow),
    "opencv": Kind("imdecode, reduced where it can be, INTER_AREA (INTER_CUBIC to enlarge), whole pixels", opencv),
    "pyvips": Kind("thumbnail_buffer, jpegsave_buffer with 4:2:0; what it has to enlarge comes out half a pixel off", pyvips),
}
