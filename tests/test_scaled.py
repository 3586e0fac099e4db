"""Scales and windows drawn for pictures of any aspect, and the plain form of their resizing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.augment import Augmentation, training_draws
from pipeline.draws import CENTRE, Draws, fixed
from pipeline.scaled import offsets, plain_window, regions, resized

SMALL = Augmentation(crop=40, mean_window="channel", scale=(40, 90))
MANY = 60_000


@pytest.mark.parametrize(("scale", "limit"), [((256, 512), 331.0), ((40, 90), 86.7), ((384, 384), 1.0)])  # 0.1 % points of chi-square
def test_scales_are_uniform_to_the_ends(scale: tuple[int, int], limit: float) -> None:
    ids = np.arange(4 * MANY)
    sides = training_draws(replace(SMALL, scale=scale), 64, 1, 0, ids, ids).sides
    assert sides is not None
    counts = np.bincount(sides - scale[0])
    assert len(counts) == scale[1] - scale[0] + 1
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < limit
    assert counts[[0, -1]] / counts.mean() == pytest.approx([1, 1], abs=0.13)


@pytest.mark.parametrize(("height", "width", "side", "rows", "columns"), [(512, 700, 256, 33, 127), (900, 512, 300, 304, 77), (512, 512, 224, 1, 1)])
def test_offsets_are_uniform_over_all_of_the_resized_picture(height: int, width: int, side: int, rows: int, columns: int) -> None:
    ids = np.arange(MANY)
    draws = replace(training_draws(replace(SMALL, crop=224, scale=(224, 512)), 512, 1, 0, ids, ids), sides=np.full(MANY, side))
    found = offsets(np.tile([height, width], (MANY, 1)), draws, 224)
    for drawn, count in zip(found.T, (rows, columns), strict=True):
        counts = np.bincount(drawn)
        assert len(counts) == count
        assert ((counts - MANY / count) ** 2 / (MANY / count)).sum() < count + 4 * np.sqrt(2 * count)
        assert counts[[0, -1]] / counts.mean() == pytest.approx([1, 1], abs=0.3)


def test_scale_place_flip_and_colour_are_independent() -> None:
    ids = np.arange(MANY)
    d = training_draws(SMALL, 64, 0, 0, ids, ids)
    assert d.sides is not None
    correlation = np.corrcoef(np.stack((d.sides, d.x, d.y, d.flip, d.normals[:, 0]))) - np.eye(5)
    assert np.abs(correlation).max() < 4 / np.sqrt(MANY)
    squares = training_draws(replace(SMALL, scale=None, crop=33), 64, 0, 0, ids, ids)
    assert np.array_equal(d.x * 32 >> 32, squares.x)  # the same words as without a scale
    assert np.array_equal(d.flip, squares.flip)


def test_golden() -> None:
    """The pictures of a run under way must not change with a new version."""
    ids = np.arange(4)
    draws = training_draws(Augmentation(crop=224, mean_window="channel", scale=(256, 512)), 512, 7, 3, ids, ids)
    assert draws.sides is not None
    assert draws.sides.tolist() == [338, 498, 316, 339]
    assert offsets(np.tile([512, 683], (4, 1)), draws, 224).tolist() == [[54, 216], [273, 362], [50, 131], [84, 137]]


def test_central_windows_and_the_longer_side() -> None:
    sizes = np.array([[64, 64], [64, 97], [150, 64], [65, 64], [64, 101]])
    for side, crop in ((64, 40), (65, 40), (90, 90), (41, 40), (63, 63)):
        draws = fixed(len(sizes), CENTRE, CENTRE, side)
        after = resized(sizes, np.full(len(sizes), side))
        assert after.min(axis=1).tolist() == [side] * len(sizes)
        assert np.abs(after / side - sizes / 64).max() <= 0.5 / side
        assert offsets(sizes, draws, crop).tolist() == ((after - crop) // 2).tolist()


def test_without_crops_windows_are_central_at_the_scale_drawn() -> None:
    ids = np.arange(24)
    drawn, central = (training_draws(replace(SMALL, crops=crops), 64, 3, 0, ids, ids) for crops in (True, False))
    assert set(central.x) == set(central.y) == {CENTRE}
    assert np.array_equal(np.array(drawn.sides), np.array(central.sides))
    shared = training_draws(replace(SMALL, window_shared_by=8), 64, 3, 0, ids, ids)
    assert [len(set(np.array(shared.sides)[:8])), len(set(shared.x[:8])), len(set(shared.flip[:8]))] == [1, 1, 1]
    assert len(set(np.array(shared.sides).tolist())) > 1


def test_the_plain_form_is_pillows_filter_away_from_the_edges() -> None:
    """Pillow rounds between the axes, and leaves out what lies beyond the picture where we repeat its edge."""
    random = np.random.default_rng(0)
    for height, width, side in ((64, 97, 50), (150, 64, 90), (64, 64, 33), (64, 300, 64)):
        picture = random.integers(0, 256, (height, width, 3), np.uint8)
        words = (random.integers(2**29, 2**31, 1), random.integers(2**29, 2**31, 1))
        draws = Draws(*words, np.array([False]), np.zeros((1, 3)), np.array([side]))
        (start,), (end,) = regions(np.array([[height, width]]), draws, 24)
        pillow = Image.fromarray(picture).resize((24, 24), Image.Resampling.BILINEAR, box=(start[1], start[0], end[1], end[0]))
        difference = np.abs(plain_window(picture, draws, 24).astype(int) - np.asarray(pillow).astype(int))
        assert difference.max() <= 1
