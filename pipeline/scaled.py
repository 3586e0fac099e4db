"""Pictures of any aspect at a scale: resized so that the shorter side has as many pixels as were drawn, and a window of that (VGG).

Simonyan, Zisserman, arXiv 1409.1556, section 3.1. Only the pixels of the window are resampled: it is a region of the picture as it
is stored. DALI (graph.py) and the plain form both use the triangular filter, as wide as pixels are merged, the picture's edge repeated.
"""

from __future__ import annotations

import numpy as np

from pipeline.draws import Draws

Scale = tuple[int, int]


def evaluation_side(scale: Scale) -> int:
    """Shorter side Q at which pictures are evaluated: the middle of what was trained on (section 3.2), 384 for 256 to 512."""
    return round(sum(scale) / 2)


def resized(sizes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Sizes of pictures whose shorter sides are resized to `sides`, (n,) int64; the longer side is rounded. sizes: (n, 2) int64 pixels."""
    short = sizes.min(axis=1, keepdims=True)
    return (2 * sizes * sides[:, None] + short) // (2 * short)


def offsets(sizes: np.ndarray, draws: Draws, crop: int) -> np.ndarray:
    """(n, 2) int64: first row and column of each window in its resized picture. sizes: (n, 2), height and width of the stored one.

    The high half of a 32-bit word times the number of offsets: both ends as likely as the middle, see draws.draw.
    """
    assert draws.sides is not None, "draws for pictures that are resized"
    return np.stack((draws.y, draws.x), axis=1) * (resized(sizes, draws.sides) - crop + 1) >> 32


def regions(sizes: np.ndarray, draws: Draws, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the windows are in the stored pictures: first and last edge, (n, 2) float64 pixels each, rows first; arguments as of `offsets`."""
    assert draws.sides is not None, "draws for pictures that are resized"
    start, after = offsets(sizes, draws, crop), resized(sizes, draws.sides)
    return start * sizes / after, (start + crop) * sizes / after


def plain_window(picture: np.ndarray, draws: Draws, crop: int) -> np.ndarray:
    """The plain form of one window, draws of one picture: (height, width, 3) uint8 -> (crop, crop, 3) uint8, not mirrored."""
    (start,), (end,) = regions(np.array([picture.shape[:2]]), draws, crop)
    down, across = (_weights(side, start[axis], end[axis], crop) for axis, side in enumerate(picture.shape[:2]))
    mixed = np.tensordot(down, np.tensordot(across, picture.astype(np.float64), (1, 1)), (1, 1))
    return np.rint(mixed).astype(np.uint8)


def _weights(side: int, start: float, end: float, crop: int) -> np.ndarray:
    """(crop, side) float64: how much of each of `side` pixels goes into each of the `crop` that the stretch start .. end is made to."""
    step = (end - start) / crop
    reach = max(step, 1.0)  # of the filter, to both sides
    beyond = int(np.ceil(reach)) + 1
    pixels, centres = np.arange(-beyond, side + beyond), start + (np.arange(crop) + 0.5) * step
    weights = np.maximum(0.0, 1.0 - np.abs(pixels + 0.5 - centres[:, None]) / reach)
    inside = weights[:, beyond:-beyond].copy()
    inside[:, 0] += weights[:, :beyond].sum(axis=1)
    inside[:, -1] += weights[:, -beyond:].sum(axis=1)
    return inside / inside.sum(axis=1, keepdims=True)
