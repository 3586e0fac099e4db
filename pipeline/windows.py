"""The last step of a picture on the CPU, one pass over its pixels: cut, mirror, subtract the mean image, shift the colour.

Numba kernels without the GIL; the plain form is augment.plain_batch, equal bit for bit. `source` is any store of RGB
pictures of side x side pixels, (slots, side * side * 3 or more) uint8; sample k of a call lies in it at slots[k], from row
top[k] and column left[k] on, and is written to out[rows[k]].
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.rows import copy_row, mirror_row


@njit(nogil=True, error_model="numpy", cache=True)
def cut_windows(
    out: np.ndarray, rows: np.ndarray, source: np.ndarray, side: int, slots: np.ndarray, top: np.ndarray, left: np.ndarray, flip: np.ndarray
) -> None:
    """out: (n, crop, crop, 3) uint8. flip: (k,) bool."""
    crop = out.shape[1]
    spare = np.empty(3 * crop, np.uint8)
    for k in range(len(rows)):
        for row in range(crop):
            begin = 3 * ((top[k] + row) * side + left[k])
            pixels = source[slots[k], begin : begin + 3 * crop]
            if flip[k]:
                copy_row(spare, pixels)  # forwards first: the processor does not fetch ahead of one who reads memory backwards
                mirror_row(out[rows[k], row].reshape(-1), spare)
            else:
                copy_row(out[rows[k], row].reshape(-1), pixels)


@njit(nogil=True, error_model="numpy", cache=True)
def mirror_in_place(windows: np.ndarray, flip: np.ndarray) -> None:
    """Mirror those of the windows (n, crop, crop, 3) uint8 for which flip (n,) is true."""
    spare = np.empty(3 * windows.shape[2], np.uint8)
    for k in range(len(windows)):
        if flip[k]:
            for row in range(windows.shape[1]):
                pixels = windows[k, row].reshape(-1)
                copy_row(spare, pixels)
                mirror_row(pixels, spare)


@njit(nogil=True, error_model="numpy")
def _finish_row(out: np.ndarray, pixels: np.ndarray, mean: np.ndarray, colour: np.ndarray) -> None:
    for k in range(out.size):
        out[k] = np.float32(pixels[k]) - mean[k] + colour[k]


@njit(nogil=True, error_model="numpy")
def _divide_row(out: np.ndarray, divisor: np.float32) -> None:
    for k in range(out.size):
        out[k] = out[k] / divisor


@njit(nogil=True, error_model="numpy", cache=True)
def finish_windows(
    out: np.ndarray,
    rows: np.ndarray,
    source: np.ndarray,
    side: int,
    slots: np.ndarray,
    top: np.ndarray,
    left: np.ndarray,
    flip: np.ndarray,
    means: np.ndarray,
    mean_place: np.ndarray,
    shift: np.ndarray,
    divisor: np.float32,
) -> None:
    """out: (n, crop, crop, 3) float32 grey levels = (window - mean + shift) / divisor.

    means: (2, size, size, 3) float32, the mean image and its mirror image; mean_place: (k, 3) int64, which of the two, row
    and column of the window to subtract; shift: (k, 3) float32.
    """
    crop = out.shape[1]
    spare, mirrored, colour = np.empty(3 * crop, np.uint8), np.empty(3 * crop, np.uint8), np.empty(3 * crop, np.float32)
    for k in range(len(rows)):
        for pixel in range(crop):
            for channel in range(3):
                colour[3 * pixel + channel] = shift[k, channel]
        mean_begin = 3 * mean_place[k, 2]
        for row in range(crop):
            begin = 3 * ((top[k] + row) * side + left[k])
            pixels = source[slots[k], begin : begin + 3 * crop]
            mean = means[mean_place[k, 0], mean_place[k, 1] + row].reshape(-1)[mean_begin : mean_begin + 3 * crop]
            finished = out[rows[k], row].reshape(-1)
            if flip[k]:
                copy_row(spare, pixels)
                mirror_row(mirrored, spare)
                _finish_row(finished, mirrored, mean, colour)
            else:
                _finish_row(finished, pixels, mean, colour)
            if divisor != np.float32(1.0):
                _divide_row(finished, divisor)
