"""The step as one CUDA graph: a single launch, with the next batch brought in while it runs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from model.convolve import blocks_side, to_blocks
from model.design import Design
from model.net import DROPPED, Masks, Net
from model.sgd import PaperSGD
from model.step import HalfStep, Stage

RING = 2  # batches that have a place: one is computed with, the next is written
WARM_UP = 3  # steps before the capture, in which libraries choose their kernels and Triton compiles


@dataclass(frozen=True)
class HeldMasks:
    """Dropout masks in memory that a graph reads, by place in DROPPED: (rows, own features)."""

    held: tuple[torch.Tensor, ...]

    def mask(self, layer: int, features: int, rows: int, own: slice, keep: float, like: torch.Tensor) -> torch.Tensor:
        return self.held[layer]


@dataclass
class Slot:
    """Where a graph reads its batch and leaves its loss. done: it has read it."""

    images: torch.Tensor
    labels: torch.Tensor
    masks: HeldMasks
    graph: torch.cuda.CUDAGraph = field(default_factory=torch.cuda.CUDAGraph)
    done: torch.cuda.Event = field(default_factory=torch.cuda.Event)
    loss: torch.Tensor | None = None


class GraphedStep:
    """HalfStep's numbers, for `batch` pictures a step, of a net that is alone on its GPU.

    Each place of the ring has a graph of its own, which reads there; the graphs run on a stream of their own, one behind the
    other, and share their memory. Dropout masks are drawn outside, as for any other step, and written to the place.
    """

    def __init__(self, net: Net, optimiser: PaperSGD, batch: int) -> None:
        assert net.columns.alone, "exchanges between ranks are not captured"
        self._net, self._optimiser, self._taken = net, optimiser, 0
        self._step, self._stream = HalfStep(net, optimiser), torch.cuda.Stream(net.first.weight.device)
        self._slots = [_slot(net, batch) for _ in range(RING)]
        self._warm_up()
        pool = None
        for slot in self._slots:
            # Only this thread's calls are captured: the loader's threads take memory meanwhile.
            with torch.cuda.graph(slot.graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                slot.loss = self._compute(slot)
            pool = slot.graph.pool()

    def _compute(self, slot: Slot) -> torch.Tensor:
        return self._step(slot.images, slot.labels, slot.masks)

    def _warm_up(self) -> None:
        """Steps whose updates are taken back."""
        state = [*self._net.parameters(), *self._optimiser.halves.values(), *map(self._optimiser.velocity, self._net.parameters())]
        before = [tensor.detach().clone() for tensor in state]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                self._compute(self._slots[0])
            with torch.no_grad():
                for tensor, value in zip(state, before, strict=True):
                    tensor.copy_(value)
        self.settle()

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, masks: Masks, stage: Stage = nullcontext) -> torch.Tensor:
        """Images of the captured number; stage is not told of the parts of a graph."""
        slot, feeding = self._slots[self._taken % RING], torch.cuda.current_stream()
        self._taken += 1
        feeding.wait_event(slot.done)
        self._fill(slot, images, labels, masks)
        self._stream.wait_stream(feeding)
        with torch.cuda.stream(self._stream):
            self._optimiser.set_rates()
            slot.graph.replay()
            slot.done.record()
            assert slot.loss is not None, "captured when the step was made"
            return slot.loss.clone()

    def _fill(self, slot: Slot, images: torch.Tensor, labels: torch.Tensor, masks: Masks) -> None:
        half = images.to(torch.bfloat16)  # first, so that what is moved about is half as much
        design = self._net.design
        slot.images.copy_(to_blocks(half, design.conv1_padding) if self._net.ways.blocks and isinstance(design, Design) else half)
        slot.labels.copy_(labels)
        for layer, held in enumerate(slot.masks.held):
            features, keep = design.hidden[layer], 1 - design.dropout
            held.copy_(masks.mask(layer, features, len(held), self._net.columns.rows(DROPPED[layer], features), keep, held))

    def settle(self) -> None:
        """The current stream waits for the graphs."""
        torch.cuda.current_stream().wait_stream(self._stream)


def _slot(net: Net, batch: int) -> Slot:
    design, device = net.design, net.first.weight.device
    side, channels = design.input, 3
    if net.ways.blocks and isinstance(design, Design):
        side, channels = blocks_side(design.input + sum(design.conv1_padding)), 48
    images = torch.zeros((batch, channels, side, side), dtype=torch.bfloat16, device=device).contiguous(memory_format=torch.channels_last)
    masks = tuple(torch.ones((batch, features), dtype=torch.bfloat16, device=device) for features in design.hidden)
    return Slot(images, torch.zeros(batch, dtype=torch.int64, device=device), HeldMasks(masks))
