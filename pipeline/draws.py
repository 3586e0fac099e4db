"""Crop, flip and colour numbers of a sample: a pure function of (seed, epoch, sample id).

No rank, batch or step enters, so that any number of ranks, after any restart, sees the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.philox import words

WINDOW_STREAM = 1
COLOUR_STREAM = 2
WORDS = 1 << 32  # as a number of offsets: the words themselves are drawn
CENTRE = (1 << 31) - 1  # the word of the central window: (CENTRE * (size - crop + 1)) >> 32 is (size - crop) // 2


@dataclass(frozen=True)
class Draws:
    """What is drawn for n samples. x, y: (n,) int64 offsets of the window; flip: (n,) bool; normals: (n, 3) float64 ~ N(0, 1).

    sides: (n,) int64, pixels that the shorter side of each picture is resized to, None where none is. How many offsets there are
    then depends on the picture's aspect, so x and y are words below 2^32 instead, see scaled.offsets.
    """

    x: np.ndarray
    y: np.ndarray
    flip: np.ndarray
    normals: np.ndarray
    sides: np.ndarray | None = None

    def rows(self, which: np.ndarray) -> Draws:
        """The draws of some of the samples."""
        return Draws(self.x[which], self.y[which], self.flip[which], self.normals[which], None if self.sides is None else self.sides[which])


def draw(seed: int, epoch: int, ids: np.ndarray, offsets: int, scale: tuple[int, int] | None = None) -> Draws:
    """Draws for `ids`; window offsets are uniform over 0 .. offsets - 1, both ends as likely as the middle, and so are the shorter
    sides over the integers from scale[0] to scale[1].

    offsets is size - crop + 1 (30 for a 227 window of 256). Multiplying a 32-bit word by it and keeping the high half
    is uniform to 2^-32 * offsets; normals are Box-Muller on the words of a stream of their own.
    """
    window = words(seed, epoch, WINDOW_STREAM, ids).astype(np.uint64)
    colour = words(seed, epoch, COLOUR_STREAM, ids).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((colour[:, 0::2] + 1.0) / 2.0**32))  # of (0, 1], so the logarithm is finite
    angle = 2.0 * np.pi * colour[:, 1::2] / 2.0**32
    return Draws(
        x=((window[:, 0] * np.uint64(offsets)) >> np.uint64(32)).astype(np.int64),
        y=((window[:, 1] * np.uint64(offsets)) >> np.uint64(32)).astype(np.int64),
        flip=(window[:, 2] >> np.uint64(31)).astype(bool),
        normals=np.concatenate((radius * np.cos(angle), (radius * np.sin(angle))[:, :1]), axis=1),
        sides=None if scale is None else scale[0] + (window[:, 3] * np.uint64(scale[1] - scale[0] + 1) >> np.uint64(32)).astype(np.int64),
    )


def fixed(count: int, x: int, y: int, side: int | None = None) -> Draws:
    """The same window for `count` samples, neither flipped nor shifted in colour; side: see Draws.sides."""
    return Draws(
        x=np.full(count, x, dtype=np.int64),
        y=np.full(count, y, dtype=np.int64),
        flip=np.zeros(count, dtype=bool),
        normals=np.zeros((count, 3)),
        sides=None if side is None else np.full(count, side, dtype=np.int64),
    )
