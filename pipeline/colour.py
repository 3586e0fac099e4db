"""Colour statistics of the training set, and the colour shift of the paper (section 4.1, "Fancy PCA")."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.atomic import atomic_file
from pipeline.bounded import read_bounded
from pipeline.errors import InputError

STATISTICS_NAME, MEAN_NAME = "pca.json", "mean.npy"
Taken = Literal["decoded", "before-encoding"]
ColourRule = Literal["eigenvalue", "stddev", "none"]

_Three = tuple[float, float, float]


class Statistics(BaseModel):
    """pca.json. All numbers are of pixels as value / 255 * pixel_scale; rows of eigenvectors belong to eigenvalues in order, RGB."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    pixel_scale: float = Field(gt=0)  # 1.0: pixels of [0, 1]; 255.0: of 0..255. Without it the file is refused
    mean: _Three
    covariance: tuple[_Three, _Three, _Three]
    eigenvalues: _Three
    stddevs: _Three
    eigenvectors: tuple[_Three, _Three, _Three]
    pixels: int = Field(gt=0)
    images: int = Field(gt=0)
    manifest_sha256: str
    taken: Taken = "decoded"  # from the shards' pictures as they are decoded, or as make_shards had them before encoding
    sha256: str | None = None  # of the numbers above and of mean.npy, see sum_of; None in files of version 0.1.0

    def sum_of(self, mean_file: bytes) -> str:
        """SHA-256 of all numbers, as this JSON, and of mean.npy: a flipped bit in either would change every picture."""
        return hashlib.sha256(self.model_dump_json(exclude={"sha256", "manifest_sha256", "taken"}).encode() + mean_file).hexdigest()


@dataclass(frozen=True)
class ColourStats:
    """Statistics and the mean image: (size, size, 3) float32, 0..255; of pictures that are no squares the mean colour everywhere."""

    statistics: Statistics
    mean_image: np.ndarray

    def shift(self, normals: np.ndarray, rule: ColourRule, sigma: float) -> np.ndarray:
        """What is added to every pixel of each picture: (n, 3) float32 in grey levels of 0..255, RGB.

        normals: (n, 3) draws of N(0, 1); alpha_i = sigma * normal_i. With p_i, l_i of pixels in [0, 1]:
        "eigenvalue": sum_i alpha_i l_i p_i (paper, section 4.1); "stddev": sum_i alpha_i sqrt(l_i) p_i (the authors'
        program). Neither depends on the scale of the pixels that the statistics were taken on.
        """
        if rule == "none":
            return np.zeros((len(normals), 3), dtype=np.float32)
        scale = self.statistics.pixel_scale
        if rule == "eigenvalue":
            size = np.asarray(self.statistics.eigenvalues) / scale**2
        else:
            size = np.asarray(self.statistics.stddevs) / scale
        return (255.0 * sigma * (normals * size) @ np.asarray(self.statistics.eigenvectors)).astype(np.float32)


def mean_colour(statistics: Statistics, side: int) -> np.ndarray:
    """(side, side, 3) float32 grey levels of 0..255, RGB, every pixel the mean of all."""
    mean = 255.0 / statistics.pixel_scale * np.asarray(statistics.mean)
    return np.full((side, side, 3), mean, np.float32)


def statistics_of(count: int, total: np.ndarray, products: np.ndarray, images: int, manifest_sha256: str, taken: Taken = "decoded") -> Statistics:
    """Statistics on [0, 1] from exact integer sums over pixels 0..255: total (3,) and products (3, 3) = sum of x x^T.

    The covariance is taken over integers before the only division, so nothing cancels: (n * products - total total^T) / n^2.
    """
    total_int = [int(value) for value in total]
    covariance = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            covariance[i, j] = (count * int(products[i, j]) - total_int[i] * total_int[j]) / (count * count * 255 * 255)
    eigenvalues, columns = np.linalg.eigh(covariance)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0.0), columns.T[::-1]
    largest = vectors[np.arange(3), np.abs(vectors).argmax(axis=1)]
    vectors = vectors * np.sign(largest)[:, None]  # an eigenvector's sign is free: fix it, so that files can be compared
    return Statistics(
        pixel_scale=1.0,
        mean=[value / (count * 255) for value in total_int],
        covariance=covariance.tolist(),
        eigenvalues=eigenvalues.tolist(),
        stddevs=np.sqrt(eigenvalues).tolist(),
        eigenvectors=vectors.tolist(),
        pixels=count,
        images=images,
        manifest_sha256=manifest_sha256,
        taken=taken,
    )


def write_colour_stats(folder: Path, stats: ColourStats) -> None:
    """Write mean.npy, then pca.json, which names the shards it belongs to and so is the last word."""
    mean = io.BytesIO()
    np.save(mean, stats.mean_image)
    with atomic_file(folder / MEAN_NAME) as file:
        file.write(mean.getbuffer())
    statistics = stats.statistics.model_copy(update={"sha256": stats.statistics.sum_of(mean.getvalue())})
    with atomic_file(folder / STATISTICS_NAME, "w") as file:
        file.write(statistics.model_dump_json(indent=1) + "\n")


def read_colour_stats(folder: Path, manifest_sha256: str, size: int) -> ColourStats:
    """The statistics beside the shards; refused when missing, without units, of other shards, or of another size. Raises InputError."""
    path, remedy = folder / STATISTICS_NAME, f"run: python tools/compute_pca.py --shards {folder}"
    try:
        statistics = Statistics.model_validate_json(read_bounded(path, _MAX_STATISTICS, f"statistics can have; {remedy}"))
        if statistics.manifest_sha256 != manifest_sha256:
            raise InputError(f"{path} was computed from other shards than those in {folder}; {remedy}")
        mean, content = _read_mean(folder / MEAN_NAME, size, remedy)
        if statistics.sha256 not in (None, statistics.sum_of(content)):
            raise InputError(f"{path} or {MEAN_NAME} beside it is damaged: they do not have the sum they were written with; {remedy}")
        return ColourStats(statistics, mean)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing: the shards have no colour statistics yet; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {remedy}") from None


_MAX_STATISTICS = 1 << 16  # bytes; pca.json has 1,000
_MAX_NPY_HEADER = 1000  # bytes; NumPy writes 128


def _read_mean(path: Path, size: int, remedy: str) -> tuple[np.ndarray, bytes]:
    """The mean image, and its file; what its header asks for is checked before it is allocated. Raises InputError, FileNotFoundError."""
    content = read_bounded(path, size * size * 3 * 4 + _MAX_NPY_HEADER, f"a mean image of {size} x {size} can have; {remedy}")
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format than the first")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_NPY_HEADER)
        if shape == (size, size, 3) and dtype == np.float32:
            file.seek(0)
            mean = np.load(file, allow_pickle=False)
            if np.isfinite(mean).all():
                return mean, content
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}; {remedy}") from None
    raise InputError(f"{path} is {dtype} {shape}, not a finite float32 ({size}, {size}, 3); {remedy}")
