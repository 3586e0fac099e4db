"""Small pictures for Figure 1: CIFAR-10's own, or those of shards, made as small."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from model.figure1_net import SIDE
from pipeline import InputError, ShardSet, read_cifar


@dataclass(frozen=True)
class Small:
    """pictures: (n, 32, 32, 3) uint8 RGB; labels: (n,) int64 below classes; name: what they are."""

    name: str
    pictures: np.ndarray
    labels: np.ndarray
    classes: int

    def digest(self) -> str:
        """SHA-256 of pixels and labels: the same pictures give the same, whichever archive they were in."""
        sums = hashlib.sha256(np.ascontiguousarray(self.pictures).data)
        sums.update(np.ascontiguousarray(self.labels).data)
        return sums.hexdigest()


def of_cifar(place: Path, most: int) -> Small:
    """CIFAR-10's 50,000 training pictures, or at most so many of them, evenly spread. Raises InputError."""
    pictures, labels = read_cifar(place)
    rows = _spread(len(labels), most)
    return Small("CIFAR-10", pictures[rows], labels[rows], 10)


def _spread(count: int, most: int) -> np.ndarray:
    """Numbers below count, at most so many, evenly from the first to the last."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)


def of_shards(folder: str, most: int) -> Small:
    """Training pictures of shards, at most so many of them, evenly spread over the split. Raises InputError."""
    shards = ShardSet(folder, "train")
    classes = len(shards.manifest.classes)
    if not len(shards):
        raise InputError(f"{folder} has no training pictures; make shards from a source that has some")
    ids = _spread(len(shards), most)
    pictures, labels = np.empty((len(ids), SIDE, SIDE, 3), np.uint8), np.empty(len(ids), np.int64)
    for row, sample in enumerate(tqdm(ids.tolist(), "pictures", leave=False, disable=None)):
        pictures[row], labels[row] = _small(shards, sample)
    return Small("pictures of shards", pictures, labels, classes)


def _small(shards: ShardSet, sample: int) -> tuple[np.ndarray, int]:
    """The central square of a picture at 32 x 32, and its label. Raises InputError."""
    jpeg, label = shards.read(sample)
    try:
        with Image.open(io.BytesIO(jpeg.tobytes())) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # libjpeg decodes to no less than twice the size asked for: a third of the time at 256
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)), label
    except (OSError, ValueError, SyntaxError) as error:
        path, key, _ = shards.place(sample)
        raise InputError(f"{path}: sample {key} cannot be decoded ({error}); make its shard again") from None
