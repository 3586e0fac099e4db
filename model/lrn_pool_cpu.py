"""lrn_pool's fused form on the CPU: Numba kernels without the GIL over the rows of a picture, shared among threads.

Maps that lie side by side in one column at one pixel are a group. The kernels spread a row's groups over a buffer, n // 2 zeros after
each: a sum over a window of maps is then n shifted reads of one long buffer, without a branch, sixteen values at a time. Between reading
maps and writing pooled ones nothing is held but a few rows, in the cache. What gets into the zeros' places on the way is never read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numba import njit

Piece = TypeVar("Piece")
Pair = tuple[np.ndarray, np.ndarray]  # one tensor, see _values
Settings = tuple[int, bool, np.float32, int, np.float32, np.float32]  # columns, relu, k, n, alpha, beta

PICTURES = 2  # that a thread takes at once
STRIP = 1024  # values of a row that are normalised at once: all there is to them stays in a core's first cache

# A value may be multiplied and added in one rounding, and 1 / sqrt be the processor's estimate, refined to float32. NaN stay NaN.
_kernel = njit(nogil=True, error_model="numpy", fastmath={"contract", "arcp"})
_stored_kernel = njit(nogil=True, error_model="numpy", fastmath={"contract", "arcp"}, cache=True)


def forward(x: torch.Tensor, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x: (batch, maps, h, w) float32 or bfloat16, channels last -> pooled, of the same type, and places, uint8, both
    (batch, maps, (h - 3) // 2 + 1, (w - 3) // 2 + 1) and channels last.

    A place, 0 ... 8 in reading order, is that of the first of the largest values in a 3 x 3 window, or of its last NaN, as in PyTorch.
    Values are compared as rounded to their type. Those beyond 1e19, whose squares overflow, give NaN or 0.
    """
    batch, maps, h, w = x.shape
    if min(h, w) < 3:
        raise ValueError(f"maps of {h} x {w} are smaller than the 3 x 3 windows of the pooling")
    shape = (batch, maps, (h - 3) // 2 + 1, (w - 3) // 2 + 1)
    pooled = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    places = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    arrays = _values(x), _values(pooled), _rows(places)
    _on_pictures(_forward, batch, arrays, (columns, relu, np.float32(k), n, np.float32(alpha), np.float32(beta)))
    return pooled, places


def backward(
    gradient: torch.Tensor, places: torch.Tensor, x: torch.Tensor, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float
) -> torch.Tensor:
    """The gradient of x, in its type and channels last, from that of pooled, of the same type; scales are computed again."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    arrays = _values(gradient), _rows(places), _values(x), _values(dx)
    _on_pictures(_backward, len(x), arrays, (columns, relu, np.float32(k), n, np.float32(alpha), np.float32(beta)))
    return dx


def on_threads(kernel: Callable[[Piece], object], pieces: Sequence[Piece]) -> None:
    """The kernel of each piece, on as many threads as PyTorch computes on; whoever is free takes the next."""
    rest, count = deque(pieces), min(torch.get_num_threads(), len(pieces))

    def work() -> None:
        while True:
            try:
                piece = rest.popleft()
            except IndexError:
                return
            kernel(piece)

    others = [_threads(count - 1).submit(work) for _ in range(count - 1)]
    work()
    for other in others:
        other.result()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Not Numba's own threads: those and PyTorch's OpenMP do not get on in one process."""
    return ThreadPoolExecutor(count, "kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a forked process has no threads but one


def _on_pictures(kernel: Callable[..., None], batch: int, arrays: tuple[np.ndarray | Pair, ...], settings: Settings) -> None:
    on_threads(lambda first: kernel(*arrays, first, min(first + PICTURES, batch), settings), range(0, batch, PICTURES))


def _rows(x: torch.Tensor) -> np.ndarray:
    """(batch, maps, h, w), channels last -> (batch, h, w, maps) in the same memory."""
    array: np.ndarray = x.detach().permute(0, 2, 3, 1).contiguous().numpy()
    return array


def _values(x: torch.Tensor) -> Pair:
    """_rows of float32 values, and of bfloat16 values as their bits in uint16, one of them empty: a kernel is compiled once for both."""
    if x.dtype == torch.float32:
        return _rows(x), np.empty((0, 0, 0, 0), np.uint16)
    return np.empty((0, 0, 0, 0), np.float32), _rows(x.detach().view(torch.int16)).view(np.uint16)


@_kernel
def _widen(wide: np.ndarray, bits: np.ndarray) -> None:
    """wide: float32 values of the bits of bfloat16 values."""
    to = wide.view(np.uint32)
    for i in range(len(bits)):
        to[i] = np.uint32(bits[i]) << np.uint32(16)


@_kernel
def _narrow(bits: np.ndarray, values: np.ndarray) -> None:
    """The nearest bfloat16 values, ties to even, as bits; any NaN becomes one that is not lost with its lower bits."""
    wide = values.view(np.uint32)
    for i in range(len(bits)):
        rounded = wide[i] + (np.uint32(0x7FFF) + ((wide[i] >> np.uint32(16)) & np.uint32(1)))
        bits[i] = (rounded if values[i] == values[i] else np.uint32(0x7FC00000)) >> np.uint32(16)


@_kernel
def _spread(wide: np.ndarray, squares: np.ndarray, x: np.ndarray, relu: bool) -> None:
    """Groups x, after the ReLU -> wide, and their squares, with zeros between the groups, which stay as they are."""
    for group in range(len(x)):
        source, to, squared = x[group], wide[group], squares[group]
        for i in range(len(source)):
            value = np.float32(0) if relu and source[i] <= 0 else source[i]
            to[i] = value
            squared[i] = value * value


@_kernel
def _sum_windows(total: np.ndarray, padded: np.ndarray, n: int) -> None:
    """total[i]: sum of padded[i : i + n]."""
    if n == 5:
        a, b, c, d, e = padded, padded[1:], padded[2:], padded[3:], padded[4:]
        for i in range(len(total)):
            total[i] = (a[i] + b[i]) + (c[i] + d[i]) + e[i]
        return
    for i in range(len(total)):
        total[i] = padded[i]
    for shift in range(1, n):
        shifted = padded[shift:]
        for i in range(len(total)):
            total[i] += shifted[i]


@_kernel
def _power(scale: np.float32, beta: np.float32) -> np.float32:
    """scale^-beta; for the paper's 0.75 by two roots, which cost a fraction of a power."""
    if beta == np.float32(0.75):
        root = np.float32(1) / np.sqrt(scale)
        return root * np.sqrt(root)
    return scale**-beta


@_kernel
def _normalise(out: np.ndarray, wide: np.ndarray, total: np.ndarray, k: np.float32, alpha: np.float32, beta: np.float32) -> None:
    """Groups out; total: their window sums, spread."""
    for group in range(len(out)):
        to, value, sums = out[group], wide[group], total[group]
        for i in range(len(to)):
            to[i] = value[i] * _power(k + alpha * sums[i], beta)


@_kernel
def _normalise_back(
    direct: np.ndarray, shares: np.ndarray, wide: np.ndarray, total: np.ndarray, k: np.float32, alpha: np.float32, beta: np.float32
) -> None:
    """Groups direct: gradients of normalised values, multiplied by scale^-beta; shares, spread: those times value / scale, to be summed."""
    for group in range(len(direct)):
        gradient, share, value, sums = direct[group], shares[group], wide[group], total[group]
        for i in range(len(gradient)):
            scale = k + alpha * sums[i]
            gradient[i] *= _power(scale, beta)
            root = np.float32(1) / np.sqrt(scale)
            share[i] = gradient[i] * value[i] * (root * root)


@_kernel
def _add_shares(direct: np.ndarray, wide: np.ndarray, total: np.ndarray, factor: np.float32, relu: bool) -> None:
    """Groups direct: become the gradients of x, with those through the sums, before the ReLU."""
    for group in range(len(direct)):
        gradient, value, sums = direct[group], wide[group], total[group]
        for i in range(len(gradient)):
            whole = gradient[i] - factor * value[i] * sums[i]
            gradient[i] = np.float32(0) if relu and value[i] <= 0 else whole


@_kernel
def _pool_along(largest: np.ndarray, where: np.ndarray, row: np.ndarray) -> None:
    """Largest of each three pixels of a row (w, maps), every second one, and which it is, 0 ... 2."""
    for x in range(len(largest)):
        a, b, c, to, at = row[2 * x], row[2 * x + 1], row[2 * x + 2], largest[x], where[x]
        for i in range(len(to)):
            second = b[i] > a[i] or b[i] != b[i]
            best = b[i] if second else a[i]
            third = c[i] > best or c[i] != c[i]
            to[i] = c[i] if third else best
            at[i] = np.uint8(2) if third else np.uint8(second)


@_kernel
def _pool_across(largest: np.ndarray, where: np.ndarray, others: np.ndarray, others_where: np.ndarray, row: int) -> None:
    """Largest so far, and of the row numbered `row` of the windows, 0 ... 2; where becomes the place in the window."""
    before = np.uint8(3 * row)
    for i in range(len(largest)):
        later = row == 0 or others[i] > largest[i] or others[i] != others[i]
        largest[i] = others[i] if later else largest[i]
        where[i] = before + others_where[i] if later else where[i]


@_kernel
def _unpool(to: np.ndarray, gradient: np.ndarray, places: np.ndarray, row: int) -> None:
    """Add the gradients of a row of pooled values to those of a row of maps, (w, maps), which is row 0, 1 or 2 of their windows."""
    for x in range(len(gradient)):
        for column in range(3):
            sum_of, g, at, place = to[2 * x + column], gradient[x], places[x], np.uint8(3 * row + column)
            for i in range(len(g)):
                sum_of[i] += g[i] if at[i] == place else np.float32(0)


@_kernel
def _row(x: Pair, picture: int, y: int, spare: np.ndarray) -> np.ndarray:
    """A row (w, maps) in float32; spare: where it is widened to."""
    values, bits = x
    if bits.size == 0:
        return values[picture, y]
    _widen(spare.reshape(-1), bits[picture, y].reshape(-1))
    return spare


@_kernel
def _padded(strip: int, size: int, margin: int) -> Pair:
    """A buffer of zeros for _sum_windows, and the part of it where the groups of a strip lie, each with the zeros after it."""
    length = strip * (size + margin)
    buffer = np.zeros(length + 2 * margin, np.float32)
    return buffer, buffer[margin : margin + length].reshape(strip, size + margin)


@_stored_kernel
def _forward(x: Pair, pooled: Pair, places: np.ndarray, first: int, end: int, settings: Settings) -> None:
    """Pictures first ... end - 1; arrays as _rows and _values make them, settings as in lrn_pool."""
    half, (columns, relu, k, n, alpha, beta) = x[1].size > 0, settings
    (h, w, maps), (pooled_h, pooled_w) = x[1].shape[1:] if half else x[0].shape[1:], places.shape[1:3]
    groups, size = w * columns, maps // columns
    strip = max(1, STRIP // size)
    padded, squares = _padded(strip, size, n // 2)
    wide, total = np.empty((strip, size), np.float32), np.empty_like(squares)
    spare, row, bits = np.empty((w, maps), np.float32), np.empty((w, maps), np.float32), np.empty(w * maps, np.uint16)
    along, along_at = np.empty((pooled_w, maps), np.float32), np.empty((pooled_w, maps), np.uint8)
    spare_largest = np.empty((2, pooled_w, maps), np.float32)  # of the windows that a row closes, and of those it opens
    for picture in range(first, end):
        for y in range(h):
            values, normal = _row(x, picture, y, spare).reshape(groups, size), row.reshape(groups, size)
            for begin in range(0, groups, strip):
                _spread(wide, squares, values[begin : begin + strip], relu)
                _sum_windows(total.reshape(-1), padded, n)
                _normalise(normal[begin : begin + strip], wide, total, k, alpha, beta)
            if half:
                _narrow(bits, row.reshape(-1))
                _widen(row.reshape(-1), bits)
            _pool_along(along, along_at, row)
            for window in range(max(0, (y - 1) // 2), min(y // 2 + 1, pooled_h)):
                largest = (spare_largest[window % 2] if half else pooled[0][picture, window]).reshape(-1)
                _pool_across(largest, places[picture, window].reshape(-1), along.reshape(-1), along_at.reshape(-1), y - 2 * window)
                if half and y == 2 * window + 2:
                    _narrow(pooled[1][picture, window].reshape(-1), largest)


@_stored_kernel
def _backward(gradient: Pair, places: np.ndarray, x: Pair, dx: Pair, first: int, end: int, settings: Settings) -> None:
    """As _forward."""
    half, (columns, relu, k, n, alpha, beta) = x[1].size > 0, settings
    (h, w, maps), (pooled_h, pooled_w) = x[1].shape[1:] if half else x[0].shape[1:], places.shape[1:3]
    groups, size = w * columns, maps // columns
    strip = max(1, STRIP // size)
    padded, squares = _padded(strip, size, n // 2)
    padded_shares, shares = _padded(strip, size, n // 2)
    wide, total = np.empty((strip, size), np.float32), np.empty_like(squares)
    spare, row, spare_pooled = np.empty((w, maps), np.float32), np.empty((w, maps), np.float32), np.empty((pooled_w, maps), np.float32)
    for picture in range(first, end):
        for y in range(h):
            direct = row if half else dx[0][picture, y]
            direct[:] = 0
            for window in range(max(0, (y - 1) // 2), min(y // 2 + 1, pooled_h)):
                _unpool(direct, _row(gradient, picture, window, spare_pooled), places[picture, window], y - 2 * window)
            values, gradients = _row(x, picture, y, spare).reshape(groups, size), direct.reshape(groups, size)
            for begin in range(0, groups, strip):
                some = gradients[begin : begin + strip]
                _spread(wide, squares, values[begin : begin + strip], relu)
                _sum_windows(total.reshape(-1), padded, n)
                _normalise_back(some, shares, wide, total, k, alpha, beta)
                _sum_windows(total.reshape(-1), padded_shares, n)
                _add_shares(some, wide, total, np.float32(2) * alpha * beta, relu)
            if half:
                _narrow(dx[1][picture, y].reshape(-1), row.reshape(-1))
