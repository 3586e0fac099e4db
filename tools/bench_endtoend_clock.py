"""The clock of tools/bench_endtoend.py: batches come from a Supply and are used, and while the queues are full the time is counted.

It begins at a sync after WARM_UP batches of an epoch and ends at a sync, AHEAD batches before the epoch does: as many may lie ready or be under
way, so the loader's queues are as full at the end as at the beginning, and nothing is worked ahead of the clock. Benchmark shards are a
hundredth of ImageNet, and an epoch lasts a second or less: what its beginning costs is not to be paid a hundred times as often as in training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from pipeline.errors import InputError

WARM_UP, AHEAD = 4, 6  # batches; ahead: two in the queue, one waiting for room in it, and what the decoder has under way
QUEUED = 50  # percent of the time waiting for data below which a queue without end may have filled meanwhile
READ_EVERY = 20  # steps between looks at the losses, train.log_every of the recipes


class Fed(Protocol):
    """What is trained on: images, labels and, where the supply tells them, ids, to check the labels by. pipeline.Batch is one."""

    @property
    def images(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def ids(self) -> torch.Tensor | None: ...


class Given(NamedTuple):
    """A peer's batch; without ids only the range of its labels can be checked."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor | None = None


@dataclass
class Supply:
    """epoch: the batches that are left of the present epoch; left: how many, infinitely many where epochs flow into each other.

    first: epochs that are run through before anything is counted. together: batches that come at about the same time, since so many
    workers make one each; only whole rounds of them are counted. ready: batches that lie in queues without end, worked ahead while nobody
    asked; they are used up first.
    """

    epoch: Callable[[], Iterator[Any]]
    left: Callable[[], float] = lambda: math.inf
    first: int = 0
    together: int = 1
    ready: int = 0


def again(fed: Fed) -> Supply:
    """One batch, for ever."""
    return Supply(lambda: repeat(fed))


@dataclass
class Counted:
    """What the clock has covered. began, ended: first and last moment, by time.perf_counter(), with gaps between epochs in it."""

    images: int = 0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    began: float = 0.0
    ended: float = 0.0

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def wait_percent(self) -> float:
        return 100 * self.waited / self.seconds


def nothing() -> None:
    """Does nothing."""


@dataclass
class Losses:
    """Read together every READ_EVERY steps, as training does; first, last: nats. settle: see model.step.Step."""

    settle: Callable[[], None] = nothing
    waiting: list[torch.Tensor] = field(default_factory=list)
    first: float | None = None
    last: float | None = None

    def add(self, loss: torch.Tensor) -> bool:
        """Whether they were read. Raises RuntimeError where one is not finite."""
        self.waiting.append(loss)
        if len(self.waiting) < READ_EVERY:
            return False
        self.read()
        return True

    def read(self) -> None:
        if not self.waiting:
            return
        self.settle()
        values = torch.stack(self.waiting).tolist()
        self.waiting = []
        if not all(math.isfinite(value) for value in values):
            raise RuntimeError(f"a loss that is not finite, of {values}: such steps are no training, and nothing is measured by them")
        self.first, self.last = values[0] if self.first is None else self.first, values[-1]


class Clock:
    """Counts what is used while it runs."""

    def __init__(self, device: torch.device) -> None:
        self.counted, self.running, self._device, self._since = Counted(), False, device, 0.0

    def begin(self) -> None:
        self._wait()
        self.running, self._since = True, time.perf_counter()
        self.counted.began = self.counted.began or self._since

    def end(self) -> None:
        self._wait()
        self.counted.ended = time.perf_counter()
        self.counted.seconds += self.counted.ended - self._since
        self.running = False

    def add(self, images: int, waited: float) -> None:
        self.counted.images, self.counted.steps, self.counted.waited = (
            self.counted.images + images,
            self.counted.steps + 1,
            self.counted.waited + waited,
        )

    def now(self) -> float:
        """Seconds counted so far."""
        return self.counted.seconds + (time.perf_counter() - self._since if self.running else 0.0)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def timed(supply: Supply, use: Callable[[Any], object], seconds: float, device: torch.device, check: Check | None = None) -> Counted:
    """Use batches until `seconds` are counted, at least one batch. Raises RuntimeError for a wrong label."""
    for _ in range(supply.first):
        for _ in supply.epoch():
            continue
    supply.first, clock = 0, Clock(device)
    while not clock.counted.images or clock.now() < seconds:
        _part(supply, use, seconds, clock, check)
    if supply.together > 1:
        supply.ready = 2 * supply.together if clock.counted.wait_percent < QUEUED else 0
    if check is not None:
        check.all()
    return clock.counted


def _part(supply: Supply, use: Callable[[Any], object], seconds: float, clock: Clock, check: Check | None) -> None:
    """What is left of an epoch, or as much as is needed of it."""
    last, warm_up = supply.left() - AHEAD, max(WARM_UP, supply.together + supply.ready)
    batches = supply.epoch()
    asked = time.perf_counter()
    for number, fed in enumerate(batches, 1):
        if clock.running:
            clock.add(len(fed.labels), time.perf_counter() - asked)
            if check is not None:
                check.note(fed)
        use(fed)
        enough = clock.running and clock.counted.steps % supply.together == 0 and clock.now() >= seconds
        if clock.running and (enough or number >= last):
            clock.end()
        if enough:
            _close(batches)
            return
        if number == warm_up and number < last:
            clock.begin()
        asked = time.perf_counter()


def _close(batches: Iterator[Any]) -> None:
    close = getattr(batches, "close", None)
    if close is not None:
        close()  # a loader's place in its epoch is left as it is


def check_length(steps: int, batch: int, samples: int) -> None:
    """Raises InputError where an epoch is too short to count anything of it."""
    if steps <= WARM_UP + AHEAD:
        least = (WARM_UP + AHEAD + 1) * batch
        raise InputError(f"batch {batch}: {samples:,} samples are {steps} steps an epoch, of which none could be counted; give at least {least:,}")


@dataclass
class Check:
    """Labels that were trained on, against those of the shards. labels: (samples,) by id."""

    labels: np.ndarray
    classes: int
    seen: list[tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=list)

    def note(self, fed: Fed) -> None:
        self.seen.append((fed.labels, fed.ids))

    def all(self) -> None:
        """Raises RuntimeError for a label that is not its sample's, or, without ids, is no class."""
        for labels, ids in self.seen:
            found = labels.cpu().numpy()
            right = np.array_equal(found, self.labels[ids.cpu().numpy()]) if ids is not None else found.min() >= 0 and found.max() < self.classes
            if not right:
                raise RuntimeError("a label that is not the one that the shards have for its id")
        self.seen.clear()
