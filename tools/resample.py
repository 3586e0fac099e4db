"""Antialiased bicubic resampling of uint8 pictures, equal to Pillow's to the last bit, several times as fast (Numba).

The plain form is `Image.resize(size, BICUBIC, box=box)`: per output pixel a weighted sum in 22-bit fixed point, first along
the rows, rounded to uint8, then along the columns. Pillow as pip installs it does one pixel after the other; here 16 numbers
are weighted at once, written out as LLVM vectors, since LLVM does not find them in loops over pixels of three bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BITS = 22  # of a weight's fraction: 8 for the pixel and 2 to spare make 32, as in Pillow
_GROUP = 4  # source pixels weighted at once along a row, of four bytes each
_BLOCK = 64  # bytes of a row summed at once down the columns


class Weights(NamedTuple):
    """Of one axis. first, taps: (n,) int64, the source pixels that output pixel k is made of; of: (n, most) int32 in units of 2^-22."""

    first: np.ndarray
    taps: np.ndarray
    of: np.ndarray


@lru_cache(maxsize=256)  # most pictures have one of a few sizes
def bicubic_weights(begin: float, end: float, length: int, out: int) -> Weights:
    """Weights that resample the stretch begin ... end (pixels, not necessarily whole) of an axis of `length` pixels to `out` pixels.

    Keys' cubic with a = -0.5, stretched by the factor of reduction where there is one, which is what makes it antialiased.
    """
    scale = (end - begin) / out
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = begin + (np.arange(out) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), length) - first
    taps = np.arange(int(count.max()))
    weights = _cubic((taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch))
    weights[taps >= count[:, None]] = 0.0
    total = np.zeros(out)
    for tap in taps:  # added one by one, as Pillow does: NumPy's pairwise sum may round otherwise
        total += weights[:, tap]
    weights *= (1.0 / total)[:, None]
    fixed = np.trunc(weights * (1 << BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    for array in (first, count, fixed):
        array.flags.writeable = False
    return Weights(first, count, fixed)


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def resample(pixels: np.ndarray, across: Weights, down: Weights) -> np.ndarray:
    """pixels: (h, w, 4) uint8, contiguous, the fourth number of no meaning. Returns (len(down.of), len(across.of), 3) uint8.

    The GIL is not held.
    """
    assert pixels.dtype == np.uint8, f"uint8 wanted, not {pixels.dtype}"
    assert pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.flags.c_contiguous, f"contiguous (h, w, 4) wanted, not {pixels.shape}"  # noqa: PT018
    for axis, length in ((across, pixels.shape[1]), (down, pixels.shape[0])):
        assert 0 <= axis.first.min() <= (axis.first + axis.taps).max() <= length, "weights of another picture"
    groups = -(-across.of.shape[1] // _GROUP)
    spread = np.zeros((len(across.of), groups * _GROUP, 4), np.int32)
    spread[:, : across.of.shape[1]] = across.of[..., None]
    # Groups must not begin so late that they end behind the row: their weights move to the right instead.
    first = np.minimum(across.first, max(pixels.shape[1] - groups * _GROUP, 0))
    for k in np.flatnonzero(first != across.first):
        spread[k] = np.roll(spread[k], across.first[k] - first[k], axis=0)
    if pixels.shape[1] < groups * _GROUP:
        pixels = np.concatenate((pixels, np.zeros((len(pixels), groups * _GROUP - pixels.shape[1], 4), np.uint8)), axis=1)
    top, bottom = int(down.first.min()), int((down.first + down.taps).max())
    out = np.empty((len(down.of), len(across.of), 3), np.uint8)
    _resample(pixels.reshape(len(pixels), -1), first, spread.reshape(len(spread), -1), top, bottom, down.first, down.taps, down.of, out)
    return out


# --- the kernels --------------------------------------------------------------------------------------------------------


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _load(builder: Any, pointer: Any, align: int) -> Any:
    loaded = builder.load(pointer)
    loaded.align = align
    return loaded


def _rounded_bytes(builder: Any, total: Any) -> Any:
    """Sums in units of 2^-22 -> uint8: rounded, limited to 0 ... 255."""

    def number(value: int) -> Any:
        return ir.Constant(total.type, [value] * total.type.count)

    value = builder.ashr(builder.add(total, number(1 << (BITS - 1))), number(BITS))
    value = builder.select(builder.icmp_signed("<", value, number(0)), number(0), value)
    value = builder.select(builder.icmp_signed(">", value, number(255)), number(255), value)
    return builder.trunc(value, ir.VectorType(ir.IntType(8), total.type.count))


def _order(*places: int) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))


@intrinsic
def _weigh_pixels(typing_context: Any, out: Any, to: Any, source: Any, at: Any, weights: Any, weights_at: Any, groups: Any) -> Any:
    """out[to : to + 4] = the weighted sum of the pixels (4 bytes each) at source[at : at + 16 groups]. weights: 4 int32 a pixel."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out_, to_, source_, at_, weights_, weights_at_, groups_ = arguments
        small, wide = ir.VectorType(ir.IntType(8), 16), ir.VectorType(ir.IntType(32), 16)
        total = cgutils.alloca_once_value(builder, ir.Constant(wide, [0] * 16))
        with cgutils.for_range(builder, groups_) as loop:
            step = builder.mul(loop.index, ir.Constant(loop.index.type, 16))
            pixels = _load(builder, _pointer(context, builder, signature.args[2], source_, builder.add(at_, step), small), 1)
            factor = _load(builder, _pointer(context, builder, signature.args[4], weights_, builder.add(weights_at_, step), wide), 4)
            product = builder.mul(builder.zext(pixels, wide), factor)
            builder.store(builder.add(builder.load(total), product), total)
        four = builder.load(total)
        halves = [builder.shuffle_vector(four, four, _order(*range(begin, begin + 8))) for begin in (0, 8)]
        two = builder.add(*halves)
        quarters = [builder.shuffle_vector(two, two, _order(*range(begin, begin + 4))) for begin in (0, 4)]
        result = _rounded_bytes(builder, builder.add(*quarters))
        builder.store(result, _pointer(context, builder, signature.args[0], out_, to_, result.type)).align = 1
        return context.get_dummy_value()

    return types.void(out, types.intp, source, types.intp, weights, types.intp, types.intp), generate


