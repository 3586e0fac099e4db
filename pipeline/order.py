"""Which sample comes when: a pure function of (seed, epoch, number of samples), and of the shards for the windowed order."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import njit

from pipeline.philox import words

ORDER_STREAM = 0
SHARD_STREAM = 3

AT_ONCE = 1 << 14  # ids whose words are drawn at once: 1 MB, which stays in the processor's cache
FIRST_BITS = 9  # keys are spread over 512 places first: more would be written to than the processor has page addresses at hand
FEW = 64  # keys that share their first bits and are still sorted by insertion

Order = Literal["global", "windowed"]


def order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """Sample id at every position of an epoch: (samples,) int64, each id once.

    Every id draws a 64-bit word and the ids are sorted by it, which is a uniform permutation of the whole split
    (two equal words, chance 5e-8 for 1.28 million, are kept in id order).
    """
    return sorted_places(_drawn(seed, epoch, samples))


def _drawn(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The first two words of every id, one above the other: (samples,) uint64."""
    keys = np.empty(samples, np.uint64)
    for start in range(0, samples, AT_ONCE):
        part = keys[start : start + AT_ONCE]
        drawn = words(seed, epoch, ORDER_STREAM, np.arange(start, start + len(part)))
        part[:] = drawn[:, 0]
        part <<= np.uint64(32)
        part |= drawn[:, 1]
    return keys


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
    at = _drawn(seed, epoch, samples) >> np.uint64(32)
    at *= np.uint64(window)
    at += np.repeat(place << np.uint64(32), np.diff(first))
    at %= np.uint64(shards << 32)
    at <<= np.uint64(64 - (shards << 32).bit_length())  # over all 64 bits
    return sorted_places(at)


def order_of_shards(seed: int, epoch: int, shards: int) -> np.ndarray:
    """Shards in the order in which the window comes to them."""
    return np.argsort(words(seed, epoch, SHARD_STREAM, np.arange(shards))[:, 0], kind="stable").astype(np.int64)


def sorted_places(keys: np.ndarray) -> np.ndarray:
    """np.argsort(keys, kind="stable") of (n,) uint64, as (n,) int64; the keys are overwritten.

    Keys drawn evenly over all 64 bits are all but sorted when they are spread by their first log2(n) - 1 bits, which is done in two
    rounds so that what is written stays near. It is linear in n, and of 20 million takes a quarter of argsort's time.
    """
    kind = np.uint32 if len(keys) < 2**32 else np.int64  # half the memory to go through
    near, places, near_places = np.empty_like(keys), np.arange(len(keys), dtype=kind), np.empty(len(keys), kind)
    if _sort(keys, near, places, near_places, max(len(keys).bit_length() - 2 - FIRST_BITS, 1)):
        return places.astype(np.int64)
    return near_places[np.argsort(near, kind="stable")].astype(np.int64)  # not drawn evenly


@njit(nogil=True, error_model="numpy", cache=True)
def _sort(keys: np.ndarray, near: np.ndarray, places: np.ndarray, near_places: np.ndarray, bits: int) -> bool:
    """Sort keys, and places with them, by way of `near`, where they lie sorted by FIRST_BITS after it; False: too uneven to be sorted."""
    firsts, inner = np.zeros((1 << FIRST_BITS) + 1, np.int64), np.empty((1 << bits) + 1, np.int64)
    _spread(keys, places, near, near_places, 64 - FIRST_BITS, firsts, len(keys))
    for value in range(1 << FIRST_BITS):
        first, end = firsts[value], firsts[value + 1]
        if not _spread(near[first:end], near_places[first:end], keys[first:end], places[first:end], 64 - FIRST_BITS - bits, inner, FEW):
            return False
        _insert(keys[first:end], places[first:end])
    return True


@njit(nogil=True, error_model="numpy", cache=True)
def _spread(keys: np.ndarray, places: np.ndarray, to_keys: np.ndarray, to_places: np.ndarray, low: int, ends: np.ndarray, most: int) -> bool:
    """Sort by the bits of the keys from `low` on, as many as `ends`, (2^bits + 1,) int64, is for, which then has where each value ends.

    False, and nothing written, where more than `most` keys share these bits.
    """
    mask, shift = np.uint64(len(ends) - 2), np.uint64(low)
    ends[:] = 0
    for key in keys:
        ends[np.int64((key >> shift) & mask) + 1] += 1
    if ends.max() > most:
        return False
    for value in range(1, len(ends)):
        ends[value] += ends[value - 1]
    at = ends[:-1].copy()
    for i in range(len(keys)):
        value = np.int64((keys[i] >> shift) & mask)
        to_keys[at[value]], to_places[at[value]] = keys[i], places[i]
        at[value] += 1
    return True


@njit(nogil=True, error_model="numpy", cache=True)
def _insert(keys: np.ndarray, places: np.ndarray) -> None:
    """Sort by insertion, which is quick where all keys are near their place."""
    for i in range(1, len(keys)):
        key, place, at = keys[i], places[i], i
        while at > 0 and keys[at - 1] > key:
            keys[at], places[at] = keys[at - 1], places[at - 1]
            at -= 1
        keys[at], places[at] = key, place
