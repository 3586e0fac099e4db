"""Pictures kept as YUV 4:2:0 planes: whole ones as RGB in plain NumPy, and training windows cut from them in one pass (Numba).

Both do exactly what libjpeg does by default, which is what DALI and Pillow give: "fancy" upsampling, where a chroma sample is
3/4 of the nearest and 1/4 of the next nearest in each direction, and the fixed-point conversion of JFIF. Planes of one
picture: (size * size * 3 // 2,) uint8, Y (size, size), then Cb and Cr, each (size / 2, size / 2).
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from pipeline.rows import copy_row


def rgb_of_planes(planes: np.ndarray, size: int) -> np.ndarray:
    """The plain form. planes: (n, size * size * 3 // 2) uint8. Returns (n, size, size, 3) uint8."""
    luma, chroma = size * size, size * size // 4
    y = planes[:, :luma].reshape(-1, size, size).astype(np.int32)
    blue, red = (
        _upsample(plane.reshape(-1, size // 2, size // 2).astype(np.int32)) - 128
        for plane in (planes[:, luma : luma + chroma], planes[:, luma + chroma :])
    )
    # 1.402, 0.34414, 0.71414 and 1.772 in units of 2^-16; + 32768 rounds.
    return np.stack(
        (
            y + ((91881 * red + 32768) >> 16),
            y + ((-22554 * blue - 46802 * red + 32768) >> 16),
            y + ((116130 * blue + 32768) >> 16),
        ),
        axis=-1,
    ).clip(0, 255).astype(np.uint8)  # fmt: skip


def _upsample(plane: np.ndarray) -> np.ndarray:
    """(n, h, w) -> (n, 2 h, 2 w) int32; rounding up and down alternates along a row, as libjpeg has it."""
    count, height, width = plane.shape
    padded = np.pad(plane, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = np.empty((count, 2 * height, width + 2), np.int32)
    rows[:, 0::2] = 3 * padded[:, 1:-1] + padded[:, :-2]
    rows[:, 1::2] = 3 * padded[:, 1:-1] + padded[:, 2:]
    out = np.empty((count, 2 * height, 2 * width), np.int32)
    out[:, :, 0::2] = (3 * rows[:, :, 1:-1] + rows[:, :, :-2] + 8) >> 4
    out[:, :, 1::2] = (3 * rows[:, :, 1:-1] + rows[:, :, 2:] + 7) >> 4
    return out


def cut_planes(
    store: np.ndarray, slots: np.ndarray, y: np.ndarray, x: np.ndarray, flip: np.ndarray, out: np.ndarray, rows: np.ndarray | None = None
) -> None:
    """Windows of stored pictures as RGB, mirrored where flip says so; equal to rgb_of_planes, then cut. Works without the GIL.

    store: (slots, bytes of planes) uint8. slots, y, x: (n,) int64, the picture and the first row and column of its window;
    flip: (n,) bool. out: (n, crop, crop, 3) uint8, or (more, crop, crop, 3), of which rows (n,) int64 are written. store and
    out are contiguous.
    """
    size = isqrt(store.shape[1] * 2 // 3)
    rows = np.arange(len(out)) if rows is None else rows
    _check(store, size, (slots, y, x, flip, rows), out)
    _cut_planes(store, size, slots, y, x, flip, out, rows)


def _check(store: np.ndarray, size: int, numbers: tuple[np.ndarray, ...], out: np.ndarray) -> None:
    """The kernel reads and writes memory where these numbers say."""
    crop = out.shape[1]
    slots, y, x, _, rows = numbers
    assert store.shape[1] == size * size * 3 // 2, f"{store.shape[1]} bytes are no planes of a square picture"
    assert out.shape[1:] == (crop, crop, 3), f"windows of {out.shape}"
    assert 0 < crop <= size, f"windows of {crop} pixels in pictures of {size}"
    assert {len(array) for array in numbers} == {len(slots)}, "numbers of windows differ"
    for array in (store, out):
        assert array.dtype == np.uint8, f"uint8 wanted, not {array.dtype}"
        assert array.flags.c_contiguous, "a contiguous array wanted"
    for what, places, end in (("slot", slots, len(store)), ("row", y, size - crop + 1), ("column", x, size - crop + 1), ("window", rows, len(out))):
        assert not len(places) or 0 <= places.min() <= places.max() < end, f"a {what} is not within 0 ... {end - 1}"


# --- the kernel ---------------------------------------------------------------------------------------------------------

PIXELS = 32  # converted at once
_HALF = PIXELS // 2


class _Vectors:
    """LLVM instructions over vectors, for one block of pixels.

    Written out since LLVM does not vectorise the loop: Numba computes in 64 bits, and pixels of three bytes need shuffles.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self._context, self.builder, self._kinds, self._arguments = context, builder, signature.args, arguments

    def place(self, array: int, index: Any, kind: Any) -> Any:
        """Pointer to element `index` of the function's argument number `array`, as one to a vector of `kind`."""
        data = self._context.make_array(self._kinds[array])(self._context, self.builder, self._arguments[array]).data
        return self.builder.bitcast(self.builder.gep(data, [index]), kind.as_pointer())

    def load(self, array: int, index: Any, kind: Any) -> Any:
        loaded = self.builder.load(self.place(array, index, kind))
        loaded.align = 1
        return loaded

    def store(self, value: Any, array: int, index: Any) -> None:
        self.builder.store(value, self.place(array, index, value.type)).align = 1

    def number(self, value: int, like: Any) -> Any:
        return ir.Constant(like.type, [value] * like.type.count)

    def shuffle(self, first: Any, second: Any, order: list[int]) -> Any:
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))

    def joined(self, first: Any, second: Any) -> Any:
        return self.shuffle(first, second, list(range(2 * first.type.count)))

    def scaled(self, value: Any, factor: int) -> Any:
        return self.builder.mul(value, self.number(factor, value))

    def rounded(self, value: Any, add: int, shift: int) -> Any:
        """(value + add) >> shift"""
        return self.builder.ashr(self.builder.add(value, self.number(add, value)), self.number(shift, value))

    def bytes_of(self, value: Any) -> Any:
        """Limited to 0 ... 255, as uint8."""
        low, high = self.number(0, value), self.number(255, value)
        value = self.builder.select(self.builder.icmp_signed("<", value, low), low, value)
        value = self.builder.select(self.builder.icmp_signed(">", value, high), high, value)
        return self.builder.trunc(value, ir.VectorType(ir.IntType(8), value.type.count))


_BYTES, _SUMS, _SHORTS, _INTS = (ir.VectorType(ir.IntType(bits), count) for bits, count in ((8, PIXELS), (16, _HALF), (16, PIXELS), (32, PIXELS)))


def _chroma(vectors: _Vectors, array: int, at: Any, odd: bool, order: list[int]) -> Any:
    """32 chroma values less 128, blended from neighbouring sums of rows; see _cut_planes for these. `at` is of the first pixel's own."""
    add = vectors.builder.add
    own, before, after = (vectors.load(array, add(at, ir.Constant(at.type, step)), _SUMS) for step in (0, -1, 1))
    if odd:  # begins with the second pixel of a pair
        first = vectors.rounded(add(vectors.scaled(own, 3), after), 7, 4)
        second = vectors.rounded(add(vectors.scaled(after, 3), own), 8, 4)
    else:
        first = vectors.rounded(add(vectors.scaled(own, 3), before), 8, 4)
        second = vectors.rounded(add(vectors.scaled(own, 3), after), 7, 4)
    blended = vectors.shuffle(first, second, [pixel // 2 + _HALF * (pixel % 2) for pixel in order])
    return add(blended, vectors.number(-128, blended))


def _rgb(vectors: _Vectors, luma: Any, blue: Any, red: Any) -> list[Any]:
    """R, G and B of 32 pixels, uint8; as rgb_of_planes has it."""
    add, builder = vectors.builder.add, vectors.builder
    wide_blue, wide_red = (builder.sext(chroma, _INTS) for chroma in (blue, red))
    parts = (
        vectors.scaled(wide_red, 91881),
        add(vectors.scaled(wide_blue, -22554), vectors.scaled(wide_red, -46802)),
        vectors.scaled(wide_blue, 116130),
    )
    return [vectors.bytes_of(add(luma, builder.trunc(vectors.rounded(part, 32768, 16), _SHORTS))) for part in parts]


def _converter(odd: bool, mirrored: bool) -> Any:
    @intrinsic
    def convert(typing_context: Any, out: Any, to: Any, luma: Any, at: Any, blue: Any, red: Any, chroma_at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vectors = _Vectors(context, builder, signature, arguments)
            _, to, _, at, _, _, chroma_at = arguments
            order = list(range(PIXELS))[:: -1 if mirrored else 1]
            y = vectors.load(2, at, _BYTES)
            y = builder.zext(vectors.shuffle(y, y, order), _SHORTS)
            r, g, b = _rgb(vectors, y, _chroma(vectors, 4, chroma_at, odd, order), _chroma(vectors, 5, chroma_at, odd, order))
            order = [PIXELS * (byte % 3) + byte // 3 for byte in range(3 * PIXELS)]
            vectors.store(vectors.shuffle(vectors.joined(r, g), vectors.joined(b, b), order), 0, to)
            return context.get_dummy_value()

        return types.void(out, types.intp, luma, types.intp, blue, red, types.intp), generate

    return convert


_convert_even, _convert_odd = _converter(False, False), _converter(True, False)
_mirror_even, _mirror_odd = _converter(False, True), _converter(True, True)


@njit(nogil=True, error_model="numpy")
def _blend_rows(out: np.ndarray, near: np.ndarray, far: np.ndarray) -> None:
    """out[1 : -1] = 3 near + far, its ends repeated beyond them. out: (w + 2,) int16; near, far: (w,) uint8."""
    for k in range(near.size):
        out[k + 1] = 3 * near[k] + far[k]
    out[0], out[-1] = out[1], out[-2]


@njit(nogil=True, error_model="numpy")
def _convert_pixel(out: np.ndarray, to: int, luma: np.ndarray, blue: np.ndarray, red: np.ndarray, at: int) -> None:
    own, odd = at // 2 + 1, at % 2
    other = own + 2 * odd - 1
    b = ((3 * blue[own] + blue[other] + 8 - odd) >> 4) - 128
    r = ((3 * red[own] + red[other] + 8 - odd) >> 4) - 128
    out[to] = min(max(luma[at] + ((91881 * r + 32768) >> 16), 0), 255)
    out[to + 1] = min(max(luma[at] + ((-22554 * b - 46802 * r + 32768) >> 16), 0), 255)
    out[to + 2] = min(max(luma[at] + ((116130 * b + 32768) >> 16), 0), 255)


@njit(nogil=True, error_model="numpy")
def _convert_row(out: np.ndarray, luma: np.ndarray, blue: np.ndarray, red: np.ndarray, x: int, flip: bool) -> None:
    """out: (3 crop,) uint8; luma: (size,) uint8; blue, red: (size / 2 + 2,) int16, of _blend_rows.

    Written from left to right, mirrored or not: the other way takes half as long again.
    """
    crop = out.size // 3
    if crop < PIXELS:
        for column in range(crop):
            _convert_pixel(out, 3 * column, luma, blue, red, x + (crop - 1 - column if flip else column))
        return
    for block in range(0, crop, PIXELS):
        column = min(block, crop - PIXELS)  # the last block overlaps the one before it
        at = x + (crop - PIXELS - column if flip else column)
        own = at // 2 + 1
        if at % 2:
            if flip:
                _mirror_odd(out, 3 * column, luma, at, blue, red, own)
            else:
                _convert_odd(out, 3 * column, luma, at, blue, red, own)
        elif flip:
            _mirror_even(out, 3 * column, luma, at, blue, red, own)
        else:
            _convert_even(out, 3 * column, luma, at, blue, red, own)


@njit(nogil=True, error_model="numpy", cache=True)
def _cut_planes(
    store: np.ndarray, size: int, slots: np.ndarray, y: np.ndarray, x: np.ndarray, flip: np.ndarray, out: np.ndarray, rows: np.ndarray
) -> None:
    half, crop = size // 2, out.shape[1]
    luma, blue, red = np.empty(size, np.uint8), np.empty(half + 2, np.int16), np.empty(half + 2, np.int16)
    for k in range(len(slots)):
        planes = store[slots[k]]
        blue_plane, red_plane = planes[size * size : size * size + half * half], planes[size * size + half * half :]
        for row in range(crop):
            at = y[k] + row
            near, far = at // 2 * half, min(max(at // 2 + 2 * (at % 2) - 1, 0), half - 1) * half
            _blend_rows(blue, blue_plane[near : near + half], blue_plane[far : far + half])
            _blend_rows(red, red_plane[near : near + half], red_plane[far : far + half])
            copy_row(luma, planes[at * size : at * size + size])  # read from left to right as well, into the nearest cache
            _convert_row(out[rows[k], row].reshape(-1), luma, blue, red, x[k], flip[k])
