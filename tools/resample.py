"""Antialiased bicubic resampling of uint8 pictures, equal to Pillow's to the last bit, several times as fast (Numba).

The plain form is `Image.resize(size, BICUBIC, box=box)`: per output pixel a weighted sum in 22-bit fixed point, first along
the rows, rounded to uint8, then along the columns. Pillow as pip installs it does one pixel after the other; here 16 numbers
are weighted at once, written out as LLVM vectors, since LLVM does not find them in loops over pixels of three bytes.
"""

from __future__ import annotations

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


def bicubic_weights(begin: float, end: float, length: int, out: int) -> Weights:
    """Weights that resample the stretch begin ... end (pixels, not necessarily whole) of an axis of `length` pixels to `out` pixels.

    Keys' cubic with a = -0.5, stretched by the factor of reduction where there is one, which is what makes it antialiased.
    """
    most = min(int(4 * max((end - begin) / out, 1.0)) + 2, length)
    weights = Weights(np.empty(out, np.int64), np.empty(out, np.int64), np.zeros((out, most), np.int32))
    _fill_weights(begin, end, length, *weights)
    return weights


def resample(pixels: np.ndarray, across: Weights, down: Weights) -> np.ndarray:
    """pixels: (h, w, 4) uint8, contiguous, the fourth number of no meaning. Returns (len(down.of), len(across.of), 3) uint8.

    The GIL is not held.
    """
    assert pixels.dtype == np.uint8, f"uint8 wanted, not {pixels.dtype}"
    assert pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.flags.c_contiguous, f"contiguous (h, w, 4) wanted, not {pixels.shape}"  # noqa: PT018
    for axis, length in ((across, pixels.shape[1]), (down, pixels.shape[0])):
        assert 0 <= axis.first.min() <= (axis.first + axis.taps).max() <= length, "weights of another picture"
    taps = -(-across.of.shape[1] // _GROUP) * _GROUP
    if pixels.shape[1] < taps:
        pixels = np.concatenate((pixels, np.zeros((len(pixels), taps - pixels.shape[1], 4), np.uint8)), axis=1)
    first, spread = np.empty(len(across.of), np.int64), np.zeros((len(across.of), taps * 4), np.int32)
    _spread_weights(across.first, across.of, pixels.shape[1], first, spread)
    top, bottom = int(down.first[0]), int(down.first[-1] + down.taps[-1])
    out = np.empty((len(down.of), len(across.of), 3), np.uint8)
    _resample(pixels.reshape(len(pixels), -1), first, spread, top, bottom, down.first, down.taps, down.of, out)
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
def _weigh_pixels(
    typing_context: Any, out: Any, to: Any, other_to: Any, source: Any, at: Any, other_at: Any, weights: Any, weights_at: Any, groups: Any
) -> Any:
    """out[to : to + 4] = the weighted sum of the pixels (4 bytes each) at source[at : at + 16 groups], and the same for another row,
    which shares the weights. weights: 4 int32 a pixel."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out_, to_, other_to_, source_, at_, other_at_, weights_, weights_at_, groups_ = arguments
        small, wide = ir.VectorType(ir.IntType(8), 16), ir.VectorType(ir.IntType(32), 16)
        totals = [cgutils.alloca_once_value(builder, ir.Constant(wide, [0] * 16)) for _ in range(2)]
        with cgutils.for_range(builder, groups_) as loop:
            step = builder.mul(loop.index, ir.Constant(loop.index.type, 16))
            factor = _load(builder, _pointer(context, builder, signature.args[6], weights_, builder.add(weights_at_, step), wide), 4)
            for total, begin in zip(totals, (at_, other_at_), strict=True):
                pixels = _load(builder, _pointer(context, builder, signature.args[3], source_, builder.add(begin, step), small), 1)
                product = builder.mul(builder.zext(pixels, wide), factor)
                builder.store(builder.add(builder.load(total), product), total)
        # Of both rows side by side, the four pixels of a group are added: 32 numbers, 16, 8.
        first, second = (builder.load(total) for total in totals)
        sixteen = builder.add(
            builder.shuffle_vector(first, second, _order(*range(8), *range(16, 24))),
            builder.shuffle_vector(first, second, _order(*range(8, 16), *range(24, 32))),
        )
        eight = builder.add(
            builder.shuffle_vector(sixteen, sixteen, _order(*range(4), *range(8, 12))),
            builder.shuffle_vector(sixteen, sixteen, _order(*range(4, 8), *range(12, 16))),
        )
        result = _rounded_bytes(builder, eight)
        for begin, place in ((0, to_), (4, other_to_)):
            pixel = builder.shuffle_vector(result, result, _order(*range(begin, begin + 4)))
            builder.store(pixel, _pointer(context, builder, signature.args[0], out_, place, pixel.type)).align = 1
        return context.get_dummy_value()

    intp = types.intp
    return types.void(out, intp, intp, source, intp, intp, weights, intp, intp), generate


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
def _fill_weights(begin: float, end: float, length: int, first: np.ndarray, taps: np.ndarray, of: np.ndarray) -> None:
    scale = (end - begin) / len(first)
    stretch = max(scale, 1.0)
    support, a = 2.0 * stretch, -0.5
    weights = np.empty(of.shape[1])
    for k in range(len(first)):
        centre = begin + (k + 0.5) * scale
        first[k] = max(int(centre - support + 0.5), 0)
        taps[k] = min(int(centre + support + 0.5), length) - first[k]
        total = 0.0
        for tap in range(taps[k]):
            x = abs((tap + first[k] - centre + 0.5) * (1.0 / stretch))
            if x < 1.0:
                weights[tap] = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
            else:
                weights[tap] = (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0
            total += weights[tap]
        for tap in range(taps[k]):
            fixed = weights[tap] * (1.0 / total) * (1 << BITS)
            of[k, tap] = np.int32(fixed - 0.5 if weights[tap] < 0 else fixed + 0.5)


@njit(nogil=True, error_model="numpy", cache=True)
def _spread_weights(first: np.ndarray, of: np.ndarray, length: int, begin: np.ndarray, spread: np.ndarray) -> None:
    """Each weight four times, for the bytes of a pixel, in whole groups of pixels, none of which goes beyond the row.

    begin: (n,) int64, where the groups begin; spread: (n, 4 taps) int32, zeros.
    """
    for k in range(len(first)):
        begin[k] = min(first[k], length - spread.shape[1] // 4)
        at = 4 * (first[k] - begin[k])
        for tap in range(of.shape[1]):
            if of[k, tap]:
                for byte in range(4):
                    spread[k, at + 4 * tap + byte] = of[k, tap]


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
    groups, stride, pixels, flat = spread.shape[1] // (4 * _GROUP), narrow.shape[1], source.reshape(-1), narrow.reshape(-1)
    for row in range(0, bottom - top, 2):
        other = min(row + 1, bottom - top - 1)  # of an odd number the last row is its own other
        at, other_at = (top + row) * source.shape[1], (top + other) * source.shape[1]
        for column in range(width):
            step = 4 * first[column]
            _weigh_pixels(
                flat, row * stride + 3 * column, other * stride + 3 * column, pixels, at + step, other_at + step, spread[column], 0, groups
            )  # fmt: skip
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
