"""Pixels of the GPU's decoder against the CPU's, while the device is busy: part of tools/bench_loader.py --device cuda.

Hopper's JPEG engines are known to write a picture before earlier work on its memory is done, so what they give is compared under load: batches
decoded one behind the other, PREFETCH ahead, and a stream of matrix products beside them. Two kinds of difference are told apart. Engines, CUDA
and CPU may round a pixel differently, always the same; a pixel that is not what the same decoder gave for it at rest is a fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch

from pipeline.feed import Part
from pipeline.graph import decode, to_torch
from tools.bench_dali import PREFETCH, built, encoded
from tools.bench_rows import Feeding, Setup

BATCHES = 200  # decoded under load
DIFFERENT = 16  # batches of different pictures, decoded again and again: their pixels at rest are kept on the device
MATRIX = 2048  # side of the matrices multiplied meanwhile


@dataclass
class Differences:
    """Pixels that differ from the reference in any channel, of `pixels` compared; largest: in grey levels. Counted on the device."""

    device: torch.device

    def __post_init__(self) -> None:
        self.pixels = 0
        self._count, self._largest = (torch.zeros((), dtype=torch.int64, device=self.device) for _ in range(2))

    def add(self, pictures: torch.Tensor, reference: torch.Tensor) -> None:
        """Both (n, side, side, 3) uint8; nothing is waited for."""
        off = (pictures.to(torch.int16) - reference.to(torch.int16)).abs().amax(dim=-1)
        self.pixels += off.numel()
        self._count += off.count_nonzero()
        self._largest = torch.maximum(self._largest, off.max().to(torch.int64))

    def result(self) -> dict[str, int]:
        return {"differ": int(self._count), "largest": int(self._largest)}


class Decoding:
    """Pictures decoded whole by DALI on a device, with a share of its JPEG engines."""

    def __init__(self, s: Setup, device: torch.device, share: float) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        sample = [s.shards.read(0)[0]]
        graph = lambda: decode(encoded(), device.type, share)  # noqa: E731
        self._pipe = built(graph, s.batch, s.threads, device.index, lambda made: made.feed_input("jpeg", sample))

    def begin(self, part: Part) -> None:
        self._pipe.feed_input("jpeg", part.jpegs)
        self._pipe.schedule_run()

    def end(self) -> torch.Tensor:
        """(n, side, side, 3) uint8, of the oldest begun."""
        pictures = to_torch(self._pipe.outputs()[0], self._device, self._stream)
        if self._stream is not None:  # the memory is of that stream, and must not be used again before this one has compared it
            pictures.record_stream(torch.cuda.current_stream(self._device))
        return pictures

    def at_rest(self, part: Part) -> torch.Tensor:
        """Decoded while nothing else is under way."""
        self.begin(part)
        return self.end()


@contextmanager
def load(device: torch.device) -> Iterator[None]:
    """Matrix products without pause, on a stream of their own."""
    stop, matrix = Event(), torch.ones((MATRIX, MATRIX), device=device)

    def multiply() -> None:
        with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
            while not stop.is_set():
                torch.mm(matrix, matrix).sum().item()  # waits, so that no more than one is queued

    thread = Thread(target=multiply, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def compare_pixels(s: Setup, share: float, batches: int = BATCHES) -> dict[str, Any]:
    """`batches` batches decoded under load. Of `pixels`, how many differ from the CPU's, and from the decoder's own at rest."""
    parts = list(Feeding(s).parts(min(DIFFERENT, batches, len(s.shards) // s.batch)))
    decoding, on_cpu = Decoding(s, s.device, share), Decoding(s, torch.device("cpu"), share)
    cpu = [on_cpu.at_rest(part).to(s.device) for part in parts]
    rest = [decoding.at_rest(part) for part in parts]
    from_cpu, from_rest, under_way = Differences(s.device), Differences(s.device), deque[int]()
    with load(s.device):
        for number in range(batches + PREFETCH):
            if number < batches:
                under_way.append(number % len(parts))
                decoding.begin(parts[under_way[-1]])
            if number >= PREFETCH:
                which, pictures = under_way.popleft(), decoding.end()
                from_cpu.add(pictures, cpu[which])
                from_rest.add(pictures, rest[which])
    about = {"hw_decoder_load": share, "batch": s.batch, "threads": s.threads, "batches": batches, "pixels": from_cpu.pixels}
    return {**about, "from_the_cpu": from_cpu.result(), "from_itself_at_rest": from_rest.result()}
