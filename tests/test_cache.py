"""Decoded pictures kept: later epochs have the same bits without decoding; shared, divided, partial, and gone with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, on_ranks

from pipeline import Augmentation, CacheSettings, ImageLoader, InputError
from pipeline.cache import NOT_CACHED, Cache, free_memory, picture_bytes, room_for

SMALL = Augmentation(crop=64)
RGB = 256 * 256 * 3
KINDS = [("host", "rgb"), ("host", "yuv420"), ("device", "rgb"), ("device", "yuv420")]


def loader(shards: Path, **options: Any) -> ImageLoader:
    return ImageLoader(shards, "train", **{"batch": 10, "seed": 3, "threads": 2, "augmentation": SMALL, **options})


def epochs(one: ImageLoader, count: int) -> list[tuple[list[int], list[int], torch.Tensor]]:
    return [(b.ids.tolist(), b.labels.tolist(), b.images.clone()) for _ in range(count) for b in one]


def watch_reads(one: ImageLoader, read: list[int]) -> None:
    """Append to `read` every sample that the loader reads."""
    inner = one.shards.read

    def watched(sample: int) -> tuple[np.ndarray, int]:
        read.append(sample)
        return inner(sample)

    one.shards.read = watched  # type: ignore[method-assign]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for (ids, labels, images), (ids2, labels2, images2) in zip(found, expected, strict=True):
        assert (ids, labels) == (ids2, labels2)
        assert torch.equal(images, images2)


@pytest.mark.parametrize(("where", "pixels"), KINDS)
@pytest.mark.parametrize("part", [1.0, 0.4])
@pytest.mark.parametrize("out", ["float32", "uint8"])
def test_later_epochs_see_the_same_bits_and_decode_only_what_did_not_fit(made_shards: Path, where: Any, pixels: Any, part: float, out: Any) -> None:
    limit = part * 48 * picture_bytes(pixels, 256) / 1e9 + 1e-6
    cached = loader(made_shards, out=out, cache=CacheSettings(where, pixels, limit))
    kept = int(48 * part)
    read: list[int] = []
    watch_reads(cached, read)
    assert_same(epochs(cached, 1), epochs(loader(made_shards, out=out), 1))
    assert len(read) == 40  # an epoch is 4 batches of 10 of 48
    read.clear()
    assert_same(epochs(cached, 2), epochs(loader(made_shards, out=out, epoch=1), 2))
    again = [sample for sample in read if sample >= kept]
    first_time = [sample for sample in read if sample < kept]
    assert len(again) <= 2 * (48 - kept)
    assert len(first_time) <= 8  # those that the first epoch left out
    assert f"{kept} are kept" in cached.notes[0] or "all are kept" in cached.notes[0]


def test_what_was_asked_for_and_what_there_is_is_said_before_the_first_step(made_shards: Path) -> None:
    note = loader(made_shards, cache=CacheSettings("host", "rgb", 0.005)).notes[0]
    assert note.startswith("cache: 48 pictures need 0.01 GB of main memory, only 0.01 GB are free for it: 25 are kept (52 %), the others decoded")
    with pytest.raises(InputError, match=r"48 pictures need 0\.01 GB of main memory.*use cache: none"):
        loader(made_shards, cache=CacheSettings("host", "rgb", 1e-5))
    room = room_for(CacheSettings("host"), 10**9, 256, torch.device("cpu"))
    assert 0 < room.fit * RGB <= free_memory()


def test_a_slot_is_found_only_after_its_pixels_are_there() -> None:
    cache = Cache(np.zeros((5, 4), np.uint8), np.full(5, NOT_CACHED, np.int32), part=1, parts=2)
    ids = np.array([0, 1, 3, 9, 11])
    np.testing.assert_array_equal(cache.slots(ids), [-1, 0, 1, 4, -1])  # even ids are another rank's, 11 has no slot
    np.testing.assert_array_equal(cache.labels_of(ids), [-1] * 5)
    cache.put(np.array([1, 4]), np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.uint8), np.array([0, 7]))
    np.testing.assert_array_equal(cache.labels_of(ids), [-1, -1, 0, 7, -1])


# --- ranks of a machine


def ranks_epochs(rank: int, shards: str, where: Any, pixels: Any, columns: int, limit: float | None, batch: int) -> list[Any]:
    world = dist.get_world_size()
    pairs = [dist.new_group(list(range(first, first + columns))) for first in range(0, world, columns)]
    places: dict[str, Any] = {"rank": rank, "world": world, "group": pairs[rank // columns] if columns > 1 else None}
    machine = dist.new_group(list(range(world)))
    settings = CacheSettings(where, pixels, limit)
    one = ImageLoader(shards, "train", batch=batch, seed=3, threads=1, augmentation=SMALL, machine=machine, cache=settings, **places)
    read: list[int] = []
    watch_reads(one, read)
    batches = []
    for _ in range(3):
        batches += [(b.ids.tolist(), b.labels.tolist(), b.images.contiguous()) for b in one]
        dist.barrier()  # a rank that is an epoch ahead would decode what the other has not cached yet
    return [batches, read, one.notes]


CASES = {
    "host shared": ("host", "rgb", 2, 1, None, 12),
    "device of a pair": ("device", "yuv420", 2, 2, None, 12),
    "device divided over two pairs": ("device", "rgb", 4, 2, 13 * RGB / 1e9, 12),
    "device divided, ranks without a row": ("device", "yuv420", 2, 1, 25 * RGB / 2 / 1e9, 2),  # of two rows, both may be the other's
}


@pytest.mark.parametrize(("where", "pixels", "world", "columns", "limit", "batch"), CASES.values(), ids=CASES)
def test_a_machines_ranks_decode_each_picture_once(
    made_shards: Path, tmp_path: Path, where: Any, pixels: Any, world: int, columns: int, limit: float | None, batch: int
) -> None:
    expected = epochs(loader(made_shards, batch=batch), 3)  # 48 samples: an epoch has them all
    results = on_ranks(ranks_epochs, world, tmp_path, str(made_shards), where, pixels, columns, limit, batch)
    read = [sample for _, mine, _ in results for sample in mine]
    assert sorted(read) == list(range(48)), "each picture is read and decoded once by one of the ranks"
    for step, (ids, labels, images) in enumerate(expected):
        parts = [result[0][step] for result in results[::columns]]
        assert [i for p in parts for i in p[0]] == ids
        assert [label for p in parts for label in p[1]] == labels
        assert torch.equal(torch.cat([p[2] for p in parts]), images)
    if limit:
        assert f"divided over {world} ranks" in results[0][2][0]


HOLD = """
import sys, time
from pipeline import CacheSettings, ImageLoader
one = ImageLoader(sys.argv[1], "train", batch=12, threads=1, crop=64, cache=CacheSettings("host"))
list(one)
print("full", flush=True)
time.sleep(600)
"""


def test_nothing_is_left_after_sigkill(made_shards: Path) -> None:
    """The memory has no name in any file system, so the system frees it with the process, and the next one starts at once."""
    before = set(os.listdir(made_shards))
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(made_shards)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "full\n"
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "/memfd:decoded pictures (deleted)" in mapped
    assert "/dev/shm/" not in mapped
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert set(os.listdir(made_shards)) == before
    assert len(epochs(loader(made_shards, cache=CacheSettings("host")), 1)) == 4
