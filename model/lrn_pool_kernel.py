"""The Triton kernels of lrn_pool.relu_lrn_pool: forward and backward, each one pass over memory, computed in float32.

Apart from lrn_pool, since not every machine has Triton. A lane of a program has a cell: eight neighbouring maps of one pixel, in bfloat16
one 16-byte word, so that the sums over n neighbouring maps are additions in its registers; of the cells beside its own it needs n // 2
maps each. (The sums as a matrix product on the tensor cores, 48 maps padded to 64, cost more instructions and a barrier for each.)
Nothing is added from two places, so the same input gives the same bits.

Forward, a lane goes along two output rows: the five input rows under them are normalised once for both, the column that two windows share
once for both. Value and place travel as one integer, whose order is that of the values and among equals that of the places, first to last;
the compared values are rounded to x's type, as lrn() returns them. Backward, a lane has the 2 x 2 pixels that four windows share.

What a kernel is compiled for: SHAPE, (height, width, maps of a column, columns) of x; POOLED, the same of the pooled maps; LAYER, (whether
ReLU comes first, beta, n // 2).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

WARPS = 4  # of a program
WIDEST = 17  # maps of a window: 8 on each side, which a lane or its neighbour has
PROGRAMS = 880  # forward makes at least so many where the pictures allow: five in six of those that an H100 runs at once
OPTIONS: dict[str, Any] = {"num_warps": WARPS, "enable_fp_fusion": True}


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
    even = tl.reshape(tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6])), (x[0].shape[0], x[0].shape[1], 4))
    odd = tl.reshape(tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7])), (x[0].shape[0], x[0].shape[1], 4))
    return tl.reshape(tl.join(even, odd), (x[0].shape[0], x[0].shape[1], 8))


@triton.jit
def _window_sums(before, own, after, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each of the eight maps the sum over the maps at most REACH away; sums of two are shared between windows."""
    maps = before + own + after
    sums = ()
    for i in tl.static_range(8, 16):
        total = maps[i + REACH]
        for pair in tl.static_range(REACH):
            total += maps[i - REACH + 2 * pair] + maps[i - REACH + 2 * pair + 1]
        sums = sums + (total,)  # type: ignore[assignment]  # noqa: RUF005
    return _maps_together(sums)


@triton.jit
def _cells(ROWS: tl.constexpr, CELLS: tl.constexpr, items, SHAPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of this program's (ROWS, CELLS) lanes: which of the job's items, which column, which first map in it are a lane's; and whether any.

    A row holds as many columns of items as fit wholly, so that a cell's neighbours in its column are in the lanes beside."""
    EACH: tl.constexpr = (SHAPE[2] + 7) // 8
    FIT: tl.constexpr = CELLS // EACH
    cell = tl.arange(0, CELLS)[None, :]
    number = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]) * FIT + cell // EACH
    return number // SHAPE[3], number % SHAPE[3], cell % EACH * 8, (cell < FIT * EACH) & (number < items * SHAPE[3])


