from __future__ import annotations

import numpy as np
import pytest

from pipeline.order import ORDER_STREAM, order, order_of_shards, sorted_places, windowed_order
from pipeline.philox import words


def plainly(seed: int, epoch: int, samples: int) -> np.ndarray:
    drawn = words(seed, epoch, ORDER_STREAM, np.arange(samples)).astype(np.uint64)
    return np.argsort((drawn[:, 0] << np.uint64(32)) | drawn[:, 1], kind="stable")


def windowed_plainly(seed: int, epoch: int, first: np.ndarray, window: int) -> np.ndarray:
    shards = len(first) - 1
    place = np.empty(shards, np.uint64)
    place[order_of_shards(seed, epoch, shards)] = np.arange(shards)
    drawn = words(seed, epoch, ORDER_STREAM, np.arange(first[-1]))[:, 0].astype(np.uint64)
    at = (np.repeat(place, np.diff(first)) << np.uint64(32)) + np.uint64(window) * drawn
    return np.argsort(at % np.uint64(shards << 32), kind="stable")


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 511, 512, 513, 2047, 2048, 16384, 16385, 100_003])
def test_the_order_is_that_of_a_stable_sort(samples: int) -> None:
    found = order(5, 3, samples)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, plainly(5, 3, samples))


@pytest.mark.parametrize(
    "sizes",
    [[8] * 6, [2000] * 50, [1] * 500 + [20_000], [20_000] + [1] * 3, [5] * 1025],
    ids=["six", "fifty", "one large", "one large first", "many"],
)
@pytest.mark.parametrize("window", [1, 2, 16])
def test_the_windowed_order_is_that_of_a_stable_sort(sizes: list[int], window: int) -> None:
    first = np.cumsum([0, *sizes])
    plain = windowed_plainly(1, 2, first, window) if window < len(sizes) else plainly(1, 2, int(first[-1]))
    np.testing.assert_array_equal(windowed_order(1, 2, first, window), plain)


@pytest.mark.parametrize("case", ["equal", "few values", "small", "rising", "falling", "one far"])
def test_keys_that_are_not_drawn_evenly_are_sorted_too(case: str) -> None:
    rng = np.random.default_rng(0)
    keys = {
        "equal": np.zeros(5000, np.uint64),
        "few values": rng.integers(0, 5, 5000, dtype=np.uint64),
        "small": rng.integers(0, 2**40, 5000, dtype=np.uint64),
        "rising": np.arange(5000, dtype=np.uint64) << np.uint64(51),
        "falling": np.arange(5000, dtype=np.uint64)[::-1] << np.uint64(51),
        "one far": np.append(rng.integers(0, 9, 5000, dtype=np.uint64), np.uint64(2**64 - 1)),
    }[case]
    np.testing.assert_array_equal(sorted_places(keys.copy()), np.argsort(keys, kind="stable"))
