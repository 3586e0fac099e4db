from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line, run_here
from PIL import Image

from pipeline.colour import ColourStats, Statistics, read_colour_stats
from pipeline.errors import InputError
from pipeline.shards import ShardSet
from tools.compute_pca import main


def stacked(shards: Path) -> np.ndarray:
    """Every pixel of the training shards: (n, 256, 256, 3) float64."""
    train = ShardSet(shards, "train")
    return np.stack([np.asarray(Image.open(io.BytesIO(train.read(i)[0].tobytes()))) for i in range(len(train))]).astype(np.float64)


def test_equals_numpy_on_the_stacked_pixels(made_shards: Path) -> None:
    pixels = stacked(made_shards)
    flat = pixels.reshape(-1, 3) / 255
    digest = ShardSet(made_shards, "train").digest
    stats = read_colour_stats(made_shards, digest, 256)
    s = stats.statistics
    assert (s.pixel_scale, s.images, s.pixels) == (1.0, len(pixels), len(flat))
    np.testing.assert_allclose(s.mean, flat.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(s.covariance, np.cov(flat.T, bias=True), rtol=1e-9)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    np.testing.assert_allclose(s.eigenvalues, values[::-1], rtol=1e-9)
    np.testing.assert_allclose(s.stddevs, np.sqrt(values[::-1]), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(np.array(s.eigenvectors) * vectors.T[::-1], axis=1)), 1, rtol=1e-9)
    for row in np.array(s.eigenvectors):
        assert row[np.abs(row).argmax()] > 0
    np.testing.assert_allclose(stats.mean_image, pixels.mean(axis=0), rtol=1e-6)


def test_any_number_of_workers_gives_the_same_file(made_shards: Path, shards: Path) -> None:
    for name in ("pca.json", "mean.npy"):
        (shards / name).unlink()
    assert run_here(main, "--shards", shards, "--decode", "--workers", 1).returncode == 0
    for name in ("pca.json", "mean.npy"):
        assert (shards / name).read_bytes() == (made_shards / name).read_bytes()
    again = run_here(main, "--shards", shards)
    assert "already" in again.stdout


def statistics(scale: float) -> Statistics:
    """The same colours, with pixels on [0, scale]."""
    rng = np.random.default_rng(0)
    covariance = np.cov(rng.normal(size=(3, 50))) * 0.05
    values, vectors = np.linalg.eigh(covariance)
    return Statistics(
        pixel_scale=scale,
        mean=[0.5 * scale] * 3,
        covariance=(covariance * scale**2).tolist(),
        eigenvalues=(values[::-1] * scale**2).tolist(),
        stddevs=(np.sqrt(values[::-1]) * scale).tolist(),
        eigenvectors=vectors.T[::-1].tolist(),
        pixels=1,
        images=1,
        manifest_sha256="",
    )


@pytest.mark.parametrize("rule", ["eigenvalue", "stddev"])
def test_scaling_the_pixels_does_not_change_the_picture(rule: str) -> None:
    normals = np.random.default_rng(1).normal(size=(20, 3))
    mean = np.zeros((1, 1, 3), np.float32)
    unit, grey = (ColourStats(statistics(scale), mean).shift(normals, rule, 0.1) for scale in (1.0, 255.0))  # type: ignore[arg-type]
    np.testing.assert_allclose(unit, grey, rtol=1e-5)


def test_sizes_are_those_of_the_paper_and_of_the_program() -> None:
    """With ImageNet's numbers one sigma of the first component moves pixels by 5.6 grey levels (paper), 12.2 (program)."""
    imagenet = Statistics(
        pixel_scale=1.0,
        mean=(0.5, 0.47, 0.41),
        covariance=((0.2, 0, 0), (0, 0.02, 0), (0, 0, 0.005)),
        eigenvalues=(0.2281, 0.0212, 0.0060),
        stddevs=(0.4776, 0.1455, 0.0773),
        eigenvectors=((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        pixels=1,
        images=1,
        manifest_sha256="",
    )
    stats = ColourStats(imagenet, np.zeros((1, 1, 3), np.float32))
    np.testing.assert_allclose(stats.shift(np.ones((1, 3)), "eigenvalue", 0.1)[0], [5.82, 0.54, 0.153], rtol=0.01)
    np.testing.assert_allclose(stats.shift(np.ones((1, 3)), "stddev", 0.1)[0], [12.18, 3.71, 1.97], rtol=0.01)
    assert not stats.shift(np.ones((1, 3)), "none", 0.1).any()


def test_shift_is_the_formula() -> None:
    s = statistics(1.0)
    normals = np.array([[0.3, -1.2, 0.7]])
    expected = sum(255 * 0.1 * normals[0, i] * s.eigenvalues[i] * np.array(s.eigenvectors[i]) for i in range(3))
    np.testing.assert_allclose(ColourStats(s, np.zeros((1, 1, 3), np.float32)).shift(normals, "eigenvalue", 0.1)[0], expected, rtol=1e-6)


def test_missing_foreign_or_damaged_statistics_are_refused(shards: Path) -> None:
    digest = ShardSet(shards, "train").digest
    content = json.loads((shards / "pca.json").read_text())
    for change, words in (
        ({"pixel_scale": None}, "pixel_scale"),
        ({"manifest_sha256": "0" * 64}, "other shards"),
        ({"eigenvalues": [1, 2]}, "eigenvalues"),
    ):
        changed = {k: v for k, v in {**content, **change}.items() if v is not None}
        (shards / "pca.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=words) as caught:
            read_colour_stats(shards, digest, 256)
        assert "compute_pca.py" in str(caught.value)
    (shards / "pca.json").write_text(json.dumps(content))
    with open(shards / "mean.npy", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"mean\.npy"):
        read_colour_stats(shards, digest, 256)
    shutil.copy(shards / "pca.json", shards / "mean.npy")
    with pytest.raises(InputError, match=r"mean\.npy"):
        read_colour_stats(shards, digest, 256)


def test_a_flipped_bit_in_numbers_or_mean_image_is_refused(shards: Path) -> None:
    digest = ShardSet(shards, "train").digest
    for name, at in (("mean.npy", 5000), ("pca.json", (shards / "pca.json").read_text().index('"covariance"') + 40)):
        content = bytearray((shards / name).read_bytes())
        whole = bytes(content)
        content[at] ^= 1
        (shards / name).write_bytes(content)
        with pytest.raises(InputError, match="is damaged: they do not have the sum"):
            read_colour_stats(shards, digest, 256)
        (shards / name).write_bytes(whole)
    read_colour_stats(shards, digest, 256)


def test_no_shards(tmp_path: Path) -> None:
    one_line(run_here(main, "--shards", tmp_path), "make_shards.py")
    one_line(run_here(main, "--shards", tmp_path / "none"), "not a folder")


def test_a_broken_shard_is_named(shards: Path) -> None:
    (shards / "pca.json").unlink()
    path = shards / "train-000002.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 4
    path.write_bytes(content)
    one_line(run_here(main, "--shards", shards, "--decode", "--workers", 1), "train-000002.tar", "CRC")
