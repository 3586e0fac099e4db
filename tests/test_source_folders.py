"""Class folders and Kaggle's tree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from source_fixtures import VAL, WNIDS, WORDS, Pictures, check_listing, make_class_folders, make_kaggle, picture, refused, untouched, write

from tools.sources import list_source


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    make_kaggle(tmp_path / "kaggle")
    return tmp_path / "kaggle"


def with_class_before(pictures: dict[str, Pictures]) -> dict[str, Pictures]:
    """Keys of validation pictures in class folders: their names alone need not be unique there."""
    val = {f"{WNIDS[label]}_{key}": data for (key, data), label in zip(pictures["val"].items(), VAL, strict=True)}
    return {"train": pictures["train"], "val": val}


def test_class_folders(tmp_path: Path) -> None:
    pictures = make_class_folders(tmp_path / "tree")
    with untouched(tmp_path):
        listing = list_source(tmp_path / "tree")
    check_listing(listing, with_class_before(pictures))
    assert (listing.source.kind, listing.source.year) == ("class-folders", None)
    assert list_source(tmp_path / "tree" / "train") == listing


def test_what_looks_like_a_split_is_named(tmp_path: Path) -> None:
    make_class_folders(tmp_path)
    before = list_source(tmp_path)
    write(tmp_path / "validation" / WNIDS[0] / "x.jpg", picture("x"))
    write(tmp_path / "train" / WNIDS[0] / "._n01440764_10.JPEG", b"of macOS")
    listing = list_source(tmp_path)
    assert listing.splits == before.splits
    assert set(listing.checks) - set(before.checks) == {"validation/ is left alone: a tree of class folders has train/ and val/"}


@pytest.mark.parametrize("inner", [".", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC", "LOC_synset_mapping.txt", "LOC_val_solution.csv"])
def test_kaggle_from_anywhere_in_it(kaggle: Path, inner: str, tmp_path: Path) -> None:
    pictures = make_kaggle(tmp_path / "again")
    with untouched(kaggle):
        listing = list_source(kaggle / inner)
    check_listing(listing, pictures)
    assert (listing.source.kind, listing.source.year) == ("kaggle", 2012)
    assert [row.words for row in listing.classes] == list(WORDS.values())
    assert [entry.label for entry in listing.splits["test"]] == [-1, -1]


def test_kaggle_with_its_tables_moved_or_none(kaggle: Path) -> None:
    """CLS-LOC renamed, and the tables put into it; words are not needed, the validation labels are."""
    tree = kaggle / "imagenet"
    before = list_source(kaggle)
    (kaggle / "ILSVRC" / "Data" / "CLS-LOC").rename(tree)
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (kaggle / name).rename(tree / name)
    assert list_source(tree).source == before.source
    (tree / "LOC_synset_mapping.txt").unlink()
    listing = list_source(tree)
    assert listing.splits["val"][0].label == VAL[0]
    assert any("LOC_synset_mapping.txt was not found" in line for line in listing.checks)
    assert [row.words for row in listing.classes] == list(WNIDS)


def test_kaggle_with_its_validation_pictures_sorted(kaggle: Path) -> None:
    """What a script of many tutorials makes of it is a tree of class folders."""
    tree = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.rmtree(tree / "val")
    pictures = make_class_folders(kaggle / "sorted")
    (kaggle / "sorted" / "val").rename(tree / "val")
    for given in (kaggle, tree):
        listing = list_source(given)
        assert listing.source.kind == "class-folders"
        check_listing(listing, with_class_before(pictures))
        assert "test/ is left alone: a tree of class folders has train/ and val/" in listing.checks


TREE = "ILSVRC/Data/CLS-LOC"
MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no labels": (lambda f: (f / "LOC_val_solution.csv").unlink(), ("LOC_val_solution.csv was not found", "kaggle.com")),
    "a picture without a label": (
        lambda f: write(f / TREE / "val" / "ILSVRC2012_val_00000009.JPEG", b"x"),
        ("LOC_val_solution.csv has no line for", "ILSVRC2012_val_00000009"),
    ),
    "a picture missing": (
        lambda f: (f / TREE / "val" / "ILSVRC2012_val_00000003.JPEG").unlink(),
        ("has 1 pictures that are not in", "ILSVRC2012_val_00000003", "unpack val/ again"),
    ),
    "another table": (lambda f: (f / "LOC_val_solution.csv").write_text("id,label\n1,2\n"), ("LOC_val_solution.csv: line 2", "ImageId")),
    "a label that is no class": (
        lambda f: (f / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n00000009 1 2 3 4\n"),
        ("LOC_val_solution.csv: line 2", "n00000009"),
    ),
    "a class missing": (lambda f: shutil.rmtree(f / TREE / "train" / WNIDS[1]), ("not the same classes", WNIDS[1], "unpack train/ again")),
    "a class empty": (lambda f: list(map(Path.unlink, (f / TREE / "train" / WNIDS[1]).iterdir())), (WNIDS[1], "is empty")),
    "a folder among pictures": (lambda f: (f / TREE / "test" / "more").mkdir(), ("more is a folder", "unpack test/ again")),
    "the table alone": (lambda f: shutil.rmtree(f / "ILSVRC"), ("is no source that is known",)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_kaggle_mistakes(kaggle: Path, mistake: str) -> None:
    make, words = MISTAKES[mistake]
    make(kaggle)
    refused(kaggle, *words)


def test_a_table_given_without_its_tree(kaggle: Path) -> None:
    shutil.rmtree(kaggle / "ILSVRC")
    refused(kaggle / "LOC_val_solution.csv", "has no ILSVRC/Data/CLS-LOC", "unpack")