@triton.jit
def _masks(own, start, SHAPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the lanes' cells, of those before and of those after: which of the (ROWS, CELLS, 8) maps there are in the same column."""
    SIZE: tl.constexpr = SHAPE[2]
    here, before, after = own[:, :, None], (own & (start > 0))[:, :, None], (own & (start + 8 < SIZE))[:, :, None]
    if SIZE % 8 != 0:
        each = start[:, :, None] + tl.arange(0, 8)[None, None, :]
        here, before, after = here & (each < SIZE), before & (each < SIZE + 8), after & (each + 8 < SIZE)
    return here, before, after


@triton.jit
def _offset(picture, row, column, maps, SHAPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """In elements, of pixels of channels_last pictures: a batch may have more than 2^31, a picture not."""
    MAPS: tl.constexpr = SHAPE[2] * SHAPE[3]
    return picture.to(tl.int64)[:, :, None] * (SHAPE[0] * SHAPE[1] * MAPS) + (row * SHAPE[1] + column)[:, :, None] * MAPS + maps


@triton.jit
def _fired(x, mask, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    a = tl.load(x, mask, 0).to(tl.float32)
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL) if RELU else a


@triton.jit
def _activity(x, masks, k, alpha, LAYER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the cells at x: a, and k + alpha * sum of a^2 over the window."""
    a = _fired(x, masks[0], LAYER[0])
    before, after = _fired(x - 8, masks[1], LAYER[0]), _fired(x + 8, masks[2], LAYER[0])
    sums = _window_sums(_maps_apart(before * before), _maps_apart(a * a), _maps_apart(after * after), LAYER[2])
    return a, sums * alpha + k


@triton.jit
def _ordered(bits, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    """A float's bits as an integer of the same order, and the way back; without negative values they are that."""
    LAST: tl.constexpr = bits.dtype.primitive_bitwidth - 1
    return bits if RELU else bits ^ ((bits >> LAST) & ((1 << LAST) - 1))


@triton.jit
def _key(x, masks, k, alpha, LAYER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The normalised values, rounded to x's type, as integers of the same order with at least four zeros at their end, for the place.

    -0 becomes 0. NaN is the largest: a GPU's arithmetic gives but one, which is positive.
    """
    a, scale = _activity(x, masks, k, alpha, LAYER)
    if LAYER[1] == 0.75:
        b = a * tl.rsqrt(scale * tl.sqrt(scale)) + 0.0
    else:
        b = a * tl.exp2(tl.log2(scale) * -LAYER[1]) + 0.0
    if x.dtype.element_ty == tl.bfloat16:
        key = _ordered(b.to(tl.bfloat16).to(tl.int16, bitcast=True), LAYER[0]).to(tl.int32) << 16
    else:
        key = _ordered(b.to(tl.int32, bitcast=True), LAYER[0]).to(tl.int64) << 4
    return key


@triton.jit
def _column_keys(x, STEP: tl.constexpr, masks, lower, k, alpha, LAYER: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest keys of the upper and of the lower window in a column of five pixels, STEP elements apart; 8 - place is in their last bits."""
    key0 = _key(x, masks, k, alpha, LAYER)
    key1 = _key(x + STEP, masks, k, alpha, LAYER)
    key2 = _key(x + 2 * STEP, masks, k, alpha, LAYER)
    key3 = _key(x + 3 * STEP, lower, k, alpha, LAYER)
    key4 = _key(x + 4 * STEP, lower, k, alpha, LAYER)
    return tl.maximum(tl.maximum(key0 + 8, key1 + 5), key2 + 2), tl.maximum(tl.maximum(key2 + 8, key3 + 5), key4 + 2)


@triton.jit
def _store_best(pooled, places, at, key, mask, RELU: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(places + at, (8 - (key & 15)).to(tl.uint8), mask)
    if pooled.dtype.element_ty == tl.bfloat16:
        bits = (key >> 16).to(tl.int16)
    else:
        bits = (key >> 4).to(tl.int32)
    tl.store(pooled + at, _ordered(bits, RELU).to(pooled.dtype.element_ty, bitcast=True), mask)


@triton.jit(do_not_specialize=["strips", "tile"])
def _forward(x, pooled, places, strips, tile, k, alpha, SHAPE: tl.constexpr, POOLED: tl.constexpr, LAYER: tl.constexpr, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """strips: pairs of output rows in the batch; tile: output columns of one program."""
    MAPS: tl.constexpr = SHAPE[2] * SHAPE[3]
    strip, column, start, own = _cells(1, CELLS, strips, SHAPE)
    picture, row = strip // ((POOLED[0] + 1) // 2), strip % ((POOLED[0] + 1) // 2) * 2
    left = tl.program_id(1) * tile
    count = tl.minimum(tile, POOLED[1] - left)
    maps = (column * SHAPE[2] + start)[:, :, None] + tl.arange(0, 8)[None, None, :]
    x += _offset(picture, row * 2, left * 2, maps, SHAPE)
    at = _offset(picture, row, left, maps, POOLED)
    masks, lower = _masks(own, start, SHAPE), _masks(own & (row + 1 < POOLED[0]), start, SHAPE)
    upper_best = tl.zeros((1, CELLS, 8), tl.int32 if x.dtype.element_ty == tl.bfloat16 else tl.int64)
    lower_best = upper_best
    for i in range(count + 1):  # the columns 2 i and 2 i + 1: the first ends the windows before it and begins the next
        upper_key, lower_key = _column_keys(x, SHAPE[1] * MAPS, masks, lower, k, alpha, LAYER)
        if i > 0:
            _store_best(pooled, places, at, tl.maximum(upper_best, upper_key - 2), masks[0], LAYER[0])
            _store_best(pooled, places, at + POOLED[1] * MAPS, tl.maximum(lower_best, lower_key - 2), lower[0], LAYER[0])
            at += MAPS
        upper_best, lower_best = upper_key, lower_key
        if i < count:
            upper_key, lower_key = _column_keys(x + MAPS, SHAPE[1] * MAPS, masks, lower, k, alpha, LAYER)
            upper_best, lower_best = tl.maximum(upper_best, upper_key - 1), tl.maximum(lower_best, lower_key - 1)
        x += 2 * MAPS


@triton.jit
def _window(gradient, places, at, mask):  # type: ignore[no-untyped-def]
    return tl.load(gradient + at, mask, 0).to(tl.float32), tl.load(places + at, mask, 255)


@triton.jit
def _plus(db, window, PLACE: tl.constexpr):  # type: ignore[no-untyped-def]
    """db and the gradients of those windows whose maximum was at PLACE."""
    return tl.where(window[1] == PLACE, db + window[0], db)


@triton.jit
def _sums_over_lanes(own, start, SIZE: tl.constexpr, REACH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Window sums where the cells before and after are in the lanes beside."""
    lane = tl.arange(0, own[0].shape[1])[None, :]
    left = tl.broadcast_to(tl.maximum(lane - 1, 0), own[0].shape)
    right = tl.broadcast_to(tl.minimum(lane + 1, own[0].shape[1] - 1), own[0].shape)
    before, after = (), ()
    for i in tl.static_range(8):  # what is out of reach only fills a place
        before = before + (tl.where(start > 0, tl.gather(own[i], left, 1), 0.0) if i >= 8 - REACH else own[i],)  # type: ignore[assignment]  # noqa: RUF005
        after = after + (tl.where(start + 8 < SIZE, tl.gather(own[i], right, 1), 0.0) if i < REACH else own[i],)  # type: ignore[assignment]  # noqa: RUF005
    return _window_sums(before, own, after, REACH)


@triton.jit
def _store_gradient(x, dx, at, own, start, db, k, alpha, SHAPE: tl.constexpr, LAYER: tl.constexpr):  # type: ignore[no-untyped-def]
    """dx = db scale^-beta - 2 alpha beta a sum(db a scale^-(beta + 1)), the sum over the maps in whose windows this one is."""
    BETA: tl.constexpr = LAYER[1]
    masks = _masks(own, start, SHAPE)
    a, scale = _activity(x + at, masks, k, alpha, LAYER)
    if BETA == 0.75:
        root = tl.rsqrt(scale)
        direct, inverse = db * (root * tl.sqrt(root)), root * root
    else:
        log = tl.log2(scale)
        direct, inverse = db * tl.exp2(log * -BETA), tl.exp2(-log)
    da = direct - 2 * BETA * alpha * a * _sums_over_lanes(_maps_apart(direct * a * inverse), start, SHAPE[2], LAYER[2])
    if LAYER[0]:
        da = tl.where(a <= 0, 0.0, da)
    tl.store(dx + at, da.to(dx.dtype.element_ty), masks[0])


@triton.jit(do_not_specialize=["quads"])
def _backward(  # type: ignore[no-untyped-def]
    gradient, places, x, dx, quads, k, alpha, SHAPE: tl.constexpr, POOLED: tl.constexpr, LAYER: tl.constexpr, ROWS: tl.constexpr, CELLS: tl.constexpr
):
    """quads: 2 x 2 pixels in the batch, those cut off by the edge counted whole."""
    MAPS: tl.constexpr = SHAPE[2] * SHAPE[3]
    DOWN: tl.constexpr = (SHAPE[0] + 1) // 2
    ACROSS: tl.constexpr = (SHAPE[1] + 1) // 2
    quad, column, start, own = _cells(ROWS, CELLS, quads, SHAPE)
    picture, i, j = quad // (DOWN * ACROSS), quad % (DOWN * ACROSS) // ACROSS, quad % ACROSS
    maps = (column * SHAPE[2] + start)[:, :, None] + tl.arange(0, 8)[None, None, :]
    at = _offset(picture, i, j, maps, POOLED)
    up, down, left, right = own & (i > 0), own & (i < POOLED[0]), j > 0, j < POOLED[1]
    here = _window(gradient, places, at, _masks(down & right, start, SHAPE)[0])
    before = _window(gradient, places, at - MAPS, _masks(down & left, start, SHAPE)[0])
    above = _window(gradient, places, at - POOLED[1] * MAPS, _masks(up & right, start, SHAPE)[0])
    corner = _window(gradient, places, at - (POOLED[1] + 1) * MAPS, _masks(up & left, start, SHAPE)[0])
    at = _offset(picture, i * 2, j * 2, maps, SHAPE)
    low, far = own & (i * 2 + 1 < SHAPE[0]), j * 2 + 1 < SHAPE[1]
    none = tl.zeros((ROWS, CELLS, 8), tl.float32)
    db = _plus(_plus(_plus(_plus(none, here, 0), before, 2), above, 6), corner, 8)
    _store_gradient(x, dx, at, own, start, db, k, alpha, SHAPE, LAYER)
    _store_gradient(x, dx, at + MAPS, own & far, start, _plus(_plus(none, here, 1), above, 7), k, alpha, SHAPE, LAYER)
    _store_gradient(x, dx, at + SHAPE[1] * MAPS, low, start, _plus(_plus(none, here, 3), before, 5), k, alpha, SHAPE, LAYER)
    _store_gradient(x, dx, at + (SHAPE[1] + 1) * MAPS, low & far, start, _plus(none, here, 4), k, alpha, SHAPE, LAYER)


def fixed(x: torch.Tensor, relu: bool, columns: int, n: int, beta: float, lanes: int) -> dict[str, Any]:
    """What both kernels are compiled for; lanes: those of a row, which a column of many maps makes more."""
    maps, height, width = x.shape[1:]
    assert x.is_contiguous(memory_format=torch.channels_last), "x must be channels_last"
    assert min(height, width) >= 3, f"no 3 x 3 window fits pictures of {height} x {width}"
    assert n <= WIDEST, f"windows of {n} maps: the kernels know at most {WIDEST}"
    held = (maps // columns, columns)
    shape, pooled = (height, width, *held), ((height - 1) // 2, (width - 1) // 2, *held)
    cells = max(lanes, triton.next_power_of_2(-(-held[0] // 8)))
    return {"SHAPE": shape, "POOLED": pooled, "LAYER": (relu, float(beta), n // 2), "CELLS": cells}


def _programs(items: int, rows: int, constants: dict[str, Any]) -> int:
    """How many it takes for so many items' columns."""
    size, columns = constants["SHAPE"][2:]
    return -(-items * columns // (rows * (constants["CELLS"] // -(-size // 8))))


def forward(x: torch.Tensor, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, maps, h, w) float32 or bfloat16, channels_last -> pooled, of the same type, and places, uint8: (batch, maps, oh, ow), channels_last.

    places: which of its window's nine, in reading order, is the first maximum. NaN is the largest (of several the first, PyTorch's last).
    """
    constants = fixed(x, relu, columns, n, beta, 32 * WARPS)
    (tall, wide), batch = constants["POOLED"][:2], len(x)
    pooled = torch.empty((*x.shape[:2], tall, wide), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    places = torch.empty_like(pooled, dtype=torch.uint8)
    if batch:
        strips = batch * ((tall + 1) // 2)
        programs = _programs(strips, 1, constants)
        tile = -(-wide // min(wide, -(-PROGRAMS // programs)))
        with torch.cuda.device_of(x):
            _forward[(programs, -(-wide // tile))](x, pooled, places, strips, tile, float(k), float(alpha), **constants, **OPTIONS)
    return pooled, places


def backward(
    gradient: torch.Tensor, places: torch.Tensor, x: torch.Tensor, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float
) -> torch.Tensor:
    """The gradient of x, of its type, from that of pooled, float32 or bfloat16; all channels_last; x and places as forward() had and gave them."""
    constants = fixed(x, relu, columns, n, beta, 32)
    for name, tensor in (("gradient", gradient), ("places", places)):
        fits = tensor.shape == (*x.shape[:2], *constants["POOLED"][:2])
        assert fits and tensor.is_contiguous(memory_format=torch.channels_last), f"{name} of {tuple(tensor.shape)} must be channels_last"  # noqa: PT018
    dx = torch.empty_like(x)
    if len(x):
        quads, rows = len(x) * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2), max(1, 32 * WARPS // constants["CELLS"])
        grid = (_programs(quads, rows, constants),)
        with torch.cuda.device_of(x):
            _backward[grid](gradient, places, x, dx, quads, float(k), float(alpha), **constants, ROWS=rows, **OPTIONS)
    return dx
