"""The whole ImageNet: a folder of class tars, or a tar of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_fixtures import WNIDS, WORDS, all_pictures, class_tars, read, refused, tar_of, untouched

from tools.sources import list_source


@pytest.fixture(params=["folder", "tar"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The source; words.txt beside it, tabs and all, with classes that are not there."""
    place = tmp_path / "whole"
    place.mkdir()
    tars = {**class_tars(), "n00000001": b"", "n00000002": tar_of([])}
    if request.param == "folder":
        for wnid, data in tars.items():
            (place / f"{wnid}.tar").write_bytes(data)
    else:
        (place / "fall11_whole.tar").write_bytes(tar_of((f"{wnid}.tar", data) for wnid, data in reversed(tars.items())))
    (place / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in {"n00000003": "x", **WORDS}.items()))
    return place


def test_whole(whole: Path) -> None:
    with untouched(whole):
        listing = list_source(whole)
    assert (listing.source.kind, listing.source.year) == ("whole-imagenet", 2011)
    assert [row.wnid for row in listing.classes] == ["n00000001", "n00000002", *WNIDS]
    assert [row.words for row in listing.classes][2:] == list(WORDS.values())
    train = listing.splits.pop("train")
    assert not listing.splits
    assert {entry.key: read(entry) for entry in train} == all_pictures(2012)["train"]
    assert all(listing.classes[entry.label].wnid == entry.key.split("_")[0] for entry in train)
    for line in ("class n00000001 has no pictures", "class n00000002 has no pictures", "5 classes, of 21,841 in Fall 2011"):
        assert line in listing.checks
    assert "2 classes are called by their wnids: the list of words does not have all" in listing.checks


def test_without_words(whole: Path) -> None:
    (whole / "words.txt").unlink()
    listing = list_source(whole)
    assert [row.words for row in listing.classes] == [row.wnid for row in listing.classes]
    assert "5 classes are called by their wnids: no words.txt is there" in listing.checks


def test_one_of_its_files_may_be_given(whole: Path) -> None:
    tar = next(path for path in sorted(whole.iterdir()) if path.suffix == ".tar")
    assert list_source(tar) == list_source(whole)


def test_mistakes(tmp_path: Path) -> None:
    tars = list(class_tars().items())
    path = tmp_path / "fall11_whole.tar"
    path.write_bytes(tar_of([(f"{wnid}.tar", data) for wnid, data in (*tars, tars[0])]))
    refused(tmp_path, "n01440764 is there twice")
    path.write_bytes(tar_of([(f"{tars[0][0]}.tar", tars[0][1]), ("readme.txt", b"x")]))
    refused(tmp_path, "readme.txt is no nXXXXXXXX.tar")
    path.unlink()
    (tmp_path / "n01440764.tar").write_bytes(tars[0][1][:600])
    refused(tmp_path, "n01440764.tar", "runs past the end at 600", "fetch it again")
