"""One source file -> one JPEG of a shard.

Two ways to the same pixels: libjpeg-turbo and our own resampling for what is a sane grey or YCbCr JPEG by its header, nearly
all of ImageNet; Pillow for everything else, which is also the plain form of the first (tests/test_picture.py: bit-equal).
"""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFile

from pipeline.manifest import Settings
from tools.jpeg_codec import SCANS, CodecError, Decoding, UnsupportedError, encode
from tools.resample import bicubic_weights, resample
from tools.source_entries import MAX_FILE

MAX_PIXELS = 100_000_000  # of a source picture: 300 MB decoded. ImageNet's largest has a tenth of it
MAX_SIDE = 65_500  # of a JPEG
MARGIN = 8  # columns and rows decoded beyond those that are weighted: at a cut libjpeg has no neighbour to blend colours with
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # Pillow's others reach as far as Ghostscript
_SCAN = b"\xff\xda"
_JPEG, _GZIP = b"\xff\xd8\xff", b"\x1f\x8b"


class PictureError(ValueError):
    """A file that is not a picture; the message is the reason."""


@dataclass(frozen=True)
class Converted:
    """jpeg: the encoded picture; pixels: what was encoded, (h, w, 3) uint8 RGB; doubt: what libjpeg found wrong with a source that
    could be decoded all the same, None for nothing."""

    jpeg: bytes
    pixels: np.ndarray
    doubt: str | None = None


def convert(data: bytes, settings: Settings) -> Converted:
    """Shorter side to `size` with bicubic antialiasing; of shape "square" only the central size x size. RGB, baseline JPEG, no metadata.

    The central square is resampled in one step from its exact, possibly half-pixel, place. CMYK, grey, palette and 16-bit files
    become RGB, transparency is dropped, gzip unwrapped. EXIF orientation is ignored, as in the paper's time, unless the
    settings say "applied". Huffman tables are optimised: 3 % fewer bytes, the same pixels. Raises PictureError.
    """
    data = _unwrapped(data)
    pixels, doubt = None, None
    if data.startswith(_JPEG):
        try:
            pixels = _fast_pixels(data, settings)
        except CodecError as error:
            doubt = None if isinstance(error, UnsupportedError) else str(error)
            _check_scans(data)
    if pixels is None:
        pixels = plain_pixels(data, settings)
    try:
        return Converted(encode(pixels, settings.quality, settings.subsampling), pixels, doubt)
    except CodecError as error:
        raise PictureError(f"cannot be encoded: {error}") from None


def _unwrapped(data: bytes) -> bytes:
    if not data:
        raise PictureError("the file is empty")
    if not data.startswith(_GZIP):
        return data
    try:
        inner = zlib.decompressobj(31)
        data = inner.decompress(data, MAX_FILE)
    except zlib.error as error:
        raise PictureError(f"it is wrapped in gzip and damaged: {error}") from None
    if not inner.eof:
        raise PictureError(f"it is wrapped in gzip, and cut short or larger than {MAX_FILE:,} bytes")
    return data


def _check_scans(data: bytes) -> None:
    """Pillow goes over a JPEG as often as it has scans; libjpeg-turbo was told where to stop."""
    if data.count(_SCAN) > SCANS:
        raise PictureError(f"it has {data.count(_SCAN):,} scans, more than the {SCANS} that a JPEG may have")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureError(f"it claims {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} that a picture may have")


# --- what to take of a picture


@dataclass(frozen=True)
class _Stretch:
    """What of a picture of width x height pixels, `eighths` / 8 of its own size, is resampled, and to how many pixels."""

    width: int
    height: int
    eighths: int
    box: tuple[float, float, float, float]
    out: tuple[int, int]


