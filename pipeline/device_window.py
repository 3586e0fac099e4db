"""Training pictures from a cache in a device's memory: gather, crop, mirror, subtract the mean image, shift the colour, at once.

On a GPU one Triton kernel (window_kernel.py); elsewhere the plain form in torch operators. Both give what augment.plain_batch
gives, bit for bit, and neither waits for the device.
"""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.augment import MeanWindow, centre_offset
from pipeline.errors import InputError

Layout = Literal["rgb", "yuv420"]
Out = Literal["uint8", "float32"]


def cut_windows(
    store: torch.Tensor,
    slots: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    flip: torch.Tensor,
    shift: torch.Tensor,
    mean_image: torch.Tensor,
    crop: int,
    *,
    layout: Layout,
    mean_window: MeanWindow,
    divisor: float,
    out: Out,
) -> torch.Tensor:
    """Windows of stored pictures, all on one device.

    store: (slots, bytes of a picture) uint8, RGB or the planes of planes.py. slots, y, x: (n,) int64, the picture and the
    first row and column of its window, not checked: looking at them would wait for the device. flip: (n,) bool. shift: (n, 3)
    and mean_image: (size, size, 3), float32 grey levels. mean_window, divisor: see augment.Augmentation.
    Returns (n, crop, crop, 3) uint8, or (n, 3, crop, crop) float32 = (window - mean + shift) / divisor, channels last in memory.
    Raises InputError on a GPU without Triton.
    """
    _check(store, (slots, y, x, flip, shift, mean_image), crop, layout)
    form = cut_windows_fused if store.is_cuda else cut_windows_plain
    return form(store, slots, y, x, flip, shift, mean_image, crop, layout=layout, mean_window=mean_window, divisor=divisor, out=out)


def _check(store: torch.Tensor, others: tuple[torch.Tensor, ...], crop: int, layout: Layout) -> None:
    """What the kernel takes on trust, but for the values."""
    slots, y, x, flip, shift, mean_image = others
    count, size = len(slots), len(mean_image)
    assert 0 < crop <= size, f"windows of {crop} pixels in pictures of {size}"
    pixels = size * size * 3 if layout == "rgb" else size * size * 3 // 2
    for tensor, shape, kind in (
        *((number, (count,), torch.int64) for number in (slots, y, x)),
        (flip, (count,), torch.bool),
        (shift, (count, 3), torch.float32),
        (mean_image, (size, size, 3), torch.float32),
        (store, (len(store), pixels), torch.uint8),
    ):
        assert tuple(tensor.shape) == shape, f"{tuple(tensor.shape)} given, {shape} wanted"
        assert tensor.dtype == kind, f"{tensor.dtype} given, {kind} wanted"
        assert tensor.is_contiguous(), "contiguous tensors wanted"
        assert tensor.device == store.device, f"the store is on {store.device}, another tensor on {tensor.device}"


def cut_windows_fused(
    store: torch.Tensor,
    slots: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    flip: torch.Tensor,
    shift: torch.Tensor,
    mean_image: torch.Tensor,
    crop: int,
    *,
    layout: Layout,
    mean_window: MeanWindow,
    divisor: float,
    out: Out,
) -> torch.Tensor:
    """The Triton kernel."""
    try:
        from pipeline.window_kernel import launch
    except ImportError as error:
        raise InputError(f"a cache of decoded pictures on a GPU needs Triton ({error}): pip install triton, or cache: host") from None
    kind = torch.float32 if out == "float32" else torch.uint8
    windows = torch.empty((len(slots), crop, crop, 3), dtype=kind, device=store.device)
    if len(slots):
        yuv, centre = layout == "yuv420", mean_window != "same"
        launch(windows, store, slots, y, x, flip, shift, mean_image, yuv=yuv, centre=centre, divisor=divisor)
    return windows.permute(0, 3, 1, 2) if out == "float32" else windows


def cut_windows_plain(
    store: torch.Tensor,
    slots: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    flip: torch.Tensor,
    shift: torch.Tensor,
    mean_image: torch.Tensor,
    crop: int,
    *,
    layout: Layout,
    mean_window: MeanWindow,
    divisor: float,
    out: Out,
) -> torch.Tensor:
    """The plain form, on any device."""
    count, size = len(slots), len(mean_image)
    pictures = store[slots].view(count, size, size, 3) if layout == "rgb" else rgb_of_planes(store[slots], size)
    steps = torch.arange(crop, device=store.device)
    rows = (y[:, None] + steps)[:, :, None]
    columns = (x[:, None] + torch.where(flip[:, None], crop - 1 - steps, steps))[:, None, :]
    windows = pictures[torch.arange(count, device=store.device)[:, None, None], rows, columns]
    if out == "uint8":
        return windows
    start = centre_offset(size, crop)
    mean = mean_image[start : start + crop, start : start + crop] if mean_window != "same" else mean_image[rows, columns]
    finished = windows.to(torch.float32).sub_(mean).add_(shift[:, None, None, :])
    if divisor != 1.0:  # by a tensor: dividing by a number, torch on a GPU multiplies by its inverse, and rounds otherwise
        finished.div_(torch.full((1,), divisor, device=store.device))
    return finished.permute(0, 3, 1, 2)


def rgb_of_planes(planes: torch.Tensor, size: int) -> torch.Tensor:
    """(n, size * size * 3 // 2) uint8 -> (n, size, size, 3) uint8; planes.rgb_of_planes on any device."""
    luma, chroma = size * size, size * size // 4
    y = planes[:, :luma].view(-1, size, size).to(torch.int32)
    blue, red = (_upsample(plane.view(-1, size // 2, size // 2).to(torch.int32)) - 128 for plane in planes[:, luma:].split(chroma, dim=1))
    r = y + (91881 * red + 32768 >> 16)
    g = y + (-22554 * blue - 46802 * red + 32768 >> 16)
    b = y + (116130 * blue + 32768 >> 16)
    return torch.stack((r, g, b), dim=-1).clamp_(0, 255).to(torch.uint8)


def _upsample(plane: torch.Tensor) -> torch.Tensor:
    """(n, h, w) -> (n, 2 h, 2 w) int32; see planes._upsample."""
    rows = torch.stack((3 * plane + _shifted(plane, 1, -1), 3 * plane + _shifted(plane, 1, 1)), dim=2).flatten(1, 2)
    even = 3 * rows + _shifted(rows, 2, -1) + 8 >> 4
    odd = 3 * rows + _shifted(rows, 2, 1) + 7 >> 4
    return torch.stack((even, odd), dim=3).flatten(2)


def _shifted(plane: torch.Tensor, dim: int, step: int) -> torch.Tensor:
    """Each element's neighbour in a dimension, before it (-1) or behind it (1); at the edge the element itself."""
    places = torch.arange(plane.shape[dim], device=plane.device) + step
    return plane.index_select(dim, places.clamp_(0, plane.shape[dim] - 1))
