from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tools.picture import PictureError, convert


def scene(width: int, height: int) -> np.ndarray:
    """A smooth (height, width, 3) uint8 picture whose halves differ in colour."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    red = 128 + 100 * np.sin(5 * x)
    return np.stack((red, 128 + 100 * np.cos(4 * y), 200 - 100 * x), axis=2).astype(np.uint8)


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def expected(pixels: np.ndarray, size: int = 256) -> np.ndarray:
    """Shorter side to `size` with Pillow's bicubic, central square, as a float array."""
    picture = Image.fromarray(pixels)
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))).astype(float)


def opened(jpeg: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(jpeg))
    picture.load()
    return picture


def difference(jpeg: bytes, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(opened(jpeg)).astype(float) - wanted).mean())


def test_form_of_the_output() -> None:
    source = encode(Image.fromarray(scene(500, 375)), "JPEG", quality=95, exif=exif(6), comment=b"hello", progressive=True)
    picture = opened(convert(source, 256, 90))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (256, 256))
    assert "exif" not in picture.info
    assert "comment" not in picture.info
    assert "progressive" not in picture.info
    assert picture.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]  # 4:2:0


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


PIXELS = scene(500, 375)
GREY = np.repeat(PIXELS[:, :, :1], 3, axis=2)
ODD = {
    "jpeg": (encode(Image.fromarray(PIXELS), "JPEG", quality=98, subsampling=0), PIXELS),
    "png named JPEG": (encode(Image.fromarray(PIXELS), "PNG"), PIXELS),
    "png with alpha": (encode(Image.fromarray(np.dstack((PIXELS, PIXELS[:, :, 0]))), "PNG"), PIXELS),
    "cmyk": (encode(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", quality=98), PIXELS),
    "grey": (encode(Image.fromarray(PIXELS[:, :, 0]), "JPEG", quality=98), GREY),
    "16-bit grey": (encode(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257), "PNG"), GREY),
    "rotated by EXIF only": (encode(Image.fromarray(PIXELS), "JPEG", quality=98, exif=exif(6)), PIXELS),
    "progressive": (encode(Image.fromarray(PIXELS), "JPEG", quality=98, progressive=True), PIXELS),
    "portrait": (encode(Image.fromarray(scene(300, 801)), "JPEG", quality=98), scene(300, 801)),
    "very wide": (encode(Image.fromarray(scene(3000, 30)), "JPEG", quality=98), scene(3000, 30)),
    "one pixel": (encode(Image.fromarray(scene(1, 1)), "PNG"), scene(1, 1)),
    "gif": (encode(Image.fromarray(PIXELS).convert("L"), "GIF"), np.repeat(np.asarray(Image.fromarray(PIXELS).convert("L"))[:, :, None], 3, 2)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_become_the_right_picture(name: str) -> None:
    data, pixels = ODD[name]
    assert difference(convert(data, 256, 95), expected(pixels)) < 2.0  # grey levels, mean over the picture


def test_antialiased() -> None:
    """Fine stripes become an even grey, not coarse stripes."""
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.asarray(opened(convert(encode(Image.fromarray(stripes), "PNG"), 256, 95))).std() < 2.0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not a picture"),
        (ODD["jpeg"][0][: len(ODD["jpeg"][0]) * 6 // 10], "truncated"),
        (ODD["png named JPEG"][0][:200], "truncated|broken|cut"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason) as caught:
        convert(data, 256, 90)
    assert "\n" not in str(caught.value)
