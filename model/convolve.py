"""Other forms of the net's convolutions, the same to rounding: two columns at once or one by one, the first layer on blocks of pixels.

Which is quickest hangs on the device and its libraries. On two CPU cores the plain forms are (docs/speed.md); on a GPU choose() tries.
"""

from __future__ import annotations

import time
from typing import Literal, get_args

import torch
import torch.nn.functional as F

Form = Literal["grouped", "halves", "block-diagonal"]  # of a convolution of two columns
BLOCK = 4  # conv1's stride
TRIES = 10


def two_columns(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int | None, form: Form = "grouped") -> torch.Tensor:
    """A layer whose second half of outputs reads the second half of x only: x (n, 2 c, ...), weight (2 o, c, ...).

    padding: of a convolution of stride 1; None for a linear layer, which knows no groups.
    """
    if form == "grouped" and padding is not None:
        return F.conv2d(x, weight, bias, padding=padding, groups=2)
    if form == "block-diagonal" and padding is not None:
        first, second = weight.chunk(2)
        whole = torch.cat((F.pad(first, (0, 0, 0, 0, 0, first.shape[1])), F.pad(second, (0, 0, 0, 0, second.shape[1], 0))))
        return F.conv2d(x, whole, bias, padding=padding)
    halves = zip(x.chunk(2, 1), weight.chunk(2), (None, None) if bias is None else bias.chunk(2), strict=True)
    return torch.cat([F.linear(*half) if padding is None else F.conv2d(*half, padding=padding) for half in halves], 1)


def blocks_side(side: int) -> int:
    """Blocks along a padded picture of so many pixels: those that conv1's windows touch."""
    return (side - 11) // BLOCK + 3


def to_blocks(images: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """(n, 3, s, s) pictures -> (n, 48, b, b): each 4x4 block of the padded picture as the channels of one pixel; padding: zeros before, after.

    So conv1, 11x11 with stride 4 on three channels, is 3x3 with stride 1 on 48: what tensor cores, and libraries, are made for.
    """
    before, after = padding
    side = blocks_side(images.shape[-1] + before + after)
    last = side * BLOCK - images.shape[-1] - before  # to the end of the last block; below 0 where pixels lie beyond all windows
    padded = F.pad(images, (before, last, before, last))
    blocks = padded.unflatten(3, (side, BLOCK)).unflatten(2, (side, BLOCK))  # n, 3, row, y, column, x
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def blocks_weight(weight: torch.Tensor) -> torch.Tensor:
    """conv1's (out, 3, 11, 11) -> (out, 48, 3, 3): the twelfth row and column are zeros."""
    return F.pad(weight, (0, 1, 0, 1)).unflatten(3, (3, BLOCK)).unflatten(2, (3, BLOCK)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def choose(shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]], like: torch.Tensor) -> dict[str, Form]:
    """The quickest form of each two-column convolution, tried forward and backward; {layer: (shape of x, of weight, padding)}.

    like: says device and type. The tries take about a tenth of a second on a GPU.
    """
    return {layer: min(get_args(Form), key=lambda form: _seconds(form, *shape, like)) for layer, shape in shapes.items()}


def _seconds(form: Form, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], padding: int, like: torch.Tensor) -> float:
    x, weight = (like.new_ones(shape).contiguous(memory_format=torch.channels_last).requires_grad_() for shape in (x_shape, weight_shape))
    best = float("inf")
    for _ in range(TRIES):  # the first have the library's own tries in them
        _wait(like.device)
        began = time.perf_counter()
        two_columns(x, weight, None, padding, form).sum().backward()
        _wait(like.device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
