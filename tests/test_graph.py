"""DALI against the plain form, pixel by pixel, and the distributions that its graph must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.augment import Augmentation, cut_ten_views, finish, plain_batch, ten_views
from pipeline.colour import read_colour_stats
from pipeline.draws import Draws, draw
from pipeline.graph import Fed, Out, build_graph, to_torch
from pipeline.shards import ShardSet

PAPER = Augmentation()
PROGRAM = Augmentation(crop=224, mean_window="centre", colour="stddev", divisor=1.1)
# DALI and Pillow decode to the same bytes, and sum in the same order; dividing, DALI multiplies by a rounded 1 / 1.1.
BOUND = {"paper": 0.0, "program": 1e-4}


def run_graph(fed: Fed, out: Out, augmentation: Augmentation, mean: np.ndarray) -> np.ndarray:
    feeds = iter([fed])
    pipe = build_graph(
        lambda: next(feeds),
        out=out,
        augmentation=augmentation,
        mean_image=mean,
        batch=len(fed.jpegs),
        threads=2,
        device="cpu",
        device_id=None,
        prefetch=1,
    )
    return to_torch(pipe.run()[0], torch.device("cpu")).numpy()


@pytest.fixture(scope="module")
def material(made_shards: Path) -> tuple[list[np.ndarray], np.ndarray, object]:
    shards = ShardSet(made_shards, "train")
    stats = read_colour_stats(made_shards, shards.digest, 256)
    return [shards.read(i)[0] for i in range(len(shards))], stats.mean_image, stats


@pytest.mark.parametrize(("name", "augmentation"), [("paper", PAPER), ("program", PROGRAM)])
def test_equals_the_plain_form(material: tuple, name: str, augmentation: Augmentation) -> None:
    jpegs, mean, stats = material
    draws = draw(1, 2, np.arange(len(jpegs)), 256 - augmentation.crop + 1)
    assert draws.flip.any()
    assert not draws.flip.all()
    shift = stats.shift(draws.normals, augmentation.colour, 0.1)
    windows, pictures = plain_batch(jpegs, draws, shift, mean, augmentation)
    fed = Fed(jpegs, draws, shift)
    np.testing.assert_array_equal(run_graph(fed, "uint8", augmentation, mean), windows)
    assert np.abs(run_graph(fed, "float32", augmentation, mean) - pictures).max() <= BOUND[name]
    finished = finish(torch.from_numpy(windows), draws, torch.from_numpy(shift), torch.from_numpy(mean), augmentation)
    assert np.abs(finished.numpy() - pictures).max() == 0.0


@pytest.mark.parametrize("crop", [227, 224, 256])
def test_every_offset_comes_back_exactly(material: tuple, crop: int) -> None:
    """The trap of DALI's default: a uniform position halves the two edge offsets. Each integer offset is fed, and found."""
    jpegs, mean, _ = material
    last = 256 - crop
    offsets = np.arange(last + 1)
    draws = Draws(offsets, offsets[::-1].copy(), np.zeros(last + 1, bool), np.zeros((last + 1, 3)))
    same = [jpegs[0]] * (last + 1)
    augmentation = Augmentation(crop=crop)
    windows, _ = plain_batch(same, draws, np.zeros((last + 1, 3), np.float32), mean, augmentation)
    fed = Fed(same, draws, np.zeros((last + 1, 3), np.float32))
    np.testing.assert_array_equal(run_graph(fed, "uint8", augmentation, mean), windows)


def test_mean_window_moves_with_the_crop_and_mirrors_with_it(material: tuple) -> None:
    """A picture that equals the mean image is zero everywhere, wherever it is cropped."""
    rng = np.random.default_rng(0)
    mean = rng.integers(0, 256, (256, 256, 3)).astype(np.float32)
    draws = draw(0, 0, np.arange(8), 30)
    windows = []
    for x, y, flip in zip(draws.x, draws.y, draws.flip, strict=True):
        window = mean[y : y + 227, x : x + 227]
        windows.append(window[:, ::-1] if flip else window)
    out = finish(torch.from_numpy(np.stack(windows).astype(np.uint8)), draws, torch.zeros(8, 3), torch.from_numpy(mean), PAPER)
    assert out.abs().max() == 0


def test_ten_views_are_the_papers() -> None:
    assert ten_views(256, 224)[:5] == [(0, 0, False), (0, 32, False), (32, 0, False), (32, 32, False), (16, 16, False)]
    assert [(y, x) for y, x, mirrored in ten_views(256, 227) if mirrored] == [(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)]


def test_ten_views_of_a_batch() -> None:
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    mean = rng.uniform(0, 255, (256, 256, 3)).astype(np.float32)
    views = cut_ten_views(torch.from_numpy(pictures), torch.from_numpy(mean), PAPER).numpy()
    assert views.shape == (2, 10, 3, 227, 227)
    for k, (y, x, mirrored) in enumerate(ten_views(256, 227)):
        window = pictures[1, y : y + 227, x : x + 227].astype(np.float32) - mean[y : y + 227, x : x + 227]
        np.testing.assert_array_equal(views[1, k], (window[:, ::-1] if mirrored else window).transpose(2, 0, 1))
