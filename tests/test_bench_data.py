from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line, run_command, run_here
from PIL import Image

from pipeline.shards import ShardSet
from tools.bench_data import bench_data, main

TOOL = "tools/bench_data.py"
GREYS = (10, 60, 110, 160, 210)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five JPEGs of one grey each, two of them in a folder of their own, and a file that is no picture; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("of-greys") / "pictures"
    for number, grey in enumerate(GREYS):
        path = folder / ("b" if number > 2 else "a") / f"{number}.{'JPEG' if number % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), (grey,) * 3).save(path, "JPEG")
    (folder / "a" / "notes.txt").write_text("no picture")
    return folder


def make(pictures: Path, out: Path) -> Path:
    arguments = ("--samples", 12, "--classes", 2, "--size", 32, "--quality", 80, "--shard-size", 5, "--workers", 1)
    made = run_command(TOOL, "--pictures", pictures, "--out", out, *arguments)
    assert made.returncode == 0, made.stderr
    return out / "shards"


@pytest.fixture(scope="module")
def of_folder(pictures: Path) -> Path:
    """The folder's shards; not to be changed by a test."""
    return make(pictures, pictures.parent / "bench")


def test_pictures_are_repeated_and_keep_their_class(of_folder: Path) -> None:
    shards = ShardSet(of_folder, "train")
    assert len(shards) == 12
    assert (shards.manifest.settings.size, shards.manifest.settings.quality, shards.manifest.settings.shard_size) == (32, 80, 5)
    seen = []
    for sample in range(12):
        jpeg, label = shards.read(sample)
        grey = float(np.asarray(Image.open(io.BytesIO(jpeg.tobytes()))).mean())
        picture = int(np.abs(np.array(GREYS) - grey).argmin())
        assert abs(GREYS[picture] - grey) < 3, f"sample {sample} is none of the pictures"
        assert label == picture % 2, "the class goes by the picture, in turn"
        seen.append(picture)
    assert sorted(seen) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4], "in turn, from the first"
    assert json.loads((shards.folder / "pca.json").read_text())["images"] == 12


def test_a_tar_gives_the_same_bytes_as_its_folder(pictures: Path, of_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(pictures, "pictures")
    of_tar = make(tmp_path / "x.tar", tmp_path / "of-tar")
    assert sorted(path.name for path in of_tar.glob("*.tar")) == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    for path in of_folder.iterdir():
        assert (of_tar / path.name).read_bytes() == path.read_bytes(), path.name


def test_no_name_in_a_tar_is_used_to_write(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bench"
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(pictures / "a" / "0.jpg", "../../outside.jpg")
    assert bench_data(tmp_path / "x.tar", out, 3, 1) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar", "deep"}
    assert [path.name for path in (out / "pictures").iterdir()] == ["00000.jpg"]


@pytest.mark.parametrize(("samples", "classes"), [(4, 2), (12, 6)])
def test_too_few_pictures_or_samples_is_one_line(pictures: Path, tmp_path: Path, samples: int, classes: int) -> None:
    ran = run_here(main, "--pictures", pictures, "--out", tmp_path / "bench", "--samples", samples, "--classes", classes)
    one_line(ran, "has 5 JPEGs", "--classes", "--samples")
    assert not (tmp_path / "bench").exists()


def test_what_is_no_tar_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    one_line(run_here(main, "--pictures", tmp_path / "x.tar", "--out", tmp_path / "bench"), "x.tar", "neither a folder nor a whole tar")
    assert not (tmp_path / "bench").exists()


def test_a_cut_tar_is_one_line(pictures: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(pictures / "a" / "0.jpg", "0.jpg")
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:700])
    one_line(run_here(main, "--pictures", tmp_path / "x.tar", "--out", tmp_path / "bench", "--classes", 1), "x.tar", "whole tar")
    assert not (tmp_path / "bench").exists()


def test_an_output_that_is_there_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    one_line(run_here(main, "--pictures", pictures, "--out", pictures), "is there already", "--out")
    assert len(list(pictures.rglob("*.*"))) == 6
