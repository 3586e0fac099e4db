from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.augment import Augmentation, training_draws
from pipeline.draws import draw

MANY = 60_000


@pytest.mark.parametrize(("offsets", "limit"), [(30, 58.3), (33, 62.5)])  # 227 and 224 of 256; 0.1 % points of chi-square
def test_window_offsets_are_uniform_to_the_ends(offsets: int, limit: float) -> None:
    draws = draw(0, 0, np.arange(MANY), offsets)
    for drawn in (draws.x, draws.y):
        counts = np.bincount(drawn, minlength=offsets)
        assert len(counts) == offsets
        assert counts[0] / counts.mean() == pytest.approx(1, abs=0.1)
        assert counts[-1] / counts.mean() == pytest.approx(1, abs=0.1)
        assert ((counts - MANY / offsets) ** 2 / (MANY / offsets)).sum() < limit


def test_x_y_and_flip_are_independent() -> None:
    draws = draw(0, 0, np.arange(MANY), 30)
    numbers = np.stack((draws.x, draws.y, draws.flip, draws.normals[:, 0]))
    correlation = np.corrcoef(numbers) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(MANY)
    assert draws.flip.mean() == pytest.approx(0.5, abs=0.01)


def test_normals_are_standard_and_independent() -> None:
    normals = draw(0, 0, np.arange(MANY), 30).normals
    assert normals.shape == (MANY, 3)
    np.testing.assert_allclose(normals.mean(axis=0), 0, atol=4 / np.sqrt(MANY))
    np.testing.assert_allclose(np.cov(normals.T), np.eye(3), atol=0.03)
    for value, share in ((1.0, 0.8413), (2.0, 0.9772), (-1.0, 0.1587)):
        np.testing.assert_allclose((normals < value).mean(axis=0), share, atol=0.006)


def test_pure_function_of_seed_epoch_and_id() -> None:
    some = draw(9, 3, np.array([5, 70_000]), 30)
    many = draw(9, 3, np.arange(70_001), 30)
    for name in ("x", "y", "flip", "normals"):
        np.testing.assert_array_equal(getattr(some, name), getattr(many, name)[[5, 70_000]])
    other = draw(9, 4, np.arange(1000), 30)
    assert (other.x != many.x[:1000]).mean() > 0.9


def test_golden() -> None:
    """The pictures of a run under way must not change with a new version."""
    draws = draw(7, 3, np.arange(4), 30)
    assert draws.x.tolist() == [28, 24, 19, 18]
    assert draws.y.tolist() == [14, 29, 16, 21]


def test_without_crops_or_flips_the_rest_is_drawn_as_before() -> None:
    ids = np.arange(500)
    a, size = Augmentation(crop=227), 256
    kinds = [replace(a, crops=crops, flips=flips) for crops in (True, False) for flips in (True, False)]
    both, flips, crops, none = (training_draws(kind, size, 3, 1, ids, ids) for kind in kinds)
    assert np.array_equal(both.x, draw(3, 1, ids, 30).x)
    assert not flips.flip.any()
    assert not none.flip.any()
    assert np.array_equal(crops.flip, both.flip)
    for centred in (crops, none):
        assert set(centred.x) == set(centred.y) == {14}
    assert np.array_equal(flips.x, both.x)
    for one in (flips, crops, none):
        assert np.array_equal(one.normals, both.normals)
