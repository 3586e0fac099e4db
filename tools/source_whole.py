"""The whole ImageNet of Fall 2011, 21,841 classes: a folder of nXXXXXXXX.tar, or one tar of them; training pictures only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.manifest import ClassEntry
from tools.source_archives import CHALLENGE_2010, CHALLENGE_2012, DOGS, class_tar_entries
from tools.source_entries import Entry, Layout, Listing, class_table, is_hidden, make_listing
from tools.source_golden import ILSVRC2012, is_real
from tools.source_tar import CUT, Member, bytes_bar, first_names, members
from tools.source_words import read_words

CLASSES = 21_841
_WORDS = ("words.txt", "synset_words.txt")
_OFFICIAL = {*CHALLENGE_2012.files, *CHALLENGE_2010.files, DOGS}
is_class_tar = re.compile(r"n[0-9]{8}\.tar").fullmatch


def list_whole(path: Path) -> Listing:
    """List a folder of class tars, or a tar of them. Raises InputError."""
    tars: Mapping[str, tuple[Path, Member | None]]
    if path.is_dir():
        tars = {tar.stem: (tar, None) for tar in path.iterdir() if is_class_tar(tar.name) and tar.is_file()}
    else:
        tars = _inner_tars(path)
    beside = path if path.is_dir() else path.parent
    words = next((read_words(beside / name) for name in _WORDS if (beside / name).is_file()), {})
    classes = class_table(tars, words)
    train: list[Entry] = []
    empty = []
    with bytes_bar(sum(tar.stat().st_size for tar in {tar for tar, _ in tars.values()}), f"listing {path.name}") as bar:
        for row in classes:
            tar, member = tars[row.wnid]
            size = member.size if member else tar.stat().st_size
            found = list(class_tar_entries(tar, member, row.index)) if size else []
            train += found
            empty += [] if found else [row.wnid]
            bar.update(size)
    checks = _checks(classes, empty, bool(words))
    return make_listing("whole-imagenet", classes, {"train": train}, year=_year(classes), checks=checks)


def _inner_tars(path: Path) -> dict[str, tuple[Path, Member | None]]:
    found: dict[str, tuple[Path, Member | None]] = {}
    for member in members(path):
        wnid = member.base.removesuffix(".tar")
        if not is_class_tar(member.base):
            raise InputError(f"{path}: member {member.name} is no nXXXXXXXX.tar; give a tar of class tars, or the folder that holds them")
        if wnid in found:
            raise InputError(f"{path}: class {wnid} is there twice, again at byte {member.header:,}: {CUT}")
        found[wnid] = (path, member)
    return found


def _year(classes: tuple[ClassEntry, ...]) -> Literal[2011, 2012]:
    return 2012 if is_real(ILSVRC2012, classes) else 2011


def _checks(classes: tuple[ClassEntry, ...], empty: Iterable[str], worded: bool) -> list[str]:
    checks = [f"{len(classes):,} classes" + (", as in Fall 2011" if len(classes) == CLASSES else f", of {CLASSES:,} in Fall 2011")]
    if is_real(ILSVRC2012, classes):
        checks.append(f"these are the 1,000 classes of {ILSVRC2012.name}: its training archive, unpacked once? there is no validation split here")
    unknown = sum(row.words == row.wnid for row in classes)
    if unknown:
        why = "the list of words does not have all" if worded else f"no {_WORDS[0]} is there"
        checks.append(f"{unknown:,} classes are called by their wnids: {why}")
    return checks + [f"class {wnid} has no pictures" for wnid in empty]


def _find(folder: Path) -> Path | None:
    tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and not is_hidden(path.name))
    return next((path for path in tars if is_class_tar(path.name)), None) or next(filter(_is_tar_of_class_tars, tars), None)


def _is_tar_of_class_tars(path: Path) -> bool:
    if path.name in _OFFICIAL or path.suffix != ".tar":
        return False
    return any(is_class_tar(name.rsplit("/", 1)[-1]) for name in first_names(path, 1))


LAYOUT = Layout(
    "the whole ImageNet of Fall 2011",
    "nXXXXXXXX.tar class archives, or a tar of them (Fall 2011)",
    _find,
    lambda path: bool(is_class_tar(path.name)) or _is_tar_of_class_tars(path),
    lambda path: list_whole(path.parent if is_class_tar(path.name) else path),
)
