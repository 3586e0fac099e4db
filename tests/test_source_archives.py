"""The official archives of both years, whole and damaged, through the listing that make_shards uses."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CLASSES, TRAIN
from source_fixtures import IDS_2010, WNIDS, WORDS, check_listing, make_2010, picture, read, refused, tar_of, untouched

from tools.sources import list_source


@pytest.fixture
def copy(archives: Path, tmp_path: Path) -> Path:
    """The toy ILSVRC2012, to be damaged."""
    return Path(shutil.copytree(archives, tmp_path / "copy"))


@pytest.fixture
def of_2010(tmp_path: Path) -> Path:
    make_2010(tmp_path / "2010")
    return tmp_path / "2010"


def test_2012_with_a_test_split(copy: Path) -> None:
    """Both names of the test archive, members below test/ or not; nobody has published its labels."""
    before = list_source(copy)
    assert set(before.splits) == {"train", "val"}
    names = [f"ILSVRC2012_test_{k:08d}" for k in (2, 1)]
    (copy / "ILSVRC2012_img_test.tar").write_bytes(tar_of((f"{name}.JPEG", picture(name)) for name in names))
    assert [entry.key for entry in list_source(copy).splits["test"]] == names[::-1]
    (copy / "ILSVRC2012_img_test_v10102019.tar").write_bytes(tar_of((f"test/{name}.JPEG", picture("new " + name)) for name in names))
    with untouched(copy):
        listing = list_source(copy)
    assert (listing.source.kind, listing.source.year, listing.streamed) == ("ilsvrc2012-archives", 2012, "")
    assert {entry.key: (read(entry), entry.label) for entry in listing.splits["test"]} == {name: (picture("new " + name), -1) for name in names}
    assert "ILSVRC2012_img_test_v10102019.tar: its labels were never published: label -1" in listing.checks
    assert {split: listing.splits[split] for split in before.splits} == before.splits


def test_2012_devkit_as_people_have_it(copy: Path) -> None:
    """Unpacked, or without its gzip layer, which macOS takes off without a word."""
    before, devkit = list_source(copy), copy / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(devkit) as tar:
        tar.extractall(copy)
    devkit.unlink()
    assert list_source(copy) == before
    with tarfile.open(copy / "ILSVRC2012_devkit_t12.tar", "w") as tar:
        tar.add(copy / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    shutil.rmtree(copy / "ILSVRC2012_devkit_t12")
    assert list_source(copy) == before
    os.truncate(copy / "ILSVRC2012_devkit_t12.tar", 3000)
    refused(copy, "ILSVRC2012_devkit_t12.tar", "download")


def test_the_dogs_are_refused_by_name(tmp_path: Path) -> None:
    dogs = tmp_path / "ILSVRC2012_img_train_t3.tar"
    dogs.write_bytes(tar_of([("n02085620.tar", tar_of([("n02085620_7.JPEG", picture("dog"))]))]))
    for given in (tmp_path, dogs):
        refused(given, "ILSVRC2012_img_train_t3.tar holds the dogs of task 3", "fetch ILSVRC2012_img_train.tar")


def hole(path: Path, at: int, length: int) -> None:
    """What a downloader that reserves the file first leaves of a part that it did not fetch."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes(length))


def test_zeros_and_noise_in_the_middle_are_no_end(copy: Path) -> None:
    """tarfile takes both for the end of the archive and says nothing: pictures would be missing without a word."""
    train = copy / "ILSVRC2012_img_train.tar"
    with tarfile.open(train) as tar:
        second = tar.getmembers()[1]
    whole = train.read_bytes()
    hole(train, second.offset, 512)
    refused(copy, str(train), "zeros in the middle", f"byte {second.offset:,} of {len(whole):,}", "incomplete")
    train.write_bytes(whole[: second.offset] + os.urandom(512) + whole[second.offset + 512 :])
    refused(copy, str(train), "no header where one should be", "incomplete")
    train.write_bytes(whole)
    inner = second.offset_data + len(whole[second.offset_data :]) // 50 // 512 * 512
    hole(train, second.offset_data, inner - second.offset_data)  # of the first picture of a class
    refused(copy, second.name, "zeros in the middle")
    train.write_bytes(whole + bytes(2 << 20))
    refused(copy, str(train), "zeros in the middle")


