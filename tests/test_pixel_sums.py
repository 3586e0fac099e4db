from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools.pixel_sums import empty_sums, read_sums, total_sums, write_sums


@pytest.mark.parametrize("size", [16, 17, 256])
def test_equal_to_numpy(size: int) -> None:
    """To the last unit, for noise and for the brightest picture that there is."""
    pictures = np.random.default_rng(size).integers(0, 256, (5, size, size, 3), np.uint8)
    pictures[-1] = 255
    sums = empty_sums(size)
    for picture in pictures:
        sums.add(picture)
    flat = pictures.reshape(-1, 3).astype(np.int64)
    np.testing.assert_array_equal(sums.products, flat.T @ flat)
    np.testing.assert_array_equal(sums.picture, pictures.sum(axis=0, dtype=np.int64))
    assert sums.images == 5


def test_the_largest_picture() -> None:
    sums = empty_sums(1024)
    sums.add(np.full((1024, 1024, 3), 255, np.uint8))
    assert sums.products.tolist() == [[255 * 255 * 1024 * 1024] * 3] * 3


def test_written_and_read(tmp_path: Path) -> None:
    sums, part = total_sums(16), empty_sums(16)
    part.add(np.full((16, 16, 3), 7, np.uint8))
    part.of.add("train-000000.tar")
    sums.merge(part)
    write_sums(tmp_path / "sums.npz", sums, "digest")
    found = read_sums(tmp_path / "sums.npz", 16, "digest")
    assert found is not None
    np.testing.assert_array_equal(found.picture, sums.picture)
    np.testing.assert_array_equal(found.products, sums.products)
    assert (found.images, found.of) == (1, {"train-000000.tar"})
    assert read_sums(tmp_path / "sums.npz", 16, "another") is None
    assert read_sums(tmp_path / "sums.npz", 17, "digest") is None
    assert read_sums(tmp_path / "none.npz", 16, "digest") is None
