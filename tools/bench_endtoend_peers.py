"""The peers of tools/bench_endtoend.py: how users of plain PyTorch and of plain DALI feed the same pictures to the same net."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from torch.utils.data import DataLoader, Dataset

from pipeline.graph import to_torch
from tools.bench_dali import PREFETCH, Form, built, form, reading
from tools.bench_endtoend_clock import Given, Losses, Supply
from tools.bench_endtoend_ours import Setup
from tools.peer_formats import decoded
from tools.peer_loaders import Endless, collate, window
from tools.peer_samples import Samples
from tools.plain_nets import EagerAlexNet, Step, check_step, make_step


class Windows(Dataset[tuple[np.ndarray, int, int]]):
    """(crop, crop, 3) uint8 windows by Pillow, flipped at random, with label and id, read from the shards by their indexes."""

    def __init__(self, samples: Samples, crop: int) -> None:
        self.samples, self.crop = samples, crop

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, sample: int) -> tuple[np.ndarray, int, int]:
        return window(decoded(self.samples.jpeg(sample)), self.crop), self.samples.labels[sample], sample


def by_torch(s: Setup, stack: ExitStack) -> Supply:
    """DataLoader with `threads` processes; uint8 crosses to the device, and the channel means are taken off there: the quickest plain way."""
    samples = Samples(s.shards.folder)
    loader: Any = DataLoader(
        Windows(samples, s.recipe.model.input),
        s.batch,
        sampler=Endless(len(samples)),
        num_workers=s.threads,
        collate_fn=collate,
        pin_memory=s.device.type == "cuda",
        persistent_workers=True,
        multiprocessing_context="fork",  # the files of Samples are open
        worker_init_fn=_quiet,
    )
    batches = iter(loader)
    stack.callback(lambda: batches._shutdown_workers())
    mean = torch.tensor(s.stats.mean_image.mean((0, 1)), dtype=torch.float32, device=s.device).view(1, 3, 1, 1)

    def given() -> Iterator[Given]:
        for images, labels, ids in batches:
            there = images.to(s.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
            yield Given(there.float() - mean, labels.to(s.device, non_blocking=True), ids)

    return Supply(given, together=s.threads, ready=2 * s.threads)  # DataLoader's prefetch_factor is 2


def _quiet(worker: int) -> None:
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # a window is read only


def by_dali(s: Setup, stack: ExitStack) -> Supply:
    """DALI's own reader, order and random numbers, float32 batches on the device by its fastest form; PREFETCH batches ahead."""
    work = form(s.stats, s.recipe.model.input, s.recipe.data.sigma, s.device.type)

    def graph() -> Any:
        jpeg, digits = reading(s.shards, shuffled=True)
        return Form.float32_b(work, jpeg, work.drawn()), fn.pad(digits)

    pipe = built(graph, s.batch, s.threads, s.device.index)
    stream = torch.cuda.Stream(s.device) if s.device.type == "cuda" else None

    def given() -> Iterator[Given]:
        for _ in range(PREFETCH):
            pipe.schedule_run()
        try:
            while True:
                pictures, digits = pipe.outputs()
                images = to_torch(pictures, s.device, stream)
                if stream is not None:  # made on that stream; its memory must not be used again before this one is done with it
                    images.record_stream(torch.cuda.current_stream(s.device))
                labels = torch.from_numpy(numbers(np.asarray(digits.as_tensor())))
                pipe.schedule_run()
                yield Given(images, labels.to(s.device, non_blocking=True))
        finally:
            for _ in range(PREFETCH):
                pipe.outputs()

    return Supply(given)


def numbers(digits: np.ndarray) -> np.ndarray:
    """(n, width) uint8, decimal digits of each number and then anything else -> (n,) int64."""
    values = np.zeros(len(digits), np.int64)
    for column in digits.T:
        is_digit = (column >= ord("0")) & (column <= ord("9"))
        values = np.where(is_digit, values * 10 + column - ord("0"), values)
    return values


SUPPLIES: dict[str, Callable[[Setup, ExitStack], Supply]] = {"torch": by_torch, "dali": by_dali}


def step_of_peer(s: Setup, precision: str, compiled: bool, losses: Losses) -> Callable[[Given], None]:
    """The eager net at the recipe's sizes, and its step. Raises InputError where it cannot be had here."""
    check_step(precision, compiled, s.device)
    design = s.recipe.model
    net = EagerAlexNet(s.classes, design.maps, design.hidden, design.input).to(s.device)
    return partial(_take, make_step(net, precision, compiled, s.device), losses)


def _take(step: Step, losses: Losses, given: Given) -> None:
    losses.add(step(given.images, given.labels))
