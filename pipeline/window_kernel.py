"""The Triton kernel of device_window.cut_windows: from stored pictures to a finished batch, each pixel read and written once.

Apart from device_window, since not every machine has Triton. One program makes BLOCK pixels of one window; one pixel is made
by one lane of it. Its plain form, device_window.cut_windows_plain, gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit
def _blend(plane, row, column, SIZE: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    """A chroma value less 128 at a pixel: 9/16, 3/16, 3/16 and 1/16 of the four samples around it, as libjpeg rounds them."""
    HALF: tl.constexpr = SIZE // 2
    near_row, near_column = row // 2, column // 2
    far_row = tl.minimum(tl.maximum(near_row + 2 * (row % 2) - 1, 0), HALF - 1)
    far_column = tl.minimum(tl.maximum(near_column + 2 * (column % 2) - 1, 0), HALF - 1)
    near = 3 * tl.load(plane + near_row * HALF + near_column, mask, 0).to(tl.int32) + tl.load(plane + far_row * HALF + near_column, mask, 0).to(
        tl.int32
    )
    far = 3 * tl.load(plane + near_row * HALF + far_column, mask, 0).to(tl.int32) + tl.load(plane + far_row * HALF + far_column, mask, 0).to(tl.int32)
    return ((3 * near + far + 8 - column % 2) >> 4) - 128


@triton.jit
def _pixels(picture, row, column, SIZE: tl.constexpr, YUV: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    """R, G and B, int32, of pixels of the picture whose first byte is at `picture`."""
    if YUV:
        luma = tl.load(picture + row * SIZE + column, mask, 0).to(tl.int32)
        blue = _blend(picture + SIZE * SIZE, row, column, SIZE, mask)
        red = _blend(picture + SIZE * SIZE * 5 // 4, row, column, SIZE, mask)
        r = luma + ((91881 * red + 32768) >> 16)
        g = luma + ((-22554 * blue - 46802 * red + 32768) >> 16)
        b = luma + ((116130 * blue + 32768) >> 16)
        return tl.minimum(tl.maximum(r, 0), 255), tl.minimum(tl.maximum(g, 0), 255), tl.minimum(tl.maximum(b, 0), 255)
    else:  # noqa: RET505 - Triton compiles both branches when nothing stands between them
        at = picture + (row * SIZE + column) * 3
        return tl.load(at, mask, 0).to(tl.int32), tl.load(at + 1, mask, 0).to(tl.int32), tl.load(at + 2, mask, 0).to(tl.int32)


@triton.jit
def _finished(value, mean, shift, divisor, DIVIDE: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    grey = value.to(tl.float32) - tl.load(mean, mask, 0) + tl.load(shift)
    return tl.div_rn(grey, divisor) if DIVIDE else grey  # "/" would be the GPU's approximate division


@triton.jit
def _cut(  # type: ignore[no-untyped-def]
    store,
    slots,
    tops,
    lefts,
    flips,
    shifts,
    mean_image,
    out,
    divisor,
    SIZE: tl.constexpr,
    CROP: tl.constexpr,
    YUV: tl.constexpr,
    CENTRE: tl.constexpr,
    FLOAT: tl.constexpr,
    DIVIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    BLOCKS: tl.constexpr = (CROP * CROP + BLOCK - 1) // BLOCK
    BYTES: tl.constexpr = SIZE * SIZE * 3 // 2 if YUV else SIZE * SIZE * 3
    sample = tl.program_id(0) // BLOCKS
    pixel = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < CROP * CROP
    window_row, window_column = pixel // CROP, pixel % CROP
    row = tl.load(tops + sample).to(tl.int32) + window_row
    column = tl.load(lefts + sample).to(tl.int32) + tl.where(tl.load(flips + sample) != 0, CROP - 1 - window_column, window_column)
    r, g, b = _pixels(store + tl.load(slots + sample).to(tl.int64) * BYTES, row, column, SIZE, YUV, mask)  # a store has more than 2^31 bytes
    to = out + sample.to(tl.int64) * (CROP * CROP * 3) + pixel * 3
    if FLOAT:
        START: tl.constexpr = (SIZE - CROP) // 2
        mean = mean_image + ((START + window_row) * SIZE + START + window_column if CENTRE else row * SIZE + column) * 3
        shift = shifts + sample * 3
        tl.store(to, _finished(r, mean, shift, divisor, DIVIDE, mask), mask)
        tl.store(to + 1, _finished(g, mean + 1, shift + 1, divisor, DIVIDE, mask), mask)
        tl.store(to + 2, _finished(b, mean + 2, shift + 2, divisor, DIVIDE, mask), mask)
    else:
        tl.store(to, r.to(tl.uint8), mask)
        tl.store(to + 1, g.to(tl.uint8), mask)
        tl.store(to + 2, b.to(tl.uint8), mask)


def launch(
    out: torch.Tensor,
    store: torch.Tensor,
    slots: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    flip: torch.Tensor,
    shift: torch.Tensor,
    mean_image: torch.Tensor,
    *,
    yuv: bool,
    centre: bool,
    divisor: float,
) -> None:
    """Fill out, (n, crop, crop, 3) uint8 windows or finished float32 pictures; the others as cut_windows has them, contiguous."""
    crop = out.shape[1]
    programs = len(out) * -(-crop * crop // BLOCK)
    with torch.cuda.device_of(store):
        _cut[(programs,)](
            *(store, slots, y, x, flip.view(torch.uint8), shift, mean_image, out, float(divisor)),
            SIZE=len(mean_image),
            CROP=crop,
            YUV=yuv,
            CENTRE=centre,
            FLOAT=out.dtype == torch.float32,
            DIVIDE=divisor != 1.0,
            BLOCK=BLOCK,
        )
