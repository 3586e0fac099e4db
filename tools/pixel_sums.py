"""Exact sums over the pixels of pictures: what the colour statistics and the mean image are computed from."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.atomic import atomic_file
from pipeline.manifest import Settings

MOST_ROWS = 1024  # that the kernel adds at once
NAME = "sums.npz"  # beside the shards: the sums of all training pictures as make_shards saw them


@dataclass
class Sums:
    """Integer sums over pixels 0..255 of pictures of one size, or of any.

    picture: (size, size, 3) int32, enough for 8 million pictures, and quicker to add to; or int64, what `total_sums` begins with. Of
    pictures of any size, which have no mean image, (1, 1, 3) int64: the sum of all their pixels. products: (3, 3) int64, sum of
    x x^T. images, pixels: how many. of: names of the shards whose pictures are in it.
    """

    picture: np.ndarray
    products: np.ndarray
    images: int = 0
    pixels: int = 0
    of: set[str] = field(default_factory=set)

    def add(self, pixels: np.ndarray) -> None:
        """Add one picture, (height, width, 3) uint8, contiguous."""
        assert pixels.dtype == np.uint8, f"uint8 wanted, not {pixels.dtype}"
        from tools.pixel_sums_kernel import add  # not above: Numba is for who adds, not for who reads sums

        lines = pixels.reshape(len(pixels), -1)
        if len(self.picture) == 1:
            for some in np.split(lines, range(MOST_ROWS, len(lines), MOST_ROWS)):
                places = np.zeros(some.shape, np.int32)
                add(some, places, self.products)
                self.picture += places.reshape(-1, 3).sum(axis=0, dtype=np.int64)
        else:
            assert pixels.shape == self.picture.shape, f"{pixels.shape} is not {self.picture.shape}"
            add(lines, self.picture.reshape(lines.shape), self.products)
        self.images, self.pixels = self.images + 1, self.pixels + pixels.shape[0] * pixels.shape[1]

    def merge(self, other: Sums) -> None:
        self.picture += other.picture
        self.products += other.products
        self.images, self.pixels = self.images + other.images, self.pixels + other.pixels
        self.of |= other.of


def summed_side(settings: Settings) -> int:
    """Pixels of the side of the sums over pictures that are made so: 1 where these have no mean image."""
    return settings.size if settings.shape == "square" else 1


def empty_sums(side: int) -> Sums:
    """To add pictures to; side: see summed_side."""
    return Sums(np.zeros((side, side, 3), np.int32 if side > 1 else np.int64), np.zeros((3, 3), np.int64))


def total_sums(side: int) -> Sums:
    """To merge other sums into."""
    return Sums(np.zeros((side, side, 3), np.int64), np.zeros((3, 3), np.int64))


def write_sums(path: Path, sums: Sums, manifest_sha256: str) -> None:
    """manifest_sha256: of the set of shards, empty while it is being made."""
    with atomic_file(path) as file:
        np.savez(
            file,
            picture=sums.picture,
            products=sums.products,
            images=np.int64(sums.images),
            pixels=np.int64(sums.pixels),
            of=np.array(sorted(sums.of), "U20"),
            manifest_sha256=np.array(manifest_sha256),
        )


def read_sums(path: Path, side: int, manifest_sha256: str) -> Sums | None:
    """None where there are none, or those of other shards, or damaged ones: then they are to be computed anew."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        with np.load(path, allow_pickle=False) as file:
            if str(file["manifest_sha256"]) != manifest_sha256:
                return None
            images = int(file["images"])
            pixels = int(file["pixels"]) if "pixels" in file else images * side * side  # older files are of squares
            sums = Sums(file["picture"], file["products"], images, pixels, set(file["of"].tolist()))
    except Exception:  # of a damaged file NumPy and zipfile raise nearly anything
        return None
    whole = sums.picture.shape == (side, side, 3) and sums.products.shape == (3, 3) and sums.picture.dtype == sums.products.dtype == np.int64
    return sums if whole else None
