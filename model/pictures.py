"""Where the pictures of a run come from: the loaders of its recipe, for its layout."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from model.layout import Layout
from model.recipe import Recipe
from pipeline import Augmentation, CacheSettings, ImageLoader, Skipped


@dataclass(frozen=True)
class Source:
    """Shards, and how they are read; what one machine needs and another may not, and so is in no recipe.

    shards: folder or URL. threads: decoding threads of a rank. local, local_gb: of a URL, the folder that shards are fetched
    into, and the most they may take of it (10^9 bytes). prefetch: batches decoded ahead.
    """

    shards: str
    threads: int
    on_bad_sample: Literal["stop", "skip"] = "stop"
    local: Path | None = None
    local_gb: float | None = None
    prefetch: int = 2

    def common(self, layout: Layout) -> dict[str, Any]:
        """What the loaders of both splits are told."""
        return {
            "rank": layout.rank,
            "world": layout.world,
            "group": layout.picture_group,
            "machine": layout.machine_group,
            "device": layout.device,
            "threads": self.threads,
            "prefetch": self.prefetch,
            "on_bad_sample": self.on_bad_sample,
            "local": self.local,
            "local_gb": self.local_gb,
        }


def augmentation(recipe: Recipe, epoch: int = 0) -> Augmentation:
    """A recipe's picture settings in an epoch; from colour_stop_epoch on neither noise nor the division that goes with it."""
    d = recipe.data
    colour = d.colour_stop_epoch is None or epoch < d.colour_stop_epoch
    return Augmentation(
        crop=recipe.model.input,
        mean_window=d.mean_window,
        colour=d.colour if colour else "none",
        sigma=d.sigma,
        divisor=d.divisor if colour else 1.0,
        window_shared_by=d.window_shared_by,
        crops=d.crops,
        flips=d.flips,
        scale=d.scale,
    )


def train_loader(source: Source, recipe: Recipe, layout: Layout, epoch: int) -> ImageLoader:
    d = recipe.data
    return ImageLoader(
        source.shards,
        "train",
        batch=recipe.train.batch,
        augmentation=augmentation(recipe, epoch),
        seed=recipe.train.seed,
        order=d.order,
        window=d.window,
        decoder=d.decoder,
        cache=CacheSettings(d.cache, d.cache_pixels, d.cache_limit_gb, _kept_free_gb(recipe, layout)),
        **source.common(layout),
    )


def _kept_free_gb(recipe: Recipe, layout: Layout) -> float:
    """Memory that a cache must leave to the net of each rank: 2 GB, and 80 MB a picture of its batch for what the layers keep."""
    return 2.0 + 0.08 * recipe.train.batch / layout.data_count


def default_batch(recipe: Recipe, layout: Layout, views: str) -> int:
    """Pictures at a time over all devices, see views.VIEWS: the fewer the more is shown of each."""
    return max(layout.world, recipe.train.batch // {"1": 1, "10": 4}.get(views, 8))


def validation_loader(
    source: Source, recipe: Recipe, layout: Layout, views: int, batch: int | None = None, split: Literal["val", "test"] = "val"
) -> ImageLoader:
    """The validation or test split for `layout`: the centre view, or the ten of the paper. Never cached: it is read once an epoch."""
    batch = batch or default_batch(recipe, layout, str(views))
    kind: Literal["centre", "ten"] = "centre" if views == 1 else "ten"
    return ImageLoader(
        source.shards, split, batch=batch, views=kind, augmentation=augmentation(recipe), decoder=recipe.data.decoder, **source.common(layout)
    )


SKIPPED = "skipped.jsonl"


def list_skipped(folder: Path, skipped: list[Skipped]) -> list[Skipped]:
    """Append to skipped.jsonl of a run, a line a picture, those that no rank has listed yet; these are returned."""
    if not skipped:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / SKIPPED, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ranks find the same picture in different epochs
        file.seek(0)
        whole = file.read().splitlines(keepends=True)
        torn = b"\n" if whole and not whole[-1].endswith(b"\n") else b""  # a rank was killed while it wrote
        listed = {(line["split"], line["id"]) for line in map(json.loads, (text for text in whole if text.endswith(b"}\n")))}
        new = [one for one in skipped if (one.split, one.id) not in listed]
        file.write(torn + b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in new))
        file.flush()
    return new


def count_skipped(folder: Path) -> int:
    """Pictures listed in skipped.jsonl."""
    path = folder / SKIPPED
    return path.read_bytes().count(b"}\n") if path.exists() else 0