def _stretch(width: int, height: int, settings: Settings, jpeg: bool) -> _Stretch:
    """box: left, top, right, bottom in pixels of the reduced picture. Raises PictureError."""
    eighths = 8
    if jpeg and settings.decode == "scaled":
        # Halves only: libjpeg-turbo has vector code for 8, 4 and 2 of 8, and Pillow asks for no other.
        while eighths > 1 and min(width, height) * (eighths // 2) >= settings.size * 8:
            eighths //= 2
    exact_width, exact_height = width * eighths / 8, height * eighths / 8
    reduced = (-(-width * eighths // 8), -(-height * eighths // 8))
    short = min(exact_width, exact_height)
    if settings.shape == "square":
        left, top = (exact_width - short) / 2, (exact_height - short) / 2
        return _Stretch(*reduced, eighths, (left, top, left + short, top + short), (settings.size, settings.size))
    out = tuple(max(round(settings.size * side / short), 1) for side in (exact_width, exact_height))
    if max(out) > MAX_SIDE:
        raise PictureError(f"with a shorter side of {settings.size} it would have {out[0]:,} x {out[1]:,} pixels; a JPEG has at most {MAX_SIDE:,}")
    return _Stretch(*reduced, eighths, (0.0, 0.0, exact_width, exact_height), (out[0], out[1]))


def _fast_pixels(jpeg: bytes, settings: Settings) -> np.ndarray:
    """(h, w, 3) uint8. Raises CodecError, UnsupportedError for what Pillow must do, and PictureError."""
    if settings.exif_orientation == "applied" and b"Exif\0\0" in jpeg:
        raise UnsupportedError("it may have to be turned")
    with Decoding(jpeg) as picture:
        _check_size(picture.width, picture.height)
        take = _stretch(picture.width, picture.height, settings, jpeg=True)
        across = bicubic_weights(take.box[0], take.box[2], take.width, take.out[0])
        down = bicubic_weights(take.box[1], take.box[3], take.height, take.out[1])
        columns = range(int(across.first[0]) - MARGIN, int(across.first[-1] + across.taps[-1]) + MARGIN)
        pixels, left, top = picture.pixels(take.eighths, columns, int(down.first[0]) - MARGIN)
    return resample(pixels, across._replace(first=across.first - left), down._replace(first=down.first - top))


def plain_pixels(data: bytes, settings: Settings) -> np.ndarray:
    """The pixels that `convert` encodes, (h, w, 3) uint8, by Pillow alone. Raises PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF is of no concern here, large pictures are refused below
            file = Image.open(io.BytesIO(data), formats=FORMATS)
            (width, height), jpeg = file.size, file.format in ("JPEG", "MPO")
            _check_size(width, height)
            turn = _turn(file, settings.exif_orientation == "applied")
            take = _stretch(*((height, width) if turn >= 5 else (width, height)), settings, jpeg)
            if take.eighths < 8:
                file.draft(None, (width * take.eighths // 8, height * take.eighths // 8))
            file.load()
            picture = _rgb(file)
            if turn > 1:
                picture = picture.transpose(_TURNS[turn])
    except PictureError:
        raise
    except Exception as error:  # of a damaged file Pillow's readers raise nearly anything
        raise PictureError(_reason(error)) from None
    if picture.size != (take.width, take.height):
        raise PictureError(f"it was to have {take.width} x {take.height} pixels, and has {picture.size[0]} x {picture.size[1]}")
    left, top, right, bottom = take.box
    down = bicubic_weights(top, bottom, take.height, take.out[1])
    first, last = int(down.first[0]), int(down.first[-1] + down.taps[-1])  # a picture one pixel wide may have millions of rows
    # One axis after the other: which one Pillow takes first depends on its version.
    narrow = picture.resize((take.out[0], last - first), Image.Resampling.BICUBIC, box=(left, first, right, last))
    return np.asarray(narrow.resize(take.out, Image.Resampling.BICUBIC, box=(0, top - first, take.out[0], bottom - first)))


def _turn(file: ImageFile.ImageFile, applied: bool) -> int:
    """How the picture that Pillow decodes is to be turned: an EXIF orientation, 1 ... 8, 1 for not at all."""
    tiff = file.format == "TIFF"  # Pillow turns these itself
    if applied == tiff:
        return 1
    try:
        value = file.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF says nothing
        return 1
    value = value if isinstance(value, int) and 1 <= value <= 8 else 1
    return {6: 8, 8: 6}.get(value, value) if tiff else value


_TURNS = {  # by EXIF orientation; from 5 on width and height change places
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _rgb(file: ImageFile.ImageFile) -> Image.Image:
    picture: Image.Image = file
    if picture.mode.startswith("I"):
        return _eight_bits(picture)
    if picture.mode == "CMYK" and file.format in ("JPEG", "MPO") and "adobe" not in picture.info:
        picture = ImageChops.invert(picture)  # Pillow takes every CMYK JPEG for Adobe's, which has its colours inverted
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pillow would clip 16-bit grey to white."""
    high = np.clip(np.asarray(picture) >> 8, 0, 255).astype(np.uint8)
    return Image.fromarray(high).convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "not a picture in any known format" if text.startswith("cannot identify image file") else text
