"""The official archives of ILSVRC2012 and ILSVRC2010, read in place: a tar of a tar a class, two flat tars, a devkit, patches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from tools.source_devkit import META, ground_truth, read_devkit, read_labels
from tools.source_entries import Entry, Layout, Listing, clean_key, make_listing, stem_of
from tools.source_golden import ILSVRC2010, ILSVRC2012, Golden, check_golden, check_sizes, is_real
from tools.source_tar import CUT, Member, bytes_bar, members

DOGS = "ILSVRC2012_img_train_t3.tar"


@dataclass(frozen=True)
class Challenge:
    """The files of one year, each by the names that it goes by, the usual one first. patches: pictures for those that were not available."""

    year: Literal[2010, 2012]
    kind: Literal["ilsvrc2010-archives", "ilsvrc2012-archives"]
    golden: Golden
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    devkit: tuple[str, ...]
    test_labels: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.val, *self.test, *self.devkit, *self.test_labels, *self.patches)


CHALLENGE_2012 = Challenge(
    year=2012,
    kind="ilsvrc2012-archives",
    golden=ILSVRC2012,
    train=("ILSVRC2012_img_train.tar",),
    val=("ILSVRC2012_img_val.tar",),
    test=("ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_img_test.tar"),
    devkit=("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar", "ILSVRC2012_devkit_t12"),
)
CHALLENGE_2010 = Challenge(
    year=2010,
    kind="ilsvrc2010-archives",
    golden=ILSVRC2010,
    train=("ILSVRC2010_images_train.tar", "images_train.tar"),
    val=("ILSVRC2010_images_val.tar", "images_val.tar"),
    test=("ILSVRC2010_images_test.tar", "images_test.tar"),
    devkit=("ILSVRC2010_devkit-1.0.tar.gz", "ILSVRC2010_devkit-1.0.tar", "devkit-1.0.tar.gz", "devkit-1.0"),
    test_labels=("ILSVRC2010_test_ground_truth.txt",),
    patches=("patch_images.tar", "ILSVRC2010_patch_images.tar"),
)


def list_archives(challenge: Challenge, folder: Path) -> Listing:
    """List the archives of one year. Raises InputError."""
    train, val, devkit = (_needed(folder, names, challenge) for names in (challenge.train, challenge.val, challenge.devkit))
    test = _present(folder, challenge.test)
    classes, truth = read_devkit(devkit, challenge.year)
    if is_real(challenge.golden, classes):
        check_sizes(challenge.golden, (train, val))
    by_id = {row.ilsvrc_id: row.index for row in classes}
    labels = [by_id.get(number) for number in truth]
    splits = {
        "train": list(_train_entries(train, {row.wnid: row.index for row in classes})),
        "val": list(_numbered_entries(val, labels, f"{ground_truth(challenge.year)} of {devkit.name}")),
    }
    checks: list[str] = []
    if test is not None:
        splits["test"] = _test_entries(test, _present(folder, challenge.test_labels), by_id)
        if splits["test"] and splits["test"][0].label < 0:
            checks.append(f"{test.name}: its labels {_why_none(challenge)}: label -1")
    if challenge.patches:
        checks += _patch(_present(folder, challenge.patches), splits)
    checks += check_golden(challenge.golden, folder, classes, splits, exact=True)
    return make_listing(challenge.kind, classes, splits, year=challenge.year, checks=checks)


def _why_none(challenge: Challenge) -> str:
    return f"are in {challenge.test_labels[0]}, which is not there" if challenge.test_labels else "were never published"


def _present(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _needed(folder: Path, names: Sequence[str], challenge: Challenge) -> Path:
    found = _present(folder, names)
    if found is None:
        has = next(name for name in challenge.files if (folder / name).exists())
        raise InputError(f"{folder} has {has} but not {names[0]}; put it beside (https://image-net.org, ILSVRC{challenge.year})")
    return found


def class_tar_entries(path: Path, archive: Member | None, label: int) -> Iterator[Entry]:
    """Pictures of one class: of a tar, or of one that is a member of it."""
    outer = archive.name if archive else path.name
    for member in members(path, archive):
        yield Entry(f"{outer}/{member.name}", clean_key(stem_of(member.name)), label, str(path), member.data, member.size)


def _train_entries(path: Path, index_of: dict[str, int]) -> Iterator[Entry]:
    seen = set()
    with bytes_bar(path.stat().st_size, f"listing {path.name}") as bar:
        for archive in members(path):
            wnid = archive.base.removesuffix(".tar")
            if wnid not in index_of:
                raise InputError(f"{path}: member {archive.name} is no class of the devkit; do the two belong to the same year and task?")
            if wnid in seen:
                raise InputError(f"{path}: class {wnid} is there twice, again at byte {archive.header:,}: {CUT}")
            seen.add(wnid)
            yield from class_tar_entries(path, archive, index_of[wnid])
            bar.update(archive.data + archive.size - bar.n)
    missing = sorted(set(index_of) - seen)
    if missing:
        raise InputError(f"{path} lacks {len(missing)} of the devkit's {len(index_of)} classes, first {missing[0]}; fetch it again")


def _numbered_entries(path: Path, labels: Sequence[int | None] | None, of: str = "") -> Iterator[Entry]:
    """Pictures of a flat tar by their base names, whose numbers have to be 1, 2, ...; labels stand in that order, read from `of`.

    labels: None where they are not known.
    """
    found = sorted(members(path), key=lambda member: member.base)
    if labels is None:
        labels = [-1] * len(found)
    if len(found) != len(labels):
        raise InputError(f"{path} has {len(found):,} pictures, {of} {len(labels):,} lines; fetch both again")
    for number, (member, label) in enumerate(zip(found, labels, strict=True), 1):
        if label is None:
            raise InputError(f"{of}: line {number} is no class number of {META}; fetch it again")
        if re.findall(r"\d+", stem_of(member.name))[-1:] != [f"{number:08d}"]:  # the label goes by the number in the name
            raise InputError(f"{path}: {member.name} stands where picture {number:08d} should be, so one is missing or there twice; fetch it again")
        yield Entry(member.name, clean_key(stem_of(member.name)), label, str(path), member.data, member.size)


def _test_entries(path: Path, truth: Path | None, by_id: dict[int | None, int]) -> list[Entry]:
    if truth is not None:
        return list(_numbered_entries(path, [by_id.get(number) for number in read_labels(truth)], truth.name))
    return list(_numbered_entries(path, None))


def _patch(path: Path | None, splits: dict[str, list[Entry]]) -> list[str]:
    """Put the pictures of the patch archive in place of those of the same base name. Raises InputError for one that has no place."""
    if path is None:
        return ["patch_images.tar is not there: pictures that were not available when the archives were made stay blank"]
    place_of = {split: {entry.name.rsplit("/", 1)[-1]: i for i, entry in enumerate(entries)} for split, entries in splits.items()}
    patched = 0
    for member in members(path):
        split = member.name.split("/")[-2:][0]
        if split == "test" and split not in splits:  # its archive is not there
            continue
        place = place_of.get(split, {}).get(member.base)
        if place is None:
            raise InputError(f"{path}: {member.name} replaces no picture of the archives; do they belong together? fetch it again")
        splits[split][place] = splits[split][place]._replace(file=str(path), offset=member.data, size=member.size)
        patched += 1
    return [f"pictures replaced from {path.name}: {patched:,}"]


def _layout(challenge: Challenge) -> Layout:
    return Layout(
        f"the archives of ILSVRC{challenge.year}",
        f"{challenge.train[0]} (with {challenge.val[0]} and {challenge.devkit[0]} beside it)",
        lambda folder: _present(folder, challenge.train),
        lambda path: path.name in challenge.files,
        lambda path: list_archives(challenge, path.parent),
    )


LAYOUTS = (_layout(CHALLENGE_2012), _layout(CHALLENGE_2010))
