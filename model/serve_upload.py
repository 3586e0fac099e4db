"""A file from anyone -> the square of pixels that the net is shown, or a refusal in one line.

What a file claims is checked before anything of that size is allocated. Nothing is written to disk.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageChops, ImageFile, ImageOps

MAX_BYTES = 20_000_000  # of a file
MAX_PIXELS = 50_000_000  # of a picture: 150 MB decoded
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # by content, whatever the file's name; of an animation the first picture
MAX_SCANS = 100  # of a JPEG, which is decoded as often as it has some: a progressive one has 10, an attack thousands
_SCAN = b"\xff\xda"
WHITE = (255, 255, 255, 255)  # below what is transparent


class Refused(Exception):
    """What was sent cannot be used; `line` says so to who sent it, with the status of HTTP."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


TOO_LARGE = f"the file has more than {MAX_BYTES // 10**6} MB, the most that is taken; send a smaller picture"


def square_of(content: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB: the shorter side resized to `size`, bicubic, and the central square of that (paper, section 2).

    Turned upright by EXIF, what is transparent on white, grey and CMYK and 16 bits as RGB of 8. A picture of size x size pixels
    stays as it is. One call at a time in a process (it sets warnings aside). Raises Refused.
    """
    if not content:
        raise Refused(400, "the file is empty")
    if len(content) > MAX_BYTES:
        raise Refused(413, TOO_LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken EXIF, and of large pictures, which are refused here
        try:
            return _square(_opened(content), size)
        except Refused:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise Refused(413, _too_many(None)) from None
        except Exception as error:  # of a damaged file Pillow's readers raise nearly anything
            raise Refused(400, f"the picture is cut short or damaged ({_words(error)}); send another, or save it anew") from None


def _opened(content: bytes) -> ImageFile.ImageFile:
    try:
        file = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise Refused(415, "this is not a JPEG, PNG, WebP or GIF picture; save it as one of them") from None
    if file.width * file.height > MAX_PIXELS:
        raise Refused(413, _too_many(file.size))
    if file.format in ("JPEG", "MPO") and content.count(_SCAN) > MAX_SCANS:
        raise Refused(400, f"the JPEG has {content.count(_SCAN):,} scans, more than the {MAX_SCANS} that are taken; save it anew")
    return file


def _too_many(size: tuple[int, int] | None) -> str:
    claims = f" ({size[0]:,} x {size[1]:,})" if size else ""
    return f"the picture has more than {MAX_PIXELS // 10**6} million pixels{claims}, the most that is taken; send a smaller one"


def _square(file: ImageFile.ImageFile, size: int) -> np.ndarray:
    file.draft(None, (size, size))  # a JPEG of twice the size or more is halved as it is decoded, as make_shards does
    file.load()
    picture = _rgb(file)
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    return np.asarray(_upright(_opaque(square), file))


def _rgb(file: ImageFile.ImageFile) -> Image.Image:
    """RGB, or RGBA where something is transparent."""
    picture: Image.Image = file
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to white
        return Image.fromarray(np.clip(np.asarray(picture) >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode == "CMYK" and "adobe" not in picture.info:
        picture = ImageChops.invert(picture)  # Pillow takes every CMYK JPEG for Adobe's, which has its colours inverted
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _opaque(square: Image.Image) -> Image.Image:
    if square.mode == "RGB":
        return square
    return Image.alpha_composite(Image.new("RGBA", square.size, WHITE), square).convert("RGB")


def _upright(square: Image.Image, file: ImageFile.ImageFile) -> Image.Image:
    """The central square turned as the whole picture's EXIF says."""
    try:
        square.info = dict(file.info)
        return ImageOps.exif_transpose(square)
    except Exception:  # a broken EXIF says nothing
        return square


def _words(error: Exception) -> str:
    """Pillow's own, printable and short; it has never seen the file's name."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "".join(letter for letter in text if letter.isprintable())[:100]
