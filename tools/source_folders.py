"""A tree of class folders, as torchvision's ImageFolder takes it: train/CLASS/PICTURE, and val/CLASS/PICTURE if there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.manifest import ClassEntry
from tools.source_entries import Entry, Layout, Listing, clean_key, is_hidden, make_listing, printable, stem_of
from tools.source_golden import ILSVRC2012, check_golden

CLS_LOC = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where Kaggle's tree may begin, seen from the folder that was given
VAL_LABELS = "LOC_val_solution.csv"


def list_class_folders(folder: Path) -> Listing:
    """List the tree in `folder`. Raises InputError."""
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir() and not is_hidden(path.name))
    if not names:
        raise InputError(f"{folder / 'train'} has no class folders; expected train/CLASS/PICTURE")
    splits = {"train": list(class_folder_entries(folder, "train", names))}
    if (folder / "val").is_dir():
        splits["val"] = list(class_folder_entries(folder, "val", names))
    classes = tuple(ClassEntry(index=i, wnid=printable(name), ilsvrc_id=None, words=printable(name)) for i, name in enumerate(names))
    checks = [*_left_alone(folder), *check_golden(ILSVRC2012, folder, classes, splits, exact=False)]
    return make_listing("class-folders", classes, splits, checks=checks)


def _left_alone(folder: Path) -> Iterator[str]:
    """Folders that look like splits and are none here."""
    for name in ("valid", "validation", "test"):
        if (folder / name).is_dir():
            yield f"{name}/ is left alone: a tree of class folders has train/ and val/"


def class_folder_entries(folder: Path, split: str, names: list[str]) -> Iterator[Entry]:
    """Pictures of one split; names: of the class folders, sorted. Raises InputError for what is out of place, and for an empty class."""
    index_of = {name: index for index, name in enumerate(names)}
    seen = set()
    for place in sorted((folder / split).iterdir()):
        if is_hidden(place.name):
            continue
        if not place.is_dir():
            remedy = f"move it, or sort pictures into {split}/CLASS/" + (f", or put Kaggle's {VAL_LABELS} into {folder}" if split == "val" else "")
            raise InputError(f"{place} is a file where class folders are expected; {remedy}")
        if place.name not in index_of:
            raise InputError(f"{place} is no class of {folder / 'train'}; the splits must have the same class folders")
        for path in _files_below(str(place)):
            seen.add(place.name)
            name = printable(path[len(str(folder / split)) + 1 :])
            stem = stem_of(name)
            if not stem.startswith(f"{place.name}_"):  # not a name that is unique by itself
                stem = "_".join([*name.split("/")[:-1], stem])
            yield Entry(name, clean_key(stem), index_of[place.name], path, 0, os.path.getsize(path))
    empty = sorted(set(names) - seen)
    if empty and split == "train":
        raise InputError(f"the class folder {folder / split / empty[0]} is empty; put pictures there or remove it")


def _not_listed(error: OSError) -> None:
    """Pictures that are not seen would be lost without a word."""
    raise InputError(f"{printable(str(error.filename))} cannot be listed: {error.strerror}; mend its rights or the disk")


def _files_below(folder: str) -> list[str]:
    """Files of a class, links followed, hidden ones left out. What is neither file nor folder is an InputError."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_not_listed):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in names:
            path = os.path.join(place, name)
            if is_hidden(name):
                continue
            if not os.path.isfile(path):
                raise InputError(f"{printable(path)} is a broken link or no ordinary file; remove it or put the picture there")
            found.append(path)
    return sorted(found, key=lambda path: path.split("/"))


def is_kaggle(folder: Path) -> bool:
    """Whether the validation pictures lie in one folder, with the labels in Kaggle's table: CLS-LOC as it is unpacked."""
    known = folder.absolute().name == "CLS-LOC" or (folder / VAL_LABELS).is_file()
    if not known or not (folder / "train").is_dir() or not (folder / "val").is_dir():
        return False
    with os.scandir(folder / "val") as found:
        return any(entry.is_file() and not is_hidden(entry.name) for entry in found)


def _find(folder: Path) -> Path | None:
    for place in (folder / inner for inner in CLS_LOC):
        if (place / "train").is_dir() and not is_kaggle(place) and not _holds_only_tars(place / "train"):
            return place / "train"
    return None


def _holds_only_tars(folder: Path) -> bool:
    names = [path for path in folder.iterdir() if not is_hidden(path.name)]
    return bool(names) and all(path.name.endswith((".tar", ".idx")) and path.is_file() for path in names)


LAYOUT = Layout(
    "class folders",
    "train/CLASS/ folders",
    _find,
    lambda path: path.name == "train" and path.is_dir() and not is_kaggle(path.parent),
    lambda path: list_class_folders(path.parent),
)
