from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools.pixel_sums import MOST_ROWS, empty_sums, read_sums, total_sums, write_sums


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


def test_pictures_of_any_size() -> None:
    """Only their colours are summed; also of one with more rows than are summed at once, all as bright as can be."""
    random, sums = np.random.default_rng(0), total_sums(1)
    sizes = [(16, 40), (33, 16), (2 * MOST_ROWS + 3, 16)]
    pictures = [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes] + [np.full((70_000, 16, 3), 255, np.uint8)]
    for some in (pictures[:1], pictures[1:]):
        part = empty_sums(1)
        for picture in some:
            part.add(picture)
        sums.merge(part)
    flat = np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(np.int64)
    np.testing.assert_array_equal(sums.picture[0, 0], flat.sum(axis=0))
    np.testing.assert_array_equal(sums.products, flat.T @ flat)
    assert (sums.images, sums.pixels) == (4, len(flat))


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
    assert (found.images, found.pixels, found.of) == (1, 256, {"train-000000.tar"})
    with np.load(tmp_path / "sums.npz") as file:
        np.savez(tmp_path / "older.npz", **{name: file[name] for name in file if name != "pixels"})
    older = read_sums(tmp_path / "older.npz", 16, "digest")
    assert older is not None
    assert older.pixels == 256
    assert read_sums(tmp_path / "sums.npz", 16, "another") is None
    assert read_sums(tmp_path / "sums.npz", 17, "digest") is None
    assert read_sums(tmp_path / "none.npz", 16, "digest") is None
