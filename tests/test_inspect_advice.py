"""What pipeline.inspect recommends for machines of all kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.arguments import read_arguments
from model.recipe import read_recipe
from pipeline.cache import Pixels, Room
from pipeline.inspect_advice import Needs, advise, duration
from pipeline.inspect_speed import Speeds
from pipeline.inspect_storage import Storage


def speeds_of(storage: Storage | None, cached: dict[Pixels, float]) -> Speeds:
    rates = {1: 1000.0, 2: 1950.0, 4: 2000.0}
    ahead = {1: 1900.0, 2: 1950.0, 4: 2000.0}
    return Speeds(torch.device("cpu"), 128, 227, storage=storage, float32=rates, prefetch=ahead, cached=cached)


def needs_of(gigabytes: float, free: float, room: float) -> Needs:
    """A million pictures; free: for files, room: for a cache, 10^9 bytes."""
    kinds: dict[Pixels, int] = {"rgb": 200_000, "yuv420": 100_000}
    rooms = {kind: Room(10**6, each, int(room * 1e9), "main memory") for kind, each in kinds.items()}
    return Needs(10**6, int(gigabytes * 1e9), 10**8, int(free * 1e9), rooms)


HARD_DISK, FLASH, MEMORY = Storage(4000, 90, 50_000, 25_000), Storage(40_000, 8000, 50_000, 25_000), Storage(9000, 1500, 2000, 25_000)
RATES: dict[Pixels, float] = {"rgb": 10_000, "yuv420": 9900}


@pytest.mark.parametrize(
    ("storage", "cached", "needs", "order", "cache", "pixels", "rate"),
    [
        (HARD_DISK, RATES, (25, 30, 1), "global", "none", "rgb", 1950),  # read once, then from memory
        (HARD_DISK, RATES, (25, 20, 1), "windowed", "none", "rgb", 1950),
        (Storage(1200, 90, 50_000, 25_000), RATES, (25, 20, 1), "windowed", "none", "rgb", 1200),
        (Storage(200, 90, 50_000, 25_000), RATES, (25, 20, 1), "global", "none", "rgb", 90),  # slow, but not of seeking
        (FLASH, RATES, (25, 20, 1), "global", "none", "rgb", 1950),
        (MEMORY, RATES, (25, 20, 1), "global", "none", "rgb", 1950),
        (None, RATES, (25, 20, 1), "global", "none", "rgb", 1950),
        (FLASH, RATES, (25, 20, 300), "global", "host", "rgb", 10_000),
        (FLASH, RATES, (25, 20, 150), "global", "host", "yuv420", 9900),  # only these all fit
        (HARD_DISK, RATES, (25, 20, 150), "global", "host", "yuv420", 9900),
        (HARD_DISK, RATES, (25, 20, 50), "windowed", "host", "yuv420", 1 / (0.5 / 9900 + 0.5 / 1950)),
        (FLASH, {"rgb": 10_000.0}, (25, 20, 150), "global", "host", "rgb", 1 / (0.75 / 10_000 + 0.25 / 1950)),
        (FLASH, {"rgb": 2100.0}, (25, 20, 300), "global", "none", "rgb", 1950),  # gains nothing
        (FLASH, {}, (25, 20, 300), "global", "none", "rgb", 1950),
    ],
)
def test_advice(storage: Storage | None, cached: dict[Pixels, float], needs: Any, order: str, cache: str, pixels: str, rate: float) -> None:
    found = advise(speeds_of(storage, cached), needs_of(*needs))
    assert (found.threads, found.prefetch, found.order, found.cache) == (2, 2, order, cache)  # 2 threads: within 5 % of 4
    assert cache == "none" or found.pixels == pixels
    assert found.rate == pytest.approx(rate)
    assert f"{rate:,.0f} images/s at most" in found.sentences[-1]
    assert duration(1e6 / rate) in found.sentences[-1]
    recipe = read_recipe("alexnet", read_arguments(found.options()).set)
    assert (recipe.data.cache, recipe.data.order) == (cache, order)


def test_prefetch_is_changed_for_a_gain_only() -> None:
    speeds = speeds_of(None, {})
    speeds.prefetch.update({1: 2500, 4: 2100})
    assert (speeds.best_prefetch, speeds.loader) == (2, 1950)
    speeds.prefetch[4] = 2200
    assert (speeds.best_prefetch, speeds.loader) == (4, 2200)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (5, 119, 150, 3600, 9000)] == ["5.0 s", "119.0 s", "2.5 minutes", "60.0 minutes", "2.5 hours"]
