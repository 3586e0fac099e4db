"""What a loader promises of a whole set of shards of which some samples are bad, in its plain form: Pillow, NumPy, one row after the other."""

from __future__ import annotations

from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import ImageLoader
from pipeline.augment import Augmentation, plain_batch
from pipeline.colour import read_colour_stats
from pipeline.draws import draw, fixed
from pipeline.order import order
from pipeline.pixels import Out
from pipeline.samples import Skipped
from pipeline.shards import ShardSet

SMALL = Augmentation(crop=64)  # what becomes of bad samples does not depend on the crop
SEED = 3


def loader(shards: Path, split: Literal["train", "val"] = "train", **options: Any) -> ImageLoader:
    """The loader whose plain form this is; it skips bad samples unless told otherwise."""
    settings: dict[str, Any] = {"batch": 16, "seed": SEED, "threads": 1, "augmentation": SMALL, "on_bad_sample": "skip"}
    return ImageLoader(shards, split, views="train" if split == "train" else "centre", **{**settings, **options})


class PlainLoader:
    """The epochs of one split. Reads the shards when it is made; they may be damaged after that."""

    def __init__(self, shards: Path, split: Literal["train", "val"]) -> None:
        self.split, one = split, ShardSet(shards, split)
        jpegs, labels = zip(*map(one.read, range(len(one))), strict=True)
        self.labels = np.array(labels)
        self._stats = read_colour_stats(shards, one.digest, 256)
        whole, zeros = Augmentation(crop=256, colour="none"), np.zeros((len(one), 3), np.float32)
        self._pictures, _ = plain_batch(list(jpegs), fixed(len(one), 0, 0), zeros, self._stats.mean_image, whole)

    def __len__(self) -> int:
        return len(self.labels)

    def order(self, epoch: int) -> np.ndarray:
        return order(SEED, epoch, len(self)) if self.split == "train" else np.arange(len(self))

    def used(self, epoch: int, bad: Set[int]) -> np.ndarray:
        """(n,) id of the sample whose picture comes at every position: its own, or the next that is not bad, round the end."""
        ids, count = self.order(epoch).tolist(), len(self)
        return np.array([next(ids[(place + k) % count] for k in range(count) if ids[(place + k) % count] not in bad) for place in range(count)])

    def rows(self, epoch: int, bad: Set[int], out: Out) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and labels, (n,) int64, and images, (n, 3, 64, 64) of the kind `out`, at the positions of an epoch."""
        own, used, crop = self.order(epoch), self.used(epoch, bad), SMALL.crop
        if self.split == "train":
            draws = draw(SEED, epoch, own, 256 - crop + 1)
            shift = self._stats.shift(draws.normals, "eigenvalue", SMALL.sigma)
            ids, labels = used, self.labels[used]
        else:
            draws, shift = fixed(len(own), 96, 96), np.zeros((len(own), 3), np.float32)
            ids, labels = own, np.where(used == own, self.labels, -1)
        images = np.empty((len(own), crop, crop, 3), out)
        for row, (picture, x, y, flip) in enumerate(zip(used, draws.x, draws.y, draws.flip, strict=True)):
            place = slice(y, y + crop), slice(x, x + crop)
            image: Any = self._pictures[picture][place]
            if out == "float32":
                image = image.astype(np.float32) - self._stats.mean_image[place] + shift[row]
            images[row] = image[:, ::-1] if flip else image
        return ids, labels, images.transpose(0, 3, 1, 2)

    def check(self, batches: Iterable[Any], epoch: int, bad: Set[int], out: Out = "float32", start: int = 0, free: Iterable[int] = ()) -> int:
        """The batches are those from position `start` on; only the pixels of the samples in `free` may be others. Returns the rows."""
        ids, labels, images = self.rows(epoch, bad, out)
        pictures, at = self.used(epoch, bad), start
        for batch in batches:
            rows = slice(at, at + len(batch.ids))
            assert batch.ids.tolist() == ids[rows].tolist(), f"ids from position {at} on"
            assert batch.labels.tolist() == labels[rows].tolist(), f"labels from position {at} on"
            same = (batch.images.numpy() == images[rows]).all(axis=(1, 2, 3)) | np.isin(pictures[rows], list(free))
            assert same.all(), f"pixels at positions {(at + np.flatnonzero(~same)).tolist()}"
            at = rows.stop
        return at - start

    def listed(self, skipped: Iterable[Skipped], shards: ShardSet, epoch: int, bad: Set[int], stop: int | None = None) -> None:
        """The list of an epoch's skipped samples is that of the bad ones at its positions up to `stop`, each once, rightly placed."""
        own, used = self.order(epoch)[:stop].tolist(), self.used(epoch, bad)[:stop].tolist()
        found = [(one.split, one.id, one.shard, one.key, one.offset, one.epoch, one.replaced_by) for one in skipped]
        wanted = []
        for sample, other in sorted(pair for pair in zip(own, used, strict=True) if pair[0] != pair[1]):
            path, key, offset = shards.place(sample)
            wanted.append((self.split, sample, path.name, key, offset, epoch, other if self.split == "train" else None))
        assert sorted(found) == wanted
        assert all(one.reason and "\n" not in one.reason for one in skipped)
