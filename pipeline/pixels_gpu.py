"""Decoded pictures -> windows -> finished batches on a GPU. The methods are those of pixels.CpuPixels, and give the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.augment import Augmentation, central_mean, ten_views
from pipeline.cache import Cache
from pipeline.device import upload
from pipeline.device_window import cut_windows
from pipeline.draws import Draws
from pipeline.feed import Part
from pipeline.pixels import Decoded, Out


class GpuPixels:
    """Without a cache DALI has cut the windows, or finished them; from a cache one kernel does all."""

    def __init__(self, augmentation: Augmentation, mean_image: np.ndarray, decoded: Decoded, device: torch.device) -> None:
        self.augmentation, self._decoded, self._device = augmentation, decoded, device
        self._mean = torch.from_numpy(mean_image).to(device)
        self._centre = torch.from_numpy(np.ascontiguousarray(central_mean(mean_image, augmentation.crop))).to(device)

    def windows(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        if self._decoded == "windows" and decoded is not None:
            return decoded.flatten(1)
        return self._cut(part, decoded, cache, np.zeros(len(part.ids), bool), "uint8").flatten(1)

    def batch(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None, out: Out) -> torch.Tensor:
        if self._decoded == "windows" and decoded is not None:
            return decoded if out == "float32" else self.finish(decoded.flatten(1), part.draws, part.shift, out)
        images = self._cut(part, decoded, cache, part.draws.flip, out)
        return images if out == "float32" else images.permute(0, 3, 1, 2)

    def _cut(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None, flip: np.ndarray, out: Out) -> torch.Tensor:
        """Rows from the cache and rows without a slot, each by one kernel."""
        kept, loose = np.flatnonzero(part.slots >= 0), np.flatnonzero(part.slots < 0)
        pieces = []
        store = cache.store if cache is not None else None
        for rows, pictures, slots in ((kept, store, part.slots[kept]), (loose, decoded, np.searchsorted(part.missing, loose))):
            if not len(rows) or pictures is None:
                continue
            assert isinstance(pictures, torch.Tensor), "pictures of a GPU are in its own memory"
            numbers = (slots, part.draws.y[rows], part.draws.x[rows], flip[rows], part.shift[rows])
            where = tuple(upload(array, self._device) for array in numbers)
            pieces.append(self._kernel(pictures.flatten(1), where, out))
        if len(pieces) == 1:
            return pieces[0]
        back = np.empty(len(part.ids), np.int64)
        back[np.concatenate((kept, loose))] = np.arange(len(back))
        return torch.cat(pieces)[upload(back, self._device)]

    def _kernel(self, store: torch.Tensor, where: Any, out: Out) -> torch.Tensor:
        """where: slots, y, x, flip and shift of the rows, see device_window.cut_windows."""
        a, (slots, y, x, flip, shift) = self.augmentation, where
        settings: Any = {"layout": self._decoded, "mean_window": a.mean_window, "divisor": a.divisor, "out": out}
        return cut_windows(store, slots, y, x, flip, shift, self._mean, a.crop, **settings)

    def finish(self, windows: torch.Tensor, draws: Draws, shift: np.ndarray, out: Out) -> torch.Tensor:
        a, count = self.augmentation, len(windows)
        windows = windows[:, : a.crop * a.crop * 3].unflatten(1, (a.crop, a.crop, 3))
        flip = upload(draws.flip, self._device)[:, None]
        across = torch.arange(a.crop, device=self._device)
        columns = torch.where(flip, a.crop - 1 - across, across)
        picture = torch.arange(count, device=self._device)[:, None, None]
        mirrored = windows[picture, across[None, :, None], columns[:, None, :]]
        if out == "uint8":
            return mirrored.permute(0, 3, 1, 2)
        if a.mean_window != "same":
            mean = self._centre
        else:
            y, x = upload(draws.y, self._device), upload(draws.x, self._device)
            mean = self._mean[(y[:, None] + across)[:, :, None], (x[:, None] + columns)[:, None, :]]
        finished = mirrored.to(torch.float32).sub_(mean).add_(upload(shift, self._device)[:, None, None, :])
        if a.divisor != 1.0:
            finished.div_(finished.new_tensor([a.divisor]))  # by a number, CUDA would multiply by a rounded 1 / divisor
        return finished.permute(0, 3, 1, 2)

    def ten_views(self, pictures: torch.Tensor) -> torch.Tensor:
        count, size, crop = len(pictures), len(self._mean), self.augmentation.crop
        pictures = pictures[:, : size * size * 3].unflatten(1, (size, size, 3))
        views, zero = [], np.zeros((count, 3), np.float32)
        for y, x, flip in ten_views(size, crop):
            draws = Draws(np.full(count, x), np.full(count, y), np.full(count, flip), np.zeros((count, 3)))
            views.append(self.finish(pictures[:, y : y + crop, x : x + crop].flatten(1), draws, zero, "float32"))
        return torch.stack(views, dim=1)
