"""Encoded pictures of the batches under way -> decoded ones, with those that cannot be decoded named or replaced."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from pipeline.buffers import Buffers
from pipeline.cache import picture_bytes
from pipeline.feed import Feed, Part
from pipeline.graph import Decoder
from pipeline.samples import MOST_IN_A_ROW
from pipeline.turbojpeg_planes import BadPicture, decode_planes


class DaliPictures:
    """DALI decodes. An error of DALI's loses its whole batch and often names no picture: here the batch is put together again."""

    def __init__(self, feed: Feed, make_decoder: Callable[[], Decoder]) -> None:
        self._feed, self._make = feed, make_decoder
        self._decoder = make_decoder()
        self._spare: Decoder | None = None  # for what is decoded once more, while batches are under way in the other

    def schedule(self, part: Part) -> None:
        if part.jpegs:
            self._decoder.schedule(part.fed())

    def take(self, part: Part) -> torch.Tensor | None:
        """The decoder's output for the missing rows of the oldest part scheduled; None if there are none. Raises BadSample."""
        if not part.jpegs:
            return None
        try:
            pictures = self._decoder.take()
        except RuntimeError as error:
            pictures = self._repaired(part, error)
        self._feed.settle(part)
        return pictures

    def _repaired(self, part: Part, error: RuntimeError) -> torch.Tensor:
        self._spare = self._spare or self._make()
        for _ in range(MOST_IN_A_ROW):
            faults = self._faults(self._spare, part)
            if not faults:
                raise error
            self._feed.replace(part, faults)
            try:
                self._spare.schedule(part.fed())
                return self._spare.take()
            except RuntimeError as another:
                error = another
        raise error

    def _faults(self, spare: Decoder, part: Part) -> dict[int, str]:
        """Which of the part's pictures cannot be decoded, each tried alone, and why."""
        faults, fed = {}, part.fed()
        for number, jpeg in enumerate(fed.jpegs):
            row = np.array([number])
            try:
                spare.schedule(replace(fed, jpegs=[jpeg], draws=fed.draws.rows(row), shift=fed.shift[row]))
                spare.take()
            except RuntimeError as error:
                faults[number] = _reason(jpeg, error)
        return faults

    def drain(self) -> None:
        self._decoder.drain()


def _reason(jpeg: np.ndarray, error: RuntimeError) -> str:
    """Pillow's words, which say more, or DALI's if Pillow can decode it."""
    try:
        Image.open(io.BytesIO(jpeg.tobytes())).load()
    except UnidentifiedImageError:  # its words are an address in memory
        pass
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as why:
        return " ".join(str(why).split())
    words = re.split(r"encountered:\s*", str(error))[-1].split("\n\n")[0]
    return f"DALI: {' '.join(words.split())[:200]}"


class PlanesPictures:
    """TurboJPEG decodes to YUV 4:2:0 planes on threads, which DALI cannot do on a CPU."""

    def __init__(self, feed: Feed, size: int, device: torch.device, threads: int) -> None:
        self._feed, self._size, self._device, self._count = feed, size, device, threads
        self._threads, self._buffers = ThreadPoolExecutor(threads, "planes"), Buffers()
        self._under_way: deque[tuple[np.ndarray, list[Future[dict[int, str]]]]] = deque()

    def schedule(self, part: Part) -> None:
        if not part.jpegs:
            return
        out = self._buffers.take((len(part.jpegs), picture_bytes("yuv420", self._size)), np.uint8)
        stretches = [range(len(out))[n :: self._count] for n in range(self._count)]
        self._under_way.append((out, [self._threads.submit(self._decode, part.jpegs, out, rows) for rows in stretches]))

    def _decode(self, jpegs: list[np.ndarray], out: np.ndarray, rows: Iterable[int]) -> dict[int, str]:
        """Decode some rows; those that cannot be decoded, with the reason."""
        faults = {}
        for row in rows:
            try:
                decode_planes(jpegs[row], out[row], self._size)
            except BadPicture as error:
                faults[row] = str(error)
        return faults

    def take(self, part: Part) -> torch.Tensor | None:
        """(missing rows, bytes) uint8 planes on the device; None if nothing is missing. Raises BadSample."""
        if not part.jpegs:
            return None
        out, futures = self._under_way.popleft()
        faults = {row: reason for future in futures for row, reason in future.result().items()}
        while faults:
            self._feed.replace(part, faults)
            faults = self._decode(part.jpegs, out, list(faults))
        self._feed.settle(part)
        return torch.from_numpy(out).to(self._device)

    def drain(self) -> None:
        while self._under_way:
            wait(self._under_way.popleft()[1])
