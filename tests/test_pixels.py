"""Kernels of the CPU and torch's form for GPUs against the plain form: equal to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.augment import Augmentation, plain_batch, ten_views
from pipeline.cache import Cache
from pipeline.colour import read_colour_stats
from pipeline.draws import Draws, draw
from pipeline.feed import Part
from pipeline.pixels import CpuPixels, Decoded
from pipeline.pixels_gpu import GpuPixels
from pipeline.planes import rgb_of_planes
from pipeline.rows import PIXELS, mirror_row
from pipeline.shards import ShardSet
from pipeline.turbojpeg_planes import decode_planes

PAPER = Augmentation()
PROGRAM = Augmentation(crop=224, mean_window="centre", colour="stddev", divisor=1.1)
CPU = torch.device("cpu")
COUNT = 20


@pytest.fixture(scope="module")
def jpegs(made_shards: Path) -> list[np.ndarray]:
    shards = ShardSet(made_shards, "train")
    return [shards.read(i)[0] for i in range(COUNT)]


@pytest.fixture(scope="module")
def planes(jpegs: list[np.ndarray]) -> np.ndarray:
    out = np.empty((COUNT, 256 * 256 * 3 // 2), np.uint8)
    for jpeg, row in zip(jpegs, out, strict=True):
        decode_planes(jpeg, row, 256)
    return out


def pixels_of(name: str, augmentation: Augmentation, mean: np.ndarray, kind: Decoded, threads: int = 3) -> Any:
    """GpuPixels on the CPU: the same torch operators, and the plain form of its kernel."""
    return CpuPixels(augmentation, mean, kind, threads) if name == "cpu" else GpuPixels(augmentation, mean, kind, CPU)


def part_of(draws: Draws, shift: np.ndarray, slots: np.ndarray, missing: np.ndarray) -> Part:
    ids = np.arange(len(slots))
    return Part(ids, ids, ids, draws, shift, slots, draws, shift, None, missing)


@pytest.mark.parametrize("count", [1, PIXELS - 1, PIXELS, 2 * PIXELS + 3, 227])
def test_a_mirrored_row(count: int) -> None:
    row = np.random.default_rng(count).integers(0, 256, 3 * count, dtype=np.uint8)
    out = np.empty_like(row)
    mirror_row(out, row)
    np.testing.assert_array_equal(out.reshape(-1, 3), row.reshape(-1, 3)[::-1])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("augmentation", [PAPER, PROGRAM], ids=["paper", "program"])
@pytest.mark.parametrize("kind", ["windows", "rgb", "yuv420", "yuv420 uncached"])
def test_equals_the_plain_form(
    made_shards: Path, jpegs: list[np.ndarray], planes: np.ndarray, name: str, augmentation: Augmentation, kind: Any
) -> None:
    """From DALI's windows; and from a cache that holds some of the pictures, in slots of another order, beside decoded ones."""
    stats = read_colour_stats(made_shards, ShardSet(made_shards, "train").digest, 256)
    draws = draw(5, 1, np.arange(COUNT), 256 - augmentation.crop + 1)
    shift = stats.shift(draws.normals, augmentation.colour, 0.1)
    windows, finished = plain_batch(jpegs, draws, shift, stats.mean_image, augmentation)
    pixels = pixels_of(name, augmentation, stats.mean_image, kind.split()[0])
    unmirrored = np.where(draws.flip[:, None, None, None], windows[:, :, ::-1], windows)
    kept, loose = np.arange(0, COUNT, 3), np.setdiff1d(np.arange(COUNT), np.arange(0, COUNT, 3))
    if kind == "windows":
        cache, decoded = None, torch.from_numpy(unmirrored.copy())
        part = part_of(draws, shift, np.full(COUNT, -1), np.arange(COUNT))
    elif kind == "yuv420 uncached":
        cache, decoded = None, torch.from_numpy(planes.copy())
        part = part_of(draws, shift, np.full(COUNT, -1), np.arange(COUNT))
    else:
        pictures = planes if kind == "yuv420" else rgb_of_planes(planes, 256).reshape(COUNT, -1)
        slots = np.full(COUNT, -1)
        slots[kept] = np.arange(len(kept))[::-1]
        store: Any = np.ascontiguousarray(pictures[kept[::-1]])
        cache = Cache(torch.from_numpy(store) if name == "gpu" else store, np.zeros(len(kept), np.int32))
        part, decoded = part_of(draws, shift, slots, loose), torch.from_numpy(np.ascontiguousarray(pictures[loose]))
    cut = pixels.windows(part, decoded, cache)
    np.testing.assert_array_equal(cut.numpy(), unmirrored.reshape(COUNT, -1))
    for out, expected in (("uint8", windows.transpose(0, 3, 1, 2)), ("float32", finished)):
        np.testing.assert_array_equal(pixels.finish(cut.clone(), draws, shift, out).numpy(), expected)
        if not (kind == "windows" and name == "gpu" and out == "float32"):  # there DALI finishes, see test_graph
            again = decoded if decoded is None else decoded.clone()
            np.testing.assert_array_equal(pixels.batch(part, again, cache, out).numpy(), expected)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_windows_that_came_from_another_rank_have_numbers_behind_them(name: str) -> None:
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 255, (40, 40, 3)).astype(np.float32)
    windows = rng.integers(0, 256, (6, 32 * 32 * 3 + 16), dtype=np.uint8)
    draws, shift = draw(0, 0, np.arange(6), 9), rng.normal(size=(6, 3)).astype(np.float32)
    out = pixels_of(name, Augmentation(crop=32), mean, "windows").finish(torch.from_numpy(windows), draws, shift, "float32").numpy()
    for k in range(6):
        mean_of_it = mean[draws.y[k] : draws.y[k] + 32, draws.x[k] : draws.x[k] + 32]
        finished = windows[k, :-16].reshape(32, 32, 3).astype(np.float32) - mean_of_it + shift[k]
        expected = finished[:, :: -1 if draws.flip[k] else 1].transpose(2, 0, 1)
        np.testing.assert_array_equal(out[k], expected)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_mean_window_moves_with_the_crop_and_mirrors_with_it(name: str) -> None:
    """A picture that equals the mean image is zero everywhere, wherever it is cropped."""
    mean = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.float32)
    draws = draw(0, 0, np.arange(8), 30)
    windows = np.stack([mean[y : y + 227, x : x + 227] for x, y in zip(draws.x, draws.y, strict=True)]).astype(np.uint8)
    out = pixels_of(name, PAPER, mean, "windows").finish(torch.from_numpy(windows).flatten(1), draws, np.zeros((8, 3), np.float32), "float32")
    assert out.abs().max() == 0


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_ten_views_of_a_batch(name: str) -> None:
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    mean = rng.uniform(0, 255, (256, 256, 3)).astype(np.float32)
    views = pixels_of(name, PAPER, mean, "windows").ten_views(torch.from_numpy(pictures).flatten(1)).numpy()
    assert views.shape == (2, 10, 3, 227, 227)
    for k, (y, x, mirrored) in enumerate(ten_views(256, 227)):
        window = pictures[1, y : y + 227, x : x + 227].astype(np.float32) - mean[y : y + 227, x : x + 227]
        np.testing.assert_array_equal(views[1, k], (window[:, ::-1] if mirrored else window).transpose(2, 0, 1))


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    pixels = CpuPixels(Augmentation(crop=8), np.zeros((16, 16, 3), np.float32), "windows", 1)
    draws, shift = draw(0, 0, np.arange(4), 9), np.zeros((4, 3), np.float32)

    def batch(value: int) -> torch.Tensor:
        return pixels.finish(torch.full((4, 8 * 8 * 3), value, dtype=torch.uint8), draws, shift, "float32")

    first = batch(1)
    part_of_it = first[2, 0, :1]
    place = first.data_ptr()
    del first
    assert batch(2).data_ptr() != place
    assert part_of_it[0, 0] == 1
    del part_of_it
    assert place in {batch(3).data_ptr() for _ in range(3)}
