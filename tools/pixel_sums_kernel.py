"""The inner loop of tools/pixel_sums.py (Numba)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, error_model="numpy", cache=True)
def add(pixels: np.ndarray, picture: np.ndarray, products: np.ndarray) -> None:
    """pixels: (rows, 3 columns) uint8; picture: the same shape, int32; products: (3, 3) int64.

    Each number times itself and times its next two, summed down the columns, where loops are vectors; colours are told apart last.
    At most 1,024 rows of 255 x 255 in 32 bits.
    """
    rows, width = pixels.shape
    own, next_, second = np.zeros(width, np.int32), np.zeros(width, np.int32), np.zeros(width, np.int32)
    for row in range(rows):
        line, total = pixels[row], picture[row]
        for k in range(width):
            total[k] += line[k]
            own[k] += np.int32(line[k]) * np.int32(line[k])
        for k in range(width - 2):
            next_[k] += np.int32(line[k]) * np.int32(line[k + 1])
            second[k] += np.int32(line[k]) * np.int32(line[k + 2])
        next_[width - 2] += np.int32(line[width - 2]) * np.int32(line[width - 1])
    for k in range(0, width, 3):
        for channel in range(3):
            products[channel, channel] += own[k + channel]
        for a, b, value in ((0, 1, next_[k]), (1, 2, next_[k + 1]), (0, 2, second[k])):
            products[a, b] += value
            products[b, a] += value
