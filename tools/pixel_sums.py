"""Exact sums over the pixels of pictures: what the colour statistics and the mean image are computed from."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.atomic import atomic_file

NAME = "sums.npz"  # beside the shards: the sums of all training pictures as make_shards saw them


@dataclass
class Sums:
    """Integer sums over pixels 0..255 of pictures of one size.

    picture: (size, size, 3) int32, enough for 8 million pictures, and quicker to add to; or int64, what `total_sums` begins with.
    products: (3, 3) int64, sum of x x^T. of: names of the shards whose pictures are in it.
    """

    picture: np.ndarray
    products: np.ndarray
    images: int = 0
    of: set[str] = field(default_factory=set)

    def add(self, pixels: np.ndarray) -> None:
        """Add one picture, (size, size, 3) uint8, contiguous."""
        assert pixels.shape == self.picture.shape, f"{pixels.shape} is not {self.picture.shape}"
        assert pixels.dtype == np.uint8, f"uint8 wanted, not {pixels.dtype}"
        from tools.pixel_sums_kernel import add  # not above: Numba is for who adds, not for who reads sums

        add(pixels.reshape(len(pixels), -1), self.picture.reshape(len(pixels), -1), self.products)
        self.images += 1

    def merge(self, other: Sums) -> None:
        self.picture += other.picture
        self.products += other.products
        self.images += other.images
        self.of |= other.of


def empty_sums(size: int) -> Sums:
    """To add pictures to."""
    return Sums(np.zeros((size, size, 3), np.int32), np.zeros((3, 3), np.int64))


def total_sums(size: int) -> Sums:
    """To merge other sums into."""
    return Sums(np.zeros((size, size, 3), np.int64), np.zeros((3, 3), np.int64))


def write_sums(path: Path, sums: Sums, manifest_sha256: str) -> None:
    """manifest_sha256: of the set of shards, empty while it is being made."""
    with atomic_file(path) as file:
        np.savez(
            file,
            picture=sums.picture,
            products=sums.products,
            images=np.int64(sums.images),
            of=np.array(sorted(sums.of), "U20"),
            manifest_sha256=np.array(manifest_sha256),
        )


def read_sums(path: Path, size: int, manifest_sha256: str) -> Sums | None:
    """None where there are none, or those of other shards, or damaged ones: then they are to be computed anew."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        with np.load(path, allow_pickle=False) as file:
            if str(file["manifest_sha256"]) != manifest_sha256:
                return None
            sums = Sums(file["picture"], file["products"], int(file["images"]), set(file["of"].tolist()))
    except Exception:  # of a damaged file NumPy and zipfile raise nearly anything
        return None
    whole = sums.picture.shape == (size, size, 3) and sums.products.shape == (3, 3) and sums.picture.dtype == sums.products.dtype == np.int64
    return sums if whole else None
