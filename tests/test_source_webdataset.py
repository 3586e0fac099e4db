"""An existing WebDataset as a source: labels in .cls or .json, splits and classes by their names, our own shards."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CLASSES, TRAIN
from source_fixtures import NAMES, VAL, WNIDS, check_listing, make_webdataset, picture, read, refused, sample, tar_of, untouched

from pipeline.manifest import read_manifest
from pipeline.shards import ShardSet
from tools.sources import list_source


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    make_webdataset(tmp_path / "wds")
    return tmp_path / "wds"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"])
def test_with_cls(tmp_path: Path, format: int) -> None:
    pictures = make_webdataset(tmp_path / "wds", format)
    with untouched(tmp_path):
        listing = list_source(tmp_path / "wds")
    check_listing(listing, pictures)
    assert (listing.source.kind, listing.source.year, listing.streamed) == ("webdataset", None, "")
    assert [row.words for row in listing.classes] == list(WNIDS)
    assert list_source(tmp_path / "wds" / "toy-train-0001.tar") == listing


def test_splits_in_folders_and_class_names_beside(dataset: Path, tmp_path: Path) -> None:
    before = list_source(dataset)
    for name in ("train", "validation"):
        (dataset / name).mkdir()
        for tar in dataset.glob(f"toy-{name}-*.tar"):
            tar.rename(dataset / name / tar.name.replace(f"{name}-", ""))
    (dataset / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    listing = list_source(dataset)
    assert {split: [entry.label for entry in entries] for split, entries in listing.splits.items()} == {
        split: [entry.label for entry in entries] for split, entries in before.splits.items()
    }
    assert [(row.wnid, row.words) for row in listing.classes] == list(zip(WNIDS, NAMES, strict=True))
    for given in (dataset / "train", dataset / "train" / "toy-0000.tar"):
        assert list_source(given) == listing


def test_a_long_pax_name(tmp_path: Path) -> None:
    """With a path beyond the header's fields, as long keys have."""
    key = f"{'deep/' * 40}n01440764_7"
    (tmp_path / "train-0.tar").write_bytes(tar_of([(f"{key}.cls", b"0"), (f"{key}.jpg", b"bytes")], tarfile.PAX_FORMAT))
    entry = list_source(tmp_path).splits["train"][0]
    assert (entry.key, read(entry)) == ("n01440764_7", b"bytes")


def test_json_labels_and_the_names_in_them(tmp_path: Path) -> None:
    """As timm writes them: numbers for keys, the official name and the label in the .json; parts need not be neighbours."""
    described = [json.dumps({"filename": f"{wnid}_5.JPEG", "label": label, "width": 4}).encode() for label, wnid in enumerate(WNIDS)]
    members = [(f"{k:08d}.JPEG", picture(str(k))) for k in range(3)] + [(f"{k:08d}.json", described[k]) for k in range(3)]
    (tmp_path / "imagenet1k-train-0000.tar").write_bytes(tar_of(members))
    val = [
        ("7.webp", b"x"),
        ("7.json", b'{"cls": 2}'),
        ("8.png", b"y"),
        ("8.cls", b"1\n"),
        ("8.json", b'{"filename": "ILSVRC2012_val_00000001.JPEG"}'),
    ]
    (tmp_path / "imagenet1k-validation-00.tar").write_bytes(tar_of(val))
    (tmp_path / "imagenet1k-test-00.tar").write_bytes(tar_of([("9.jpg", b"z"), ("README", b"no sample")]))
    listing = list_source(tmp_path)
    assert [row.wnid for row in listing.classes] == list(WNIDS)
    assert {entry.key: (entry.label, read(entry)) for entry in listing.splits["train"]} == {
        f"{wnid}_5": (k, picture(str(k))) for k, wnid in enumerate(WNIDS)
    }
    assert [(entry.key, entry.label, read(entry)) for entry in listing.splits["val"]] == [("7", 2, b"x"), ("ILSVRC2012_val_00000001", 1, b"y")]
    assert [(entry.key, entry.label) for entry in listing.splits["test"]] == [("9", -1)]


def test_nothing_says_the_split_or_the_classes(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number:05d}.tar").write_bytes(tar_of(sample("0", b"x", number)))
    listing = list_source(tmp_path)
    assert list(listing.splits) == ["train"]
    assert [row.words for row in listing.classes] == ["class 0", "class 1"]
    assert len({entry.key for entry in listing.splits["train"]}) == 2
    for line in ("all are taken for training", "do not carry wnids: classes are called by their numbers"):
        assert any(line in check for check in listing.checks)


