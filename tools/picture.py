"""One source file -> one 256x256 JPEG."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

JPEG_SUBSAMPLING = "4:2:0"


class PictureError(ValueError):
    """A file that is not a picture; the message is the reason."""


def convert(data: bytes, size: int, quality: int) -> bytes:
    """Shorter side to `size` with bicubic antialiasing, central size x size, RGB, baseline 4:2:0 JPEG without metadata.

    The central square is resampled in one step from its exact, possibly half-pixel, place. EXIF orientation is ignored,
    as in the paper's time; CMYK, grey, palette and 16-bit files become RGB, transparency is dropped. Huffman tables are
    optimised: 3 % fewer bytes, the same pixels. Raises PictureError.
    """
    out = io.BytesIO()
    central_square(data, size).save(out, "JPEG", quality=quality, subsampling=JPEG_SUBSAMPLING, optimize=True)
    return out.getvalue()


def central_square(data: bytes, size: int) -> Image.Image:
    """The picture that `convert` encodes. Raises PictureError."""
    picture = decode(data)
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    square.info.clear()  # Pillow would carry a JPEG comment over
    return square


def decode(data: bytes) -> Image.Image:
    """The whole picture as RGB, whatever its name claims. Raises PictureError."""
    if not data:
        raise PictureError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF and large pictures are of no concern here
            picture = Image.open(io.BytesIO(data))
            picture.load()
            if picture.mode.startswith("I"):
                return _eight_bits(picture)
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, IndexError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(_reason(error)) from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow would clip 16-bit grey to white."""
    high = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
    return Image.fromarray(high).convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not a picture in any known format" if text.startswith("cannot identify image file") else text
