"""How near a written picture is to what it should be: PSNR and SSIM against full decoding and Lanczos, without JPEG between."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin
from scipy.ndimage import correlate1d

from tools.peer_converters import SIZE

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # of SSIM, as in Wang et al. 2004
LUMA = (0.299, 0.587, 0.114)
SAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}


def references(jpeg: bytes) -> list[np.ndarray]:
    """(SIZE, SIZE, 3) uint8: what the picture should look like, for each place that its edges may be rounded to.

    The exact central square, possibly of half pixels; and the whole picture scaled to whole pixels, rounded down or up, and then cropped,
    rounded down or up. All with full decoding and Lanczos by Pillow. None of a file that Pillow cannot decode.
    """
    try:
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return []
    short, long = sorted(picture.size)
    left, top = ((side - short) / 2 for side in picture.size)
    lanczos = Image.Resampling.LANCZOS
    found = [np.asarray(picture.resize((SIZE, SIZE), lanczos, box=(left, top, left + short, top + short)))]
    exact = long * SIZE / short
    for new in sorted({math.floor(exact), math.ceil(exact)}):
        size = (SIZE, new) if picture.width == short else (new, SIZE)
        whole = np.asarray(picture.resize(size, lanczos))
        starts = [sorted({math.floor((side - SIZE) / 2), math.ceil((side - SIZE) / 2)}) for side in whole.shape[:2]]
        found += [whole[y : y + SIZE, x : x + SIZE] for y, x in itertools.product(*starts)]
    return found


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """dB, over all numbers of two uint8 arrays of one shape; equal ones count as one number that differs by one grey level."""
    error = np.square(one.astype(np.float64) - other).mean()
    return float(10 * np.log10(255**2 / max(error, 1 / one.size)))


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Of the lumas of two (h, w, 3) uint8 pictures: Gaussian window of 11 x 11 with sigma 1.5, where it lies wholly inside them; the mean."""
    x, y = (picture.astype(np.float64) @ LUMA for picture in (one, other))
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((above / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def _blurred(plane: np.ndarray) -> np.ndarray:
    """(h, w) float64 -> (h - 10, w - 10)."""
    half = WINDOW // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    blurred: np.ndarray = correlate1d(correlate1d(plane, weights, axis=0), weights, axis=1)
    return blurred[half:-half, half:-half]


@dataclass(frozen=True)
class Quality:
    """Means over the pictures that a row wrote in the right size and that have a reference, None without any.

    failed: how many it could not convert, reason: the first's; other_form: how many it wrote otherwise than asked, by how.
    """

    psnr_db: float | None
    ssim: float | None
    bytes: int | None
    failed: int
    other_form: dict[str, int]
    reason: str

    def summary(self) -> dict[str, Any]:
        other = ", ".join(f"{count} as {form}" for form, count in sorted(self.other_form.items()))
        numbers = {"psnr_db": self.psnr_db, "ssim": self.ssim, "bytes": self.bytes}
        return {**numbers, "failed": self.failed, "other_form": other, "reason": self.reason}


def judge(folder: Path, wanted: list[list[np.ndarray]], sampling: str, failed: dict[str, str]) -> Quality:
    """wanted: the references of each picture; folder: NUMBER.jpg of those that were written. A picture counts against the reference that it is
    nearest to. One of another form is judged as RGB if it has the right size, and counted in any case."""
    values, other = list[tuple[float, float, int]](), dict[str, int]()
    for number, candidates in enumerate(wanted):
        if str(number) in failed:
            continue
        jpeg = (folder / f"{number:06d}.jpg").read_bytes()
        picture = Image.open(io.BytesIO(jpeg))
        form = _form(picture)
        if form != f"{SIZE} x {SIZE} RGB {sampling}":
            other[form] = other.get(form, 0) + 1
        if picture.size == (SIZE, SIZE) and candidates:
            pixels = np.asarray(picture.convert("RGB"))
            decibels, nearest = max(((psnr(pixels, candidate), k) for k, candidate in enumerate(candidates)), key=lambda pair: pair[0])
            values.append((decibels, ssim(pixels, candidates[nearest]), len(jpeg)))
    reason = next(iter(failed.values()), "")
    if not values:
        return Quality(None, None, None, len(failed), other, reason)
    decibels, similar, size = np.mean(values, axis=0)
    return Quality(round(float(decibels), 2), round(float(similar), 4), round(float(size)), len(failed), other, reason)


def _form(picture: Image.Image) -> str:
    """Size, colours and chroma of a JPEG: "256 x 256 RGB 4:2:0"."""
    sampling = f" {SAMPLINGS.get(JpegImagePlugin.get_sampling(picture), 'of another chroma')}" if picture.mode == "RGB" else ""
    return f"{picture.width} x {picture.height} {picture.mode}{sampling}"