@intrinsic
def _weigh_rows(typing_context: Any, out: Any, to: Any, source: Any, at: Any, stride: Any, weights: Any, weights_at: Any, count: Any) -> Any:
    """out[to : to + 64] = the weighted sum of source[at + k stride : at + k stride + 64] over k < count."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out_, to_, source_, at_, stride_, weights_, weights_at_, count_ = arguments
        small, wide = ir.VectorType(ir.IntType(8), _BLOCK), ir.VectorType(ir.IntType(32), _BLOCK)
        one = ir.VectorType(ir.IntType(32), 1)
        total = cgutils.alloca_once_value(builder, ir.Constant(wide, [0] * _BLOCK))
        with cgutils.for_range(builder, count_) as loop:
            place = builder.add(at_, builder.mul(loop.index, stride_))
            row = _load(builder, _pointer(context, builder, signature.args[2], source_, place, small), 1)
            factor = _load(builder, _pointer(context, builder, signature.args[5], weights_, builder.add(weights_at_, loop.index), one), 4)
            factor = builder.shuffle_vector(factor, factor, _order(*[0] * _BLOCK))
            builder.store(builder.add(builder.load(total), builder.mul(builder.zext(row, wide), factor)), total)
        result = _rounded_bytes(builder, builder.load(total))
        builder.store(result, _pointer(context, builder, signature.args[0], out_, to_, result.type)).align = 1
        return context.get_dummy_value()

    return types.void(out, types.intp, source, types.intp, types.intp, weights, types.intp, types.intp), generate


@njit(nogil=True, error_model="numpy", cache=True)
def _resample(
    source: np.ndarray,
    first: np.ndarray,
    spread: np.ndarray,
    top: int,
    bottom: int,
    down_first: np.ndarray,
    down_count: np.ndarray,
    down_of: np.ndarray,
    out: np.ndarray,
) -> None:
    """source: (h, 4 w) uint8; spread: (n, 4 taps) int32. Rows top ... bottom of it are needed."""
    height, width = out.shape[0], out.shape[1]
    stride = 3 * width + 1  # four bytes are written a pixel, the fourth over the next one's first
    narrow = np.empty((bottom - top, max(stride, _BLOCK)), np.uint8)
    groups = spread.shape[1] // (4 * _GROUP)
    for row in range(top, bottom):
        line, pixels = narrow[row - top], source[row]
        for column in range(width):
            _weigh_pixels(line, 3 * column, pixels, 4 * first[column], spread[column], 0, groups)
    flat, stride = narrow.reshape(-1), narrow.shape[1]
    block = np.empty(_BLOCK, np.uint8)
    for row in range(height):
        line = out[row].reshape(-1)
        at = (down_first[row] - top) * stride
        for begin in range(0, 3 * width, _BLOCK):
            begin = max(min(begin, 3 * width - _BLOCK), 0)  # the last block overlaps the one before it
            if 3 * width >= _BLOCK:
                _weigh_rows(line, begin, flat, at + begin, stride, down_of[row], 0, down_count[row])
            else:
                _weigh_rows(block, 0, flat, at, stride, down_of[row], 0, down_count[row])
                for k in range(3 * width):
                    line[k] = block[k]
