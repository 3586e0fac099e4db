"""What the rows of tools/bench_loader.py do in its own process: our loader's stages, and plain DALI.

Each function makes what the row needs and gives a Pass: called with a number of batches, it yields each batch when it is in hand. A pass begins
and ends with nothing under way, so that neither filling the queues nor working ahead of the clock is given away.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from pipeline.augment import Augmentation
from pipeline.colour import ColourStats
from pipeline.draws import Draws, draw
from pipeline.feed import Feed, Part
from pipeline.graph import Decoder, decode
from pipeline.loader import ImageLoader
from pipeline.order import order
from pipeline.samples import Samples
from pipeline.shards import ShardSet
from pipeline.share import Share
from tools.bench_dali import PREFETCH, Drawn, Form, built, encoded, form, reading

SEED = 0

Item = TypeVar("Item")


@dataclass(frozen=True)
class Setup:
    """What all rows of one setting share. labels: (samples,) int64, by id, to check against."""

    shards: ShardSet
    stats: ColourStats
    labels: np.ndarray
    batch: int
    threads: int
    device: torch.device
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def device_id(self) -> int | None:
        return self.device.index

    @property
    def size(self) -> int:
        return len(self.stats.mean_image)

    def form(self) -> Form:
        return form(self.stats, self.augmentation.crop, self.augmentation.sigma, self.device.type)


class Given(NamedTuple):
    """One batch in hand: number of images, their labels and ids; None where the row gives no ids, so that they cannot be checked."""

    images: int
    labels: Any = None
    ids: Any = None


Pass = Callable[[int], Iterator[Given]]


def clocked(row: Pass, batches: int, labels: np.ndarray) -> tuple[int, float, float]:
    """Images, wall seconds and CPU-seconds (user and system, all threads) of a pass. Raises RuntimeError for a wrong label or count.

    The clock begins with empty queues, and ends when the last batch is in hand and no other is under way.
    """
    results, given = row(batches), list[Given]()
    wall, cpu = time.perf_counter(), cpu_seconds()
    for batch in islice(results, batches):
        given.append(batch)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    if next(results, None) is not None or len(given) < batches:  # after the clock, it cleans up
        raise RuntimeError(f"not {batches} batches: a fault of the benchmark's schedule")
    for batch in given:
        if batch.ids is not None and not np.array_equal(_array(batch.labels), labels[_array(batch.ids)]):
            raise RuntimeError("a label that is not the one that the shards have for its id")
    return sum(batch.images for batch in given), wall, max(cpu, 1e-6)  # getrusage counts microseconds


def _array(numbers: Any) -> np.ndarray:
    return numbers.cpu().numpy() if isinstance(numbers, torch.Tensor) else numbers


def cpu_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def schedule(batches: int, an_epoch: int) -> list[tuple[int, int]]:
    """(epoch, batch in the epoch) of a pass. It ends with an epoch, since only there does ImageLoader not run ahead."""
    skipped = -batches % an_epoch
    return [divmod(skipped + batch, an_epoch) for batch in range(batches)]


class Feeding:
    """Encoded pictures in our order, as ImageLoader's thread prepares them."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._epoch = setup, 0
        self._feed = Feed(Samples(setup.shards, "stop", True), setup.batch, Share(), self._draws, None)

    def parts(self, batches: int) -> Iterator[Part]:
        s = self._setup
        for count, (epoch, number) in enumerate(schedule(batches, len(s.shards) // s.batch)):
            if not count or not number:
                self._epoch = epoch
                self._feed.begin(order(SEED, epoch, len(s.shards)), epoch, None)
            yield self._feed.prepare(number * s.batch)

    def _draws(self, ids: np.ndarray, positions: np.ndarray) -> tuple[Draws, np.ndarray]:
        a = self._setup.augmentation
        draws = draw(SEED, self._epoch, ids, self._setup.size - a.crop + 1)
        return draws, self._setup.stats.shift(draws.normals, a.colour, a.sigma)


def ahead(items: Iterable[Item], begin: Callable[[Item], None], end: Callable[[Item], Given]) -> Iterator[Given]:
    """`begin` each, and `end` it when PREFETCH more have been begun: as many as ImageLoader has under way."""
    under_way = deque[Item]()
    for item in items:
        begin(item)
        under_way.append(item)
        if len(under_way) > PREFETCH:
            yield end(under_way.popleft())
    while under_way:
        yield end(under_way.popleft())


# --- our own stages


def feed_only(s: Setup) -> Pass:
    feeding = Feeding(s)
    return lambda batches: (Given(len(part.jpegs), part.labels, part.ids) for part in feeding.parts(batches))


def _fed(s: Setup, graph: Callable[[], Any], device_id: int | None) -> Pass:
    """Our feed, and a graph of DALI's behind encoded()."""
    feeding = Feeding(s)
    sample = [s.shards.read(0)[0]]
    pipe = built(graph, s.batch, s.threads, device_id, lambda made: made.feed_input("jpeg", sample))

    def begin(part: Part) -> None:
        pipe.feed_input("jpeg", part.jpegs)
        pipe.schedule_run()

    return lambda batches: ahead(feeding.parts(batches), begin, lambda part: Given(len(pipe.outputs()[0]), part.labels, part.ids))


def fed_to_dali(s: Setup) -> Pass:
    return _fed(s, encoded, None)


def decoded_by_share(s: Setup, share: float) -> Pass:
    """share: of the GPU's JPEG engines, the rest by CUDA and the CPU's threads; without a GPU it says nothing."""
    return _fed(s, lambda: decode(encoded(), s.device.type, share), s.device_id)


def decoded(s: Setup) -> Pass:
    feeding = Feeding(s)
    decoder = Decoder(
        "pictures",
        augmentation=s.augmentation,
        mean_image=s.stats.mean_image,
        batch=s.batch,
        threads=s.threads,
        device=s.device,
        prefetch=PREFETCH,
    )

    def end(part: Part) -> Given:
        return Given(len(decoder.take()), part.labels, part.ids)

    return lambda batches: ahead(feeding.parts(batches), lambda part: decoder.schedule(part.fed()), end)


def loaded(s: Setup, **options: Any) -> Pass:
    """ImageLoader as training sees it; `options` of its own."""
    loader = ImageLoader(
        s.shards.folder,
        "train",
        batch=s.batch,
        augmentation=s.augmentation,
        seed=SEED,
        device=s.device,
        threads=s.threads,
        prefetch=PREFETCH,
        **options,
    )

    def results(batches: int) -> Iterator[Given]:
        due = schedule(batches, len(s.shards) // s.batch)
        (epoch, number), (last, _) = due[0], due[-1]
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": number * s.batch})
        while loader.epoch <= last:
            for batch in loader:
                yield Given(len(batch.images), batch.labels, batch.ids)

    return results


# --- plain DALI


def plain_dali(s: Setup, what: Callable[[Form, Any, Drawn], Any], shuffled: bool = True) -> Pass:
    def graph() -> Any:
        jpeg, *labels = reading(s.shards, shuffled)
        done = s.form()
        return (what(done, jpeg, done.drawn()), *labels)

    pipe = built(graph, s.batch, s.threads, s.device_id)
    return lambda batches: ahead(range(batches), lambda _: pipe.schedule_run(), lambda _: Given(len(pipe.outputs()[0])))
