"""What it takes to show a net a picture that is in no shard as ImageLoader shows those that are in one."""

from __future__ import annotations

import numpy as np

from pipeline.augment import Augmentation, central_mean, centre_offset, mean_for, ten_views
from pipeline.colour import read_colour_stats
from pipeline.settings import Views, check_shape
from pipeline.shards import ShardSet


def mean_image(shards: ShardSet, augmentation: Augmentation | None = None) -> np.ndarray:
    """The mean that a net trained with `augmentation` subtracts, (size, size, 3) float32 grey levels 0..255, RGB; size: pixels of the
    squares that views are cut from, with a scale those of its middle. Raises InputError."""
    augmentation = augmentation or Augmentation()
    check_shape(shards, augmentation)
    return mean_for(augmentation, read_colour_stats(shards.folder, shards.digest, shards.manifest.settings.size))


def views_of(picture: np.ndarray, mean: np.ndarray, augmentation: Augmentation, views: Views) -> np.ndarray:
    """The "centre" view of a picture, or its "ten": (1 or 10, 3, crop, crop) float32 grey levels, less the mean; the last is the
    tenth of pipeline.augment.ten_views, and the fifth is the centre.

    picture: (size, size, 3) uint8 RGB; mean: of the same shape, see mean_image. Neither colour noise nor division, as in evaluation.
    """
    crop, middle = augmentation.crop, centre_offset(len(mean), augmentation.crop)
    places = ten_views(len(mean), crop) if views == "ten" else [(middle, middle, False)]
    found = []
    for y, x, mirrored in places:
        rows, columns, step = slice(y, y + crop), slice(x, x + crop), -1 if mirrored else 1
        less = mean[rows, columns][:, ::step] if augmentation.mean_window == "same" else central_mean(mean, crop)
        found.append((picture[rows, columns][:, ::step].astype(np.float32) - less).transpose(2, 0, 1))
    return np.stack(found)
