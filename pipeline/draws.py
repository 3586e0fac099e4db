"""Crop, flip and colour numbers of a sample: a pure function of (seed, epoch, sample id).

No rank, batch or step enters, so that any number of ranks, after any restart, sees the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.philox import words

WINDOW_STREAM = 1
COLOUR_STREAM = 2


@dataclass(frozen=True)
class Draws:
    """What is drawn for n samples. x, y: (n,) int64 offsets of the window; flip: (n,) bool; normals: (n, 3) float64 ~ N(0, 1)."""

    x: np.ndarray
    y: np.ndarray
    flip: np.ndarray
    normals: np.ndarray

    def rows(self, which: np.ndarray) -> Draws:
        """The draws of some of the samples."""
        return Draws(self.x[which], self.y[which], self.flip[which], self.normals[which])


def draw(seed: int, epoch: int, ids: np.ndarray, offsets: int) -> Draws:
    """Draws for `ids`; window offsets are uniform over 0 .. offsets - 1, both ends as likely as the middle.

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
    )


def fixed(count: int, x: int, y: int) -> Draws:
    """The same window for `count` samples, neither flipped nor shifted in colour."""
    return Draws(
        x=np.full(count, x, dtype=np.int64),
        y=np.full(count, y, dtype=np.int64),
        flip=np.zeros(count, dtype=bool),
        normals=np.zeros((count, 3)),
    )
