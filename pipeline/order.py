"""Which sample comes when: a pure function of (seed, epoch, number of samples), and of the shards for the windowed order."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.philox import words

ORDER_STREAM = 0
SHARD_STREAM = 3

Order = Literal["global", "windowed"]


def order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """Sample id at every position of an epoch: (samples,) int64, each id once.

    Every id draws a 64-bit word and the ids are sorted by it, which is a uniform permutation of the whole split
    (two equal words, chance 5e-8 for 1.28 million, are kept in id order by the stable sort).
    """
    drawn = words(seed, epoch, ORDER_STREAM, np.arange(samples)).astype(np.uint64)
    return np.argsort((drawn[:, 0] << np.uint64(32)) | drawn[:, 1], kind="stable").astype(np.int64)


def windowed_order(seed: int, epoch: int, first: np.ndarray, window: int) -> np.ndarray:
    """As `order`, but at any position the samples come from about `window` shards, which slide through the split.

    first: (shards + 1,) int64, the first sample id of every shard and the number of samples. Shards stand in a random
    circle; a sample of the shard at place r comes at r + u of the circle, u uniform over [0, window): so each place mixes
    `window` shards evenly, from the first sample to the last. The price of the circle: shards that reach over its end are
    read twice. Whatever the window, it is the order of shards that is random, and of samples among `window` shards.
    """
    shards, samples = len(first) - 1, int(first[-1])
    if window >= shards:
        return order(seed, epoch, samples)
    place = np.empty(shards, np.uint64)
    place[order_of_shards(seed, epoch, shards)] = np.arange(shards)
    drawn = words(seed, epoch, ORDER_STREAM, np.arange(samples))[:, 0].astype(np.uint64)
    at = (np.repeat(place, np.diff(first)) << np.uint64(32)) + np.uint64(window) * drawn
    return np.argsort(at % np.uint64(shards << 32), kind="stable").astype(np.int64)


def order_of_shards(seed: int, epoch: int, shards: int) -> np.ndarray:
    """Shards in the order in which the window comes to them."""
    return np.argsort(words(seed, epoch, SHARD_STREAM, np.arange(shards))[:, 0], kind="stable").astype(np.int64)