def test_hidden_members_are_left_out_and_links_refused(copy: Path) -> None:
    val = copy / "ILSVRC2012_img_val.tar"
    before = list_source(copy)
    with tarfile.open(val, "a") as tar:
        for name in ("._ILSVRC2012_val_00000001.JPEG", ".DS_Store"):
            tar.addfile(tarfile.TarInfo(name))
    assert {e.key: read(e) for e in list_source(copy).splits["val"]} == {e.key: read(e) for e in before.splits["val"]}
    with tarfile.open(val, "a") as tar:
        link = tarfile.TarInfo("ILSVRC2012_val_00000099.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        tar.addfile(link)
    refused(copy, "ILSVRC2012_val_00000099.JPEG is a link or device")


def test_2010(of_2010: Path, tmp_path: Path) -> None:
    """Labels go by the devkit's own numbers and by names, not by the order in the tar; patches replace blanks by name."""
    pictures = make_2010(tmp_path / "again")
    with untouched(of_2010):
        listing = list_source(of_2010)
    check_listing(listing, pictures)
    assert (listing.source.kind, listing.source.year) == ("ilsvrc2010-archives", 2010)
    assert [row.ilsvrc_id for row in listing.classes] == [IDS_2010.index(wnid) + 1 for wnid in WNIDS]
    assert [row.words for row in listing.classes] == list(WORDS.values())
    assert [entry.label for entry in listing.splits["test"]] == [WNIDS.index(IDS_2010[number - 1]) for number in (3, 1)]
    assert "pictures replaced from patch_images.tar: 2" in listing.checks
    assert not any("img_test" in line for line in listing.checks)


def test_2010_under_its_other_names(of_2010: Path) -> None:
    """images_train.tar and an unpacked devkit-1.0, no test labels, no patches."""
    before = list_source(of_2010)
    for split in ("train", "val", "test"):
        (of_2010 / f"ILSVRC2010_images_{split}.tar").rename(of_2010 / f"images_{split}.tar")
    with tarfile.open(of_2010 / "ILSVRC2010_devkit-1.0.tar.gz") as tar:
        tar.extractall(of_2010)
    for name in ("ILSVRC2010_devkit-1.0.tar.gz", "ILSVRC2010_test_ground_truth.txt", "patch_images.tar"):
        (of_2010 / name).unlink()
    listing = list_source(of_2010)
    assert [entry.label for entry in listing.splits["test"]] == [-1, -1]
    assert [entry.label for entry in listing.splits["val"]] == [entry.label for entry in before.splits["val"]]
    assert "images_test.tar: its labels are in ILSVRC2010_test_ground_truth.txt, which is not there: label -1" in listing.checks
    assert any("patch_images.tar is not there" in line for line in listing.checks)
    assert listing.source.sha256 != before.source.sha256


MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no validation archive": (lambda f: (f / "ILSVRC2010_images_val.tar").unlink(), ("but not ILSVRC2010_images_val.tar", "image-net.org")),
    "no devkit": (lambda f: (f / "ILSVRC2010_devkit-1.0.tar.gz").unlink(), ("but not ILSVRC2010_devkit-1.0.tar.gz",)),
    "test labels of another set": (
        lambda f: (f / "ILSVRC2010_test_ground_truth.txt").write_text("1\n2\n3\n"),
        ("2 pictures", "ILSVRC2010_test_ground_truth.txt 3 lines"),
    ),
    "a test label that is none": (
        lambda f: (f / "ILSVRC2010_test_ground_truth.txt").write_text("1\n4\n"),
        ("ILSVRC2010_test_ground_truth.txt: line 2",),
    ),
    "test labels that are no numbers": (lambda f: (f / "ILSVRC2010_test_ground_truth.txt").write_text("1\nx\n"), ("class number a line",)),
    "a patch without a place": (
        lambda f: (f / "patch_images.tar").write_bytes(tar_of([("patch_images/val/ILSVRC2010_val_00000009.JPEG", b"x")])),
        ("patch_images.tar: patch_images/val/ILSVRC2010_val_00000009.JPEG replaces no picture",),
    ),
    "training archive cut": (lambda f: os.truncate(f / "ILSVRC2010_images_train.tar", 1500), ("ILSVRC2010_images_train.tar", "runs past the end at")),
    "the test archive of 2012": (
        lambda f: (f / "ILSVRC2010_images_test.tar").write_bytes(tar_of([("test/a_1.JPEG", b"x"), ("test/a_2.JPEG", b"x")])),
        ("test/a_1.JPEG stands where picture 00000001 should be",),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_2010_mistakes(of_2010: Path, mistake: str) -> None:
    make, words = MISTAKES[mistake]
    make(of_2010)
    refused(of_2010, *words)


def test_a_test_archive_that_is_not_there_needs_no_patches(of_2010: Path) -> None:
    (of_2010 / "ILSVRC2010_images_test.tar").unlink()
    listing = list_source(of_2010)
    assert list(listing.splits) == ["train", "val"]
    assert "pictures replaced from patch_images.tar: 1" in listing.checks


def test_three_members_of_one_name_get_keys_of_their_own(copy: Path) -> None:
    train = copy / "ILSVRC2012_img_train.tar"
    with tarfile.open(train) as tar:
        wnids = [member.name for member in tar.getmembers()]
    same = tar_of(("twice.JPEG", picture(str(k))) for k in range(3))
    train.write_bytes(tar_of((name, same) for name in wnids))
    entries = list_source(copy).splits["train"]
    assert len(entries) == 3 * CLASSES != TRAIN * CLASSES
    assert len({entry.key for entry in entries}) == 3 * CLASSES
