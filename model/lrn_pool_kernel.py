"""The Triton kernels of lrn_pool.relu_lrn_pool: forward and backward, each one pass over memory.

Apart from lrn_pool, since not every machine has Triton. A lane of a program has a cell: MAPS_EACH neighbouring maps of one pixel, read as
one 16-byte word in bfloat16, so that the sums over n neighbouring maps are additions in its registers; of the cells beside its own it needs
n // 2 maps each. (Sums as a matrix product on the tensor cores, 48 maps padded to 64, took more instructions and half a kernel of barriers.)
Everything is computed in float32. Nothing is added from two places, so the same input gives the same bits.

Forward, a lane goes along two output rows: the five input rows under them are normalised once for both, the column that two windows share
once for both. Value and place travel as one integer, whose order is that of the values and among equals that of the places, first to last;
the compared values are rounded to x's type, as lrn() returns them. Backward, a lane has the 2 x 2 pixels that four windows share.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

MAPS_EACH = tl.constexpr(8)
WARPS = 4  # of a program
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": True}  # as compilers for GPUs long did unasked
PROGRAMS = 528  # forward makes at least so many where the pictures allow: four for each multiprocessor of an H100


@triton.jit
def _maps_apart(x):  # type: ignore[no-untyped-def]
    """(rows, cells, 8) -> eight (rows, cells), in registers."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 4, 2)))
    x04, x26 = tl.split(tl.reshape(even, (x.shape[0], x.shape[1], 2, 2)))
    x15, x37 = tl.split(tl.reshape(odd, (x.shape[0], x.shape[1], 2, 2)))
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _maps_together(x):  # type: ignore[no-untyped-def]
    """The way back."""
    even = tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6]))
    odd = tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7]))
    half: tl.constexpr = (x[0].shape[0], x[0].shape[1], 4)
    return tl.reshape(tl.join(tl.reshape(even, half), tl.reshape(odd, half)), (x[0].shape[0], x[0].shape[1], 8))


