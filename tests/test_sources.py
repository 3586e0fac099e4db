"""Which layout a folder or a file is of: known by looking, refused where there are two or none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from source_fixtures import (
    class_tars,
    make_2010,
    make_class_folders,
    make_kaggle,
    make_parquet,
    make_targz,
    make_webdataset,
    picture,
    refused,
    tar_of,
    untouched,
    write,
)

from tools.sources import LAYOUTS, list_source


def make_whole(folder: Path) -> None:
    for wnid, data in class_tars().items():
        write(folder / f"{wnid}.tar", data)


def make_whole_in_one(folder: Path) -> None:
    write(folder / "fall11_whole.tar", tar_of((f"{wnid}.tar", data) for wnid, data in class_tars().items()))


MAKERS: dict[str, Callable[[Path], object]] = {
    "ilsvrc2010-archives": make_2010,
    "whole-imagenet": make_whole,
    "kaggle": make_kaggle,
    "class-folders": make_class_folders,
    "huggingface-parquet": make_parquet,
    "huggingface-archives": make_targz,
    "webdataset": make_webdataset,
}
# what says which of two is meant, below the folder
CHOICES = {
    "ilsvrc2010-archives": "ILSVRC2010_images_train.tar",
    "whole-imagenet": "n01440764.tar",
    "kaggle": "LOC_val_solution.csv",
    "class-folders": "train",
    "huggingface-parquet": "data/train-00000-of-00002.parquet",
    "huggingface-archives": "data/train_images_0.tar.gz",
    "webdataset": "toy-train-0000.tar",
}


def test_all_layouts_have_a_test() -> None:
    assert len(LAYOUTS) == len(MAKERS) + 1  # ILSVRC2012's archives are the other tests' fixture


@pytest.mark.parametrize("kind", MAKERS)
def test_known_by_looking(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](tmp_path / "source")
    listing = list_source(tmp_path / "source")
    assert listing.source.kind == kind
    assert list_source(tmp_path / "source").source == listing.source


def pairs() -> list[tuple[str, str]]:
    kinds = list(MAKERS)
    return [(kinds[i], kinds[(i + step) % len(kinds)]) for step in (1, 2, 3) for i in range(len(kinds))]


@pytest.mark.parametrize(("one", "other"), pairs(), ids=lambda kind: kind)
def test_two_in_one_folder_are_refused_and_either_can_be_chosen(one: str, other: str, tmp_path: Path) -> None:
    expected = {}
    for kind in (one, other):
        MAKERS[kind](tmp_path / kind)
        expected[kind] = list_source(tmp_path / kind)
        shutil.copytree(tmp_path / kind, tmp_path / "both", dirs_exist_ok=True)
    with untouched(tmp_path / "both"):
        line = refused(tmp_path / "both", "choose with --source")
    given = [word.rstrip(";") for word in line.split() if word.startswith(str(tmp_path / "both") + "/")]
    assert len(given) == 2
    assert {list_source(Path(path)).source.kind for path in given} == {one, other}
    for kind in (one, other):
        chosen = list_source(tmp_path / "both" / CHOICES[kind])
        assert [[entry.name for entry in entries] for entries in chosen.splits.values()] == [
            [entry.name for entry in entries] for entries in expected[kind].splits.values()
        ]


def test_2012_beside_2010_and_chosen(archives: Path, tmp_path: Path) -> None:
    make_2010(tmp_path / "both")
    shutil.copytree(archives, tmp_path / "both", dirs_exist_ok=True)
    refused(tmp_path / "both", "the archives of ILSVRC2012 and the archives of ILSVRC2010", "--source")
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        assert list_source(tmp_path / "both" / name) == list_source_elsewhere(archives, tmp_path)


def list_source_elsewhere(archives: Path, tmp_path: Path) -> object:
    """The listing of the archives as if they lay in the folder `both`."""
    listing = list_source(archives)
    splits = {
        split: [entry._replace(file=entry.file.replace(str(archives), str(tmp_path / "both"))) for entry in entries]
        for split, entries in listing.splits.items()
    }
    return type(listing)(listing.source, listing.classes, splits, listing.checks, listing.streamed)


def test_a_tar_of_class_tars_is_known_by_its_first_member(tmp_path: Path) -> None:
    make_whole_in_one(tmp_path)
    (tmp_path / "fall11_whole.tar").rename(tmp_path / "imagenet.tar")
    assert list_source(tmp_path).source.kind == list_source(tmp_path / "imagenet.tar").source.kind == "whole-imagenet"


def test_unknown(tmp_path: Path) -> None:
    """The message says what is looked for; flat pictures, or a tar of them, have no labels."""
    write(tmp_path / "pictures" / "a.jpg", picture("a"))
    write(tmp_path / "tars" / "pictures.tar", tar_of([("a.jpg", picture("a")), ("b.jpg", picture("b"))]))
    for given in (tmp_path / "pictures", tmp_path / "pictures" / "a.jpg", tmp_path / "tars", tmp_path / "tars" / "pictures.tar"):
        line = refused(given, "is no source that is known", "ILSVRC2012_img_train.tar", "train/CLASS/", "Kaggle", "WebDataset", "--source")
        assert all(layout.looked_for in line for layout in LAYOUTS)
    refused(tmp_path / "nowhere", "is not there")