def test_our_own_shards(shards: Path) -> None:
    """Classes come from the manifest, with a class that has no picture; every sample is there under its key."""
    manifest, _ = read_manifest(shards)
    with untouched(shards):
        listing = list_source(shards)
    assert listing.source.kind == "webdataset"
    assert listing.classes == manifest.classes
    train = ShardSet(shards, "train")
    assert len(train) == CLASSES * TRAIN == len(listing.splits["train"])
    of_key = {entry.key: entry for entry in listing.splits["train"]}
    for i in range(len(train)):
        jpeg, label = train.read(i)
        entry = of_key[train.place(i)[1]]
        assert (read(entry), entry.label) == (jpeg.tobytes(), label)
    (shards / "val-000001.tar").unlink()
    refused(shards, "val-000001.tar is missing, and manifest.json has it")


def test_our_own_shards_half_made(shards: Path) -> None:
    """What is there looks whole, and is not."""
    (shards / "manifest.json").unlink()
    (shards / ".progress.jsonl").write_text("{}\n")
    refused(shards, "make_shards was stopped")


def another_first_label(text: bytes) -> Callable[[Path], object]:
    return lambda f: (f / "toy-train-0001.tar").write_bytes(tar_of([("a.jpg", b"x"), ("a.cls", text)]))


def first_members(*members: tuple[str, bytes]) -> Callable[[Path], object]:
    return lambda f: (f / "toy-train-0001.tar").write_bytes(tar_of(members))


MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no training tars": (lambda f: list(map(Path.unlink, f.glob("*train*"))), ("has toy-validation-00.tar, but no tar with train in its name",)),
    "a tar of no split": (
        lambda f: shutil.copy(f / "toy-train-0001.tar", f / "more.tar"),
        ("more.tar does not have train, val or test in its name",),
    ),
    "a tar of two": (lambda f: (f / "toy-train-0001.tar").rename(f / "train-val.tar"), ("train-val.tar has the names of two splits",)),
    "cut": (lambda f: os.truncate(f / "toy-train-0001.tar", 700), ("toy-train-0001.tar", "unexpected end of data (byte 700 of 700)")),
    "no label": (first_members(("a.jpg", b"x")), ("toy-train-0001.tar: sample a at byte 0 has no label",)),
    "no picture": (first_members(("a.cls", b"0")), ("sample a at byte 0 has no pictures",)),
    "two pictures": (first_members(("a.cls", b"0"), ("a.jpg", b"x"), ("a.png", b"x")), ("sample a at byte 0 has 2 pictures",)),
    "a member twice": (first_members(("a.cls", b"0"), ("a.jpg", b"x"), ("a.jpg", b"x")), ("a.jpg is there twice, again at byte 2,048",)),
    "a label that is a word": (another_first_label(b"tench"), ("sample a at byte 0: its .cls has b'tench'",)),
    "a label that is a book": (another_first_label(b"1" * 2_000_000), ("a.cls has 2,000,000 bytes",)),
    "a negative label": (another_first_label(b"-1"), ("train: a training picture has label -1",)),
    "a label beyond all classes": (another_first_label(b"999999999"), ("train: a training picture has label 999999999", "1,000,000 classes")),
    "broken json": (first_members(("a.jpg", b"x"), ("a.json", b"{")), ("sample a at byte 0: its .json cannot be read",)),
    "json without a label": (first_members(("a.jpg", b"x"), ("a.json", b'{"label": "tench"}')), ("sample a at byte 0 has no label",)),
    "too few class names": (lambda f: (f / "classes.txt").write_text("a\nb\n"), ("label 2, outside of its 2 class names",)),
    "a validation label of no class": (
        lambda f: (f / "toy-validation-00.tar").write_bytes(tar_of(sample("a", b"x", 3))),
        ("toy-validation-00.tar/a.jpg has label 3, and there are 3 classes",),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(dataset: Path, mistake: str) -> None:
    make, words = MISTAKES[mistake]
    make(dataset)
    refused(dataset, *words)


def test_hidden_files_are_left_out(dataset: Path) -> None:
    before = list_source(dataset)
    (dataset / "._toy-train-0000.tar").write_bytes(b"of macOS")
    with tarfile.open(dataset / "toy-validation-00.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("._ILSVRC2012_val_00000001.jpg"))
    assert list_source(dataset) == before
    assert [entry.label for entry in before.splits["val"]] == list(VAL)