@triton.jit
def _window_sums(before, own, after, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each of the eight maps the sum over the maps at most REACH away; sums of two are shared between windows."""
    maps = before + own + after
    sums = ()
    for i in tl.static_range(8, 16):
        total = maps[i + REACH]
        for pair in tl.static_range(REACH):
            total += maps[i - REACH + 2 * pair] + maps[i - REACH + 2 * pair + 1]
        sums = sums + (total,)  # noqa: RUF005 - Triton knows no star
    return _maps_together(sums)


@triton.jit
def _fired(x, mask, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    a = tl.load(x, mask, 0).to(tl.float32)
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL) if RELU else a


@triton.jit
def _activity(x, masks, k, alpha, RELU: tl.constexpr, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the cells at x: a, and k + alpha * sum of a^2 over the window. masks: of the cells, of those before and of those after."""
    a = _fired(x, masks[0], RELU)
    before, after = _fired(x - 8, masks[1], RELU), _fired(x + 8, masks[2], RELU)
    sums = _window_sums(_maps_apart(before * before), _maps_apart(a * a), _maps_apart(after * after), REACH)
    return a, sums * alpha + k


@triton.jit
def _cells(ROWS: tl.constexpr, CELLS: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each lane of this program: which of the whole job's pixels is its (in units the caller knows), and its cell's first map in its column."""
    GROUPS: tl.constexpr = (SIZE + 7) // 8
    PIXELS: tl.constexpr = CELLS // GROUPS  # a column of a pixel is one pixel here; what is left over of CELLS idles
    cell = tl.arange(0, CELLS)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    pixel = row * PIXELS + cell // GROUPS
    return pixel // COLUMNS, pixel % COLUMNS, cell % GROUPS * 8, cell < PIXELS * GROUPS


@triton.jit
def _masks(own, map, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of (rows, cells, 8) elements of the lanes' cells, of the cells before and of those after: whether they are there and of the same column."""
    here, before, after = own[:, :, None], (own & (map > 0))[:, :, None], (own & (map + 8 < SIZE))[:, :, None]
    if SIZE % 8 != 0:
        each = map[:, :, None] + tl.arange(0, 8)[None, None, :]
        here, before, after = here & (each < SIZE), before & (each < SIZE + 8), after & (each + 8 < SIZE)
    return here, before, after


@triton.jit
def _key(x, masks, k, alpha, RELU: tl.constexpr, BETA: tl.constexpr, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The normalised value, rounded to x's type, as an integer of the same order with four zeros (16 in bfloat16) at its end for the place.

    0 and -0 become one; NaN is positive after any arithmetic on a GPU, so it is the largest.
    """
    a, scale = _activity(x, masks, k, alpha, RELU, REACH)
    if BETA == 0.75:
        factor = tl.rsqrt(scale * tl.sqrt(scale))
    else:
        factor = tl.exp2(tl.log2(scale) * -BETA)
    NARROW: tl.constexpr = x.dtype.element_ty == tl.bfloat16
    bits = (a * factor + 0.0).to(x.dtype.element_ty).to(tl.int16 if NARROW else tl.int32, bitcast=True)
    if not RELU:
        bits = bits ^ ((bits >> (15 if NARROW else 31)) & (0x7FFF if NARROW else 0x7FFFFFFF))
    return bits.to(tl.int32) << 16 if NARROW else bits.to(tl.int64) << 4


@triton.jit
def _column_keys(x, STEP: tl.constexpr, masks, lower, k, alpha, RELU: tl.constexpr, BETA: tl.constexpr, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest key of the upper and of the lower window in one column of pixels, five of them, STEP elements apart."""
    key0 = _key(x, masks, k, alpha, RELU, BETA, REACH)
    key1 = _key(x + STEP, masks, k, alpha, RELU, BETA, REACH)
    key2 = _key(x + 2 * STEP, masks, k, alpha, RELU, BETA, REACH)
    key3 = _key(x + 3 * STEP, lower, k, alpha, RELU, BETA, REACH)
    key4 = _key(x + 4 * STEP, lower, k, alpha, RELU, BETA, REACH)
    return tl.maximum(tl.maximum(key0 + 8, key1 + 5), key2 + 2), tl.maximum(tl.maximum(key2 + 8, key3 + 5), key4 + 2)


@triton.jit
def _store_best(pooled, places, at, best, mask, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(places + at, (8 - (best & 15)).to(tl.uint8), mask)
    NARROW: tl.constexpr = pooled.dtype.element_ty == tl.bfloat16
    bits = (best >> 16).to(tl.int16) if NARROW else (best >> 4).to(tl.int32)
    if not RELU:
        bits = bits ^ ((bits >> (15 if NARROW else 31)) & (0x7FFF if NARROW else 0x7FFFFFFF))
    tl.store(pooled + at, bits.to(pooled.dtype.element_ty, bitcast=True), mask)


@triton.jit(do_not_specialize=["strips", "tile"])
def _forward(  # type: ignore[no-untyped-def]
    x,
    pooled,
    places,
    strips,
    tile,
    k,
    alpha,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    RELU: tl.constexpr,
    BETA: tl.constexpr,
    REACH: tl.constexpr,
):
    MAPS: tl.constexpr = SIZE * COLUMNS
    TALL: tl.constexpr = (HEIGHT - 1) // 2
    WIDE: tl.constexpr = (WIDTH - 1) // 2
    strip, column, map, own = _cells(1, CELLS, SIZE, COLUMNS)
    own = own & (strip < strips)
    picture, row = strip // ((TALL + 1) // 2), strip % ((TALL + 1) // 2) * 2
    left = tl.program_id(1) * tile
    maps = (column * SIZE + map)[:, :, None] + tl.arange(0, 8)[None, None, :]
    x += picture.to(tl.int64)[:, :, None] * (HEIGHT * WIDTH * MAPS) + (row * 2 * WIDTH + left * 2)[:, :, None] * MAPS + maps
    at = picture.to(tl.int64)[:, :, None] * (TALL * WIDE * MAPS) + (row * WIDE + left)[:, :, None] * MAPS + maps
    masks, lower = _masks(own, map, SIZE), _masks(own & (row + 1 < TALL), map, SIZE)
    count = tl.minimum(tile, WIDE - left)
    first = tl.zeros((1, CELLS, 8), tl.int32 if x.dtype.element_ty == tl.bfloat16 else tl.int64)
    second = first
    for i in range(count + 1):
        upper_key, lower_key = _column_keys(x, WIDTH * MAPS, masks, lower, k, alpha, RELU, BETA, REACH)
        if i > 0:
            _store_best(pooled, places, at, tl.maximum(first, upper_key - 2), masks[0], RELU)
            _store_best(pooled, places, at + WIDE * MAPS, tl.maximum(second, lower_key - 2), lower[0], RELU)
            at += MAPS
        first, second = upper_key, lower_key
        if i < count:
            upper_key, lower_key = _column_keys(x + MAPS, WIDTH * MAPS, masks, lower, k, alpha, RELU, BETA, REACH)
            first, second = tl.maximum(first, upper_key - 1), tl.maximum(second, lower_key - 1)
        x += 2 * MAPS


@triton.jit
def _window(gradient, places, at, mask):  # type: ignore[no-untyped-def]
    return tl.load(gradient + at, mask, 0).to(tl.float32), tl.load(places + at, mask, 255)


@triton.jit
def _plus(db, window, PLACE: tl.constexpr):  # type: ignore[no-untyped-def]
    """db and the gradients of those windows whose maximum was at PLACE."""
    return tl.where(window[1] == PLACE, db + window[0], db)


@triton.jit
def _sums_over_cells(own, map, SIZE: tl.constexpr, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Window sums where the lanes beside this one have the cells beside its own."""
    lane = tl.arange(0, own[0].shape[1])[None, :]
    left = tl.broadcast_to(tl.maximum(lane - 1, 0), own[0].shape)
    right = tl.broadcast_to(tl.minimum(lane + 1, own[0].shape[1] - 1), own[0].shape)
    before, after = (), ()
    for i in tl.static_range(8):
        before = before + (tl.where(map > 0, tl.gather(own[i], left, 1), 0.0) if i >= 8 - REACH else own[i],)  # noqa: RUF005
        after = after + (tl.where(map + 8 < SIZE, tl.gather(own[i], right, 1), 0.0) if i < REACH else own[i],)  # noqa: RUF005
    return _window_sums(before, own, after, REACH)


@triton.jit
def _store_gradient(  # type: ignore[no-untyped-def]
    x, dx, at, own, map, db, k, alpha, SIZE: tl.constexpr, RELU: tl.constexpr, BETA: tl.constexpr, REACH: tl.constexpr
):
    """dx = db scale^-beta - 2 alpha beta a sum(db a scale^-(beta + 1)), the sum over the maps whose windows hold this one."""
    masks = _masks(own, map, SIZE)
    a, scale = _activity(x + at, masks, k, alpha, RELU, REACH)
    if BETA == 0.75:
        root = tl.rsqrt(scale)
        direct, inverse = db * (root * tl.sqrt(root)), root * root
    else:
        log = tl.log2(scale)
        direct, inverse = db * tl.exp2(log * -BETA), tl.exp2(-log)
    through = _sums_over_cells(_maps_apart(direct * a * inverse), map, SIZE, REACH)
    da = direct - 2 * BETA * alpha * a * through
    if RELU:
        da = tl.where(a <= 0, 0.0, da)
    tl.store(dx + at, da.to(dx.dtype.element_ty), masks[0])


@triton.jit(do_not_specialize=["quads"])
def _backward(  # type: ignore[no-untyped-def]
    gradient,
    places,
    x,
    dx,
    quads,
    k,
    alpha,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    CELLS: tl.constexpr,
    RELU: tl.constexpr,
    BETA: tl.constexpr,
    REACH: tl.constexpr,
):
    MAPS: tl.constexpr = SIZE * COLUMNS
    TALL: tl.constexpr = (HEIGHT - 1) // 2
    WIDE: tl.constexpr = (WIDTH - 1) // 2
    ACROSS: tl.constexpr = (WIDTH + 1) // 2
    DOWN: tl.constexpr = (HEIGHT + 1) // 2
    quad, column, map, own = _cells(ROWS, CELLS, SIZE, COLUMNS)
    own = own & (quad < quads)
    picture, i, j = quad // (DOWN * ACROSS), quad % (DOWN * ACROSS) // ACROSS, quad % ACROSS
    maps = (column * SIZE + map)[:, :, None] + tl.arange(0, 8)[None, None, :]
    at = picture.to(tl.int64)[:, :, None] * (TALL * WIDE * MAPS) + (i * WIDE + j)[:, :, None] * MAPS + maps
    up, down, left, right = own & (i > 0), own & (i < TALL), j > 0, j < WIDE
    here = _window(gradient, places, at, _masks(down & right, map, SIZE)[0])
    before = _window(gradient, places, at - MAPS, _masks(down & left, map, SIZE)[0])
    above = _window(gradient, places, at - WIDE * MAPS, _masks(up & right, map, SIZE)[0])
    corner = _window(gradient, places, at - (WIDE + 1) * MAPS, _masks(up & left, map, SIZE)[0])
    at = picture.to(tl.int64)[:, :, None] * (HEIGHT * WIDTH * MAPS) + (i * 2 * WIDTH + j * 2)[:, :, None] * MAPS + maps
    low, far = own & (i * 2 + 1 < HEIGHT), j * 2 + 1 < WIDTH
    none = tl.zeros((ROWS, CELLS, 8), tl.float32)
    db = _plus(_plus(_plus(_plus(none, here, 0), before, 2), above, 6), corner, 8)
    _store_gradient(x, dx, at, own, map, db, k, alpha, SIZE, RELU, BETA, REACH)
    db = _plus(_plus(none, here, 1), above, 7)
    _store_gradient(x, dx, at + MAPS, own & far, map, db, k, alpha, SIZE, RELU, BETA, REACH)
    db = _plus(_plus(none, here, 3), before, 5)
    _store_gradient(x, dx, at + WIDTH * MAPS, low, map, db, k, alpha, SIZE, RELU, BETA, REACH)
    _store_gradient(x, dx, at + (WIDTH + 1) * MAPS, low & far, map, _plus(none, here, 4), k, alpha, SIZE, RELU, BETA, REACH)


def constants(x: torch.Tensor, relu: bool, columns: int, n: int, beta: float, lanes: int) -> dict[str, Any]:
    """What both kernels are compiled for: the shape of x, the layer's settings; lanes: least power of two of lanes beside each other."""
    maps, height, width = x.shape[1:]
    assert x.is_contiguous(memory_format=torch.channels_last), "x must be channels_last"
    assert height >= 3, f"no 3 x 3 window fits pictures of {height} x {width}"
    assert width >= 3, f"no 3 x 3 window fits pictures of {height} x {width}"
    assert n // 2 <= MAPS_EACH.value, f"windows of {n} maps: the kernels know at most {2 * MAPS_EACH.value + 1}"
    size = maps // columns
    cells = max(lanes, triton.next_power_of_2(-(-size // MAPS_EACH.value)))
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "SIZE": size,
        "COLUMNS": columns,
        "CELLS": cells,
        "RELU": relu,
        "BETA": float(beta),
        "REACH": n // 2,
    }


def _programs(pixels: int, fixed: dict[str, Any], rows: int) -> int:
    """How many it takes for so many pixels' columns."""
    groups = -(-fixed["SIZE"] // MAPS_EACH.value)
    return -(-pixels * fixed["COLUMNS"] // (rows * (fixed["CELLS"] // groups)))


def forward(x: torch.Tensor, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, maps, h, w) float32 or bfloat16, channels_last -> pooled, of the same type, and places, uint8: (batch, maps, oh, ow), channels_last.

    places: which of its window's nine, in reading order, is the first maximum. NaN counts as the largest (of several the first is taken,
    where PyTorch takes the last).
    """
    fixed = constants(x, relu, columns, n, beta, 32 * WARPS)
    batch, maps, height, width = x.shape
    tall, wide = (height - 1) // 2, (width - 1) // 2
    pooled, places = (
        torch.empty((batch, maps, tall, wide), dtype=dtype, device=x.device, memory_format=torch.channels_last) for dtype in (x.dtype, torch.uint8)
    )
    strips = batch * ((tall + 1) // 2)
    programs = _programs(strips, fixed, 1)
    tile = -(-wide // min(wide, -(-PROGRAMS // max(programs, 1))))  # output columns of one program
    if batch:
        with torch.cuda.device_of(x):
            _forward[(programs, -(-wide // tile))](x, pooled, places, strips, tile, float(k), float(alpha), **fixed, **OPTIONS)
    return pooled, places


def backward(
    gradient: torch.Tensor,
    places: torch.Tensor,
    x: torch.Tensor,
    relu: bool,
    columns: int,
    k: float,
    n: int,
    alpha: float,
    beta: float,
) -> torch.Tensor:
    """The gradient of x from that of pooled, float32 or bfloat16; all channels_last; x and places as forward() had and gave them."""
    fixed = constants(x, relu, columns, n, beta, 32)
    assert gradient.shape == places.shape, f"gradient {tuple(gradient.shape)}, places {tuple(places.shape)}"
    for tensor in (gradient, places):
        assert tensor.is_contiguous(memory_format=torch.channels_last), "gradient and places must be channels_last"
    dx = torch.empty_like(x)
    quads, rows = len(x) * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2), max(1, 32 * WARPS // fixed["CELLS"])
    if len(x):
        with torch.cuda.device_of(x):
            _backward[(_programs(quads, fixed, rows),)](gradient, places, x, dx, quads, float(k), float(alpha), **fixed, ROWS=rows, **OPTIONS)
    return dx
