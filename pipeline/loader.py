"""Batches of one split, in our order and with our draws, decoded by DALI on threads of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from pipeline.augment import Augmentation, centre_offset, cut_ten_views, finish
from pipeline.colour import read_colour_stats
from pipeline.crossing import Crossing
from pipeline.decode_fault import bad_picture
from pipeline.draws import Draws, draw, fixed
from pipeline.errors import InputError
from pipeline.feed import Feed, Part, Share
from pipeline.graph import Out, build_graph, to_torch
from pipeline.order import order
from pipeline.shards import ShardSet

Views = Literal["train", "centre", "ten"]


@dataclass(frozen=True)
class Batch:
    """images: float32 grey levels, mean subtracted, RGB, (n, 3, crop, crop), or (n, 10, 3, crop, crop) for ten views.

    labels, ids: (n,) int64; an id is the sample's number in its split. All on the loader's device but the ids (CPU).
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor


class ImageLoader:
    """Batches of a split of a shard folder.

    shards: folder made by make_shards, with its colour statistics. split: "train" or "val". batch: images a step over
    ALL ranks. views: "train" (permuted order, random crop, flip and colour; N // batch steps an epoch, the N % batch
    samples left over are others in every epoch), "centre" or "ten" (stored order, every sample exactly once, the last
    batch short). crop: side of the pictures, 227 unless given here or by `augmentation`. rank, world: who of how many
    decodes; rank r takes the r-th of `world` equal parts of each batch.
    group: ranks that all need the same images (the two columns of the net) as a torch.distributed group of neighbouring
    ranks: each decodes its own part, and they exchange uint8 windows, so no image is decoded twice; every rank of it gets
    the parts of all. device: "cpu" or "cuda[:k]". threads: DALI's decoding threads. prefetch: batches decoded ahead.

    Raises InputError for shards that cannot be trusted, and for a batch that does not divide over the ranks.
    """

    def __init__(
        self,
        shards: str | Path,
        split: Literal["train", "val"],
        *,
        batch: int,
        views: Views = "train",
        crop: int | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        group: dist.ProcessGroup | None = None,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        prefetch: int = 2,
    ) -> None:
        augmentation = augmentation or Augmentation()
        if crop is not None:
            augmentation = replace(augmentation, crop=crop)
        self.shards = ShardSet(shards, split)
        size = self.shards.manifest.settings.size
        stats = read_colour_stats(self.shards.folder, self.shards.digest, size)
        _check(self.shards, batch, augmentation.crop, size, views, world)
        self.augmentation = augmentation if views == "train" else augmentation.plain()
        self.batch, self.views, self.seed, self.epoch, self.position = batch, views, seed, epoch, 0
        self.rank, self.world, self.group = rank, world, group
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f'device "{device}", but torch sees no GPU here; use device="cpu"')
        self._prefetch, self._iterating = prefetch, False
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._stats, self._size = stats, size
        self._mean = torch.from_numpy(stats.mean_image).to(self.device)
        # Ten views are cut from the whole picture, and what crosses between ranks crosses as uint8.
        self._out: Out = "uint8" if group is not None or views == "ten" else "float32"
        graph_crop = size if views == "ten" else augmentation.crop
        # The ranks of a group are neighbours, so its first is this one's number less its place in the group.
        first = rank - (dist.get_rank(group) if group is not None else 0)
        members = range(first, first + (group.size() if group is not None else 1))
        self._feed = Feed(self.shards, batch, Share(rank, world, members), self.draws_of, prefetch)
        self._pipe = build_graph(
            self._feed.feed,
            out=self._out,
            augmentation=replace(self.augmentation, crop=graph_crop),
            mean_image=stats.mean_image,
            batch=-(-batch // world),
            threads=threads or os.cpu_count() or 1,
            device=self.device.type,
            device_id=None if self.device.type == "cpu" else self.device.index or 0,
            prefetch=prefetch,
        )

    def __len__(self) -> int:
        """Batches from the present position to the end of the epoch."""
        return len(self._starts())

    def _starts(self) -> range:
        """Position of the first sample of every batch still to come."""
        count = len(self.shards)
        stop = count - self.batch + 1 if self.views == "train" else count
        return range(self.position, stop, self.batch)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts: {epoch, position (samples consumed over all ranks), seed, digest of the shard set}."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "digest": self.shards.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the very next image; ranks and batch may differ from those that wrote the state. Raises InputError."""
        if state["digest"] != self.shards.digest:
            raise InputError(f"{self.shards.folder} is another shard set than the one this run was trained on; give the folder it was started with")
        if state["seed"] != self.seed:
            raise InputError(f"the run was started with seed {state['seed']}, not {self.seed}; keep the seed to go on in the same order")
        if self._iterating:
            raise RuntimeError("a state cannot be loaded while the loader is being iterated")
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """The batches left of this epoch; when all are taken, the loader stands at the start of the next epoch."""
        if self._iterating:
            raise RuntimeError("this loader is being iterated already; finish or drop that iterator first, or make a second loader")
        self._iterating = True
        ahead: queue.Queue[Part | BaseException] = queue.Queue(self._prefetch)
        stop = threading.Event()
        starts = self._starts()
        producer = threading.Thread(target=self._produce, args=(starts, ahead, stop), daemon=True, name="image-loader")
        producer.start()
        crossing: deque[tuple[Part, Crossing]] = deque()
        try:
            for start in starts:
                # While a batch is trained on, the next one crosses between the ranks of the group.
                while len(crossing) < 2 and start + len(crossing) * self.batch in starts:
                    part = _taken(ahead)
                    crossing.append((part, self._cross(part)))
                part, windows = crossing.popleft()
                batch = self._complete(part, windows.wait())
                self.position = start + self.batch
                yield batch
            self.epoch, self.position = self.epoch + 1, 0
        finally:
            for _, left in crossing:  # every rank of the group has begun it, so it ends
                left.wait()
            stop.set()
            while producer.is_alive():  # it may wait for room in the queue
                try:
                    ahead.get(timeout=0.02)
                except queue.Empty:
                    continue
            producer.join()
            self._iterating = False

    def _produce(self, starts: range, ahead: queue.Queue, stop: threading.Event) -> None:
        """Thread: run DALI through the epoch and put this rank's parts into the queue; an error goes in as itself."""
        try:
            count = len(self.shards)
            self._feed.begin(order(self.seed, self.epoch, count) if self.views == "train" else np.arange(count), starts)
            for _ in starts:
                if stop.is_set():
                    break
                ahead.put(self._next_part())
        except BaseException as error:
            ahead.put(error)
        finally:
            self._feed.drain(self._pipe)

    def _next_part(self) -> Part:
        if self._feed.next_is_empty():
            return self._feed.take(None)
        try:
            (output,) = self._pipe.run()
        except RuntimeError as error:
            raise bad_picture(self.shards, self._feed.oldest_ids(), error) from None
        return self._feed.take(to_torch(output, self.device, self._stream))

    def _cross(self, part: Part) -> Crossing:
        """Begin to exchange a part with the ranks of the group; without a group there is nothing to exchange."""
        if self._stream is not None and part.images is not None:
            # Made on the loader's stream: its memory must not be used again before the present stream is done with it.
            part.images.record_stream(torch.cuda.current_stream(self.device))
        return Crossing(part.images, self.group, part.sizes, self._window_shape(), self.device)

    def _complete(self, part: Part, images: torch.Tensor) -> Batch:
        """From all windows of the group to its batch, finished, on the device."""
        if self.views == "ten":
            images = cut_ten_views(images, self._mean, self.augmentation)
        elif images.dtype == torch.uint8:
            images = finish(images, part.draws, self._upload(part.shift), self._mean, self.augmentation)
        return Batch(images, self._upload(part.labels), torch.from_numpy(part.ids))

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        """To the device without waiting for it: from pinned memory, or the copy would wait for the step before."""
        tensor = torch.from_numpy(array)
        return tensor if self._stream is None else tensor.pin_memory().to(self.device, non_blocking=True)

    def _window_shape(self) -> tuple[int, int, int]:
        side = self._size if self.views == "ten" else self.augmentation.crop
        return side, side, 3

    def draws_of(self, ids: np.ndarray, positions: np.ndarray) -> tuple[Draws, np.ndarray]:
        """Draws and colour shift, (n, 3) float32 grey levels, of samples that stand at `positions` of the present epoch."""
        a, last = self.augmentation, self._size - self.augmentation.crop
        if self.views == "ten":
            draws = fixed(len(ids), 0, 0)
        elif self.views == "centre":
            middle = centre_offset(self._size, a.crop)
            draws = fixed(len(ids), middle, middle)
        else:
            draws = draw(self.seed, self.epoch, ids, last + 1)
            if a.window_shared_by > 1:
                shared = draw(self.seed, self.epoch, positions // a.window_shared_by, last + 1)
                draws = Draws(shared.x, shared.y, shared.flip, draws.normals)
        return draws, self._stats.shift(draws.normals, a.colour, a.sigma)


def _check(shards: ShardSet, batch: int, crop: int, size: int, views: Views, world: int) -> None:
    if crop > size:
        raise InputError(f"a {crop} crop does not fit the {size} pixels of {shards.folder}; use a smaller input or shards of a larger --size")
    if batch < world:
        raise InputError(f"batch {batch} is smaller than the {world} ranks that share it; use a batch of at least {world} or fewer devices")
    if views == "train" and batch % world:
        raise InputError(f"batch {batch} does not divide over {world} ranks; the nearest that does is {max(1, round(batch / world)) * world}")
    if views == "train" and batch > len(shards):
        raise InputError(f"batch {batch} is larger than the {len(shards)} samples of {shards.folder} ({shards.split}); use a smaller batch")


def _taken(ahead: queue.Queue[Part | BaseException]) -> Part:
    part = ahead.get()
    if isinstance(part, BaseException):
        raise part
    return part
