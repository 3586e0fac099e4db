"""Decoded pictures -> windows -> finished batches on the CPU: Numba kernels over the rows of a batch, on threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from pipeline.augment import Augmentation, centre_offset, ten_views
from pipeline.buffers import Buffers
from pipeline.cache import Cache
from pipeline.draws import Draws
from pipeline.feed import Part
from pipeline.planes import cut_planes
from pipeline.windows import cut_windows, finish_windows, mirror_in_place

Out = Literal["float32", "uint8"]
Decoded = Literal["windows", "rgb", "yuv420"]  # cut already, or whole pictures, or whole pictures as YUV 4:2:0 planes


@dataclass(frozen=True)
class Source:
    """Where the pixels of some rows of a batch are: row rows[k] from (top[k], left[k]) on in the picture slots[k] of pictures,
    (slots, side * side * 3 or more) uint8 RGB."""

    rows: np.ndarray
    pictures: np.ndarray
    side: int
    slots: np.ndarray
    top: np.ndarray
    left: np.ndarray


def all_of(windows: np.ndarray, crop: int) -> Source:
    """Rows that are cut already, (n, crop * crop * 3 or more)."""
    rows, zero = np.arange(len(windows)), np.zeros(len(windows), np.int64)
    return Source(rows, windows, crop, rows, zero, zero)


class CpuPixels:
    """Kernels over the rows of a batch, shared among threads."""

    def __init__(self, augmentation: Augmentation, mean_image: np.ndarray, decoded: Decoded, threads: int) -> None:
        """decoded: what comes from the decoder, and lies in the cache."""
        self.augmentation, self._mean, self._decoded = augmentation, mean_image, decoded
        self._means = np.ascontiguousarray(np.stack((mean_image, mean_image[:, ::-1])))
        self._threads, self._count = ThreadPoolExecutor(threads, "pixels"), threads
        self._buffers = Buffers()

    def _pictures(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows of the part, and the array and the slots in it where their pictures are: in the cache, and in what was just decoded."""
        fresh = np.empty((0, 1), np.uint8) if decoded is None else decoded.flatten(1).numpy()
        loose = np.flatnonzero(part.slots < 0)
        places = [(loose, fresh, np.searchsorted(part.missing, loose))]  # rows without a slot are always decoded
        if cache is not None:
            kept = np.flatnonzero(part.slots >= 0)
            store: Any = cache.store.numpy() if isinstance(cache.store, torch.Tensor) else cache.store
            places.append((kept, store, part.slots[kept]))
        return [place for place in places if len(place[0])]

    def _sources(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None) -> list[Source]:
        """Where the RGB pixels of the rows of a part are."""
        if self._decoded == "windows" and decoded is not None:
            return [all_of(decoded.flatten(1).numpy(), self.augmentation.crop)]
        size, draws = len(self._mean), part.draws
        if self._decoded == "rgb":
            pictures = self._pictures(part, decoded, cache)
            return [Source(rows, store, size, slots, draws.y[rows], draws.x[rows]) for rows, store, slots in pictures]
        return [all_of(self.windows(part, decoded, cache).numpy(), self.augmentation.crop)]

    def windows(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        """Windows of the part's rows, not mirrored: (rows, crop * crop * 3) uint8."""
        if self._decoded == "windows" and decoded is not None:
            return decoded.flatten(1)
        return self._windows(part, decoded, cache, np.zeros(len(part.ids), bool)).flatten(1)

    def _windows(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None, flip: np.ndarray) -> torch.Tensor:
        out = self._buffers.take((len(part.ids), *[self.augmentation.crop] * 2, 3), np.uint8)
        if self._decoded == "yuv420":
            for rows, planes, slots in self._pictures(part, decoded, cache):
                self._cut_planes(out, rows, planes, slots, part.draws, flip)
        else:
            for source in self._sources(part, decoded, cache):
                self._cut(out, source, flip)
        return torch.from_numpy(out)

    def _cut_planes(self, out: np.ndarray, rows: np.ndarray, planes: np.ndarray, slots: np.ndarray, draws: Draws, flip: np.ndarray) -> None:
        def cut(some: slice) -> None:
            which = rows[some]
            cut_planes(planes, slots[some], draws.y[which], draws.x[which], flip[which], out, which)

        self._on_threads(len(rows), cut)

    def _cut(self, out: np.ndarray, s: Source, flip: np.ndarray) -> None:
        self._on_threads(len(s.rows), lambda k: cut_windows(out, s.rows[k], s.pictures, s.side, s.slots[k], s.top[k], s.left[k], flip[s.rows[k]]))

    def batch(self, part: Part, decoded: torch.Tensor | None, cache: Cache | None, out: Out) -> torch.Tensor:
        """All rows of a part that nobody else needs: as `finish`, in one pass over what was decoded and the cache."""
        if out == "float32":
            return self._finished(self._sources(part, decoded, cache), part.draws, part.shift)
        if self._decoded == "windows" and decoded is not None:
            windows = decoded.numpy()  # nobody else has them: mirrored where they are
            self._on_threads(len(windows), lambda k: mirror_in_place(windows[k], part.draws.flip[k]))
            return decoded.permute(0, 3, 1, 2)
        return self._windows(part, decoded, cache, part.draws.flip).permute(0, 3, 1, 2)

    def finish(self, windows: torch.Tensor, draws: Draws, shift: np.ndarray, out: Out) -> torch.Tensor:
        """Windows (n, crop * crop * 3 or more) uint8, not mirrored -> (n, 3, crop, crop), channels last in memory: mirrored, and for
        float32 mean subtracted and colour shifted, shift (n, 3) float32, all in grey levels."""
        sources = [all_of(windows.numpy(), self.augmentation.crop)]
        if out == "float32":
            return self._finished(sources, draws, shift)
        mirrored = self._buffers.take((len(draws.x), *[self.augmentation.crop] * 2, 3), np.uint8)
        self._cut(mirrored, sources[0], draws.flip)
        return torch.from_numpy(mirrored).permute(0, 3, 1, 2)

    def _finished(self, sources: list[Source], draws: Draws, shift: np.ndarray) -> torch.Tensor:
        out = self._buffers.take((len(draws.x), *[self.augmentation.crop] * 2, 3), np.float32)
        for source in sources:
            self._finish(out, source, draws, shift)
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _finish(self, out: np.ndarray, s: Source, draws: Draws, shift: np.ndarray) -> None:
        places, divisor = mean_places(draws, len(self._mean), self.augmentation), np.float32(self.augmentation.divisor)

        def finish(k: slice) -> None:
            of = s.rows[k]
            finish_windows(
                out, of, s.pictures, s.side, s.slots[k], s.top[k], s.left[k], draws.flip[of], self._means, places[of], shift[of], divisor
            )  # fmt: skip

        self._on_threads(len(s.rows), finish)

    def _on_threads(self, count: int, kernel: Callable[[slice], Any]) -> None:
        """The kernel over `count` rows, in as many stretches as there are threads."""
        ends = [count * n // self._count for n in range(self._count + 1)]
        stretches = [slice(a, b) for a, b in pairwise(ends) if a < b]
        if len(stretches) == 1:
            kernel(stretches[0])
        else:
            list(self._threads.map(kernel, stretches))

    def ten_views(self, pictures: torch.Tensor) -> torch.Tensor:
        """Whole pictures (n, size * size * 3 or more) uint8 -> the ten views, mean subtracted, (n, 10, 3, crop, crop) float32 grey levels."""
        count, size, crop = len(pictures), len(self._mean), self.augmentation.crop
        out, whole = np.empty((count * 10, crop, crop, 3), np.float32), pictures.numpy()
        for number, (y, x, flip) in enumerate(ten_views(size, crop)):
            of = np.arange(count)
            draws = Draws(np.full(10 * count, x), np.full(10 * count, y), np.full(10 * count, flip), np.zeros((10 * count, 3)))
            source = Source(10 * of + number, whole, size, of, np.full(count, y), np.full(count, x))
            self._finish(out, source, draws, np.zeros((10 * count, 3), np.float32))
        return torch.from_numpy(out).permute(0, 3, 1, 2).unflatten(0, (count, 10))


def mean_places(draws: Draws, size: int, augmentation: Augmentation) -> np.ndarray:
    """(n, 3) int64: mean image or its mirror image (0, 1), and row and column of the window of it that is subtracted."""
    crop = augmentation.crop
    if augmentation.mean_window != "same":
        middle = centre_offset(size, crop)
        return np.tile(np.array([0, middle, middle]), (len(draws.x), 1))
    return np.stack((draws.flip.astype(np.int64), draws.y, np.where(draws.flip, size - crop - draws.x, draws.x)), axis=1)
