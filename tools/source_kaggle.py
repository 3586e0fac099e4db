"""Kaggle's imagenet-object-localization-challenge as it is unpacked: training pictures by class, the others in one folder each."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from tools.source_entries import Entry, Layout, Listing, class_table, clean_key, is_hidden, make_listing, printable, stem_of
from tools.source_folders import CLS_LOC, VAL_LABELS, class_folder_entries, is_kaggle
from tools.source_golden import ILSVRC2012, check_golden
from tools.source_words import read_words

MAPPING = "LOC_synset_mapping.txt"
_WHERE = "it is among the files of kaggle.com/c/imagenet-object-localization-challenge/data"


def list_kaggle(folder: Path) -> Listing:
    """List the tree in `folder`, CLS-LOC. Raises InputError."""
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir() and not is_hidden(path.name))
    mapping = _upwards(folder, MAPPING)
    words = read_words(mapping) if mapping else {}
    unknown = sorted(set(names) ^ set(words)) if mapping else []
    if unknown:
        raise InputError(f"{folder / 'train'} and {mapping} have not the same classes: {unknown[0]} is in one only; unpack train/ again")
    solution = _upwards(folder, VAL_LABELS)
    if solution is None:
        raise InputError(f"{folder / 'val'} has no class folders and {VAL_LABELS} was not found in {folder} or above it; {_WHERE}")
    index_of = {name: index for index, name in enumerate(names)}
    splits = {
        "train": list(class_folder_entries(folder, "train", names)),
        "val": list(_labelled(folder / "val", _read_solution(solution, index_of), solution)),
    }
    if (folder / "test").is_dir():
        splits["test"] = [_entry(path, -1) for path in _pictures(folder / "test")]
    classes = class_table(names, words)
    checks = [] if mapping else [f"{MAPPING} was not found: classes are called by their wnids; {_WHERE}"]
    checks += check_golden(ILSVRC2012, folder, classes, splits, exact=True)
    return make_listing("kaggle", classes, splits, year=2012, checks=checks)


def _upwards(folder: Path, name: str) -> Path | None:
    """The file in CLS-LOC or beside one of the folders around it: ILSVRC/Data/CLS-LOC has three."""
    around = folder.resolve()
    return next((place / name for place in (around, *around.parents[:3]) if (place / name).is_file()), None)


def _read_solution(path: Path, index_of: dict[str, int]) -> dict[str, int]:
    """Label of each validation picture by its name without ending. Raises InputError."""
    labels: dict[str, int] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                label = index_of[row["PredictionString"].split()[0]]
                if labels.setdefault(row["ImageId"], label) != label:
                    raise KeyError(f"{row['ImageId']} stands there with two classes")
    except (KeyError, IndexError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        row_number = len(labels) + 2
        raise InputError(f"{path}: line {row_number} is not 'ImageId,PredictionString' with a class of train/ ({error}); {_WHERE}") from None
    return labels


def _labelled(folder: Path, labels: dict[str, int], solution: Path) -> Iterator[Entry]:
    found = _pictures(folder)
    missing = sorted(set(labels) - {stem_of(path) for path in found})
    if missing:
        raise InputError(f"{solution} has {len(missing):,} pictures that are not in {folder}, first {missing[0]}; unpack val/ again")
    for path in found:
        label = labels.get(stem_of(path))
        if label is None:
            raise InputError(f"{solution} has no line for {printable(path)}; {_WHERE}")
        yield _entry(path, label)


def _entry(path: str, label: int) -> Entry:
    name = printable("/".join(path.split("/")[-2:]))
    return Entry(name, clean_key(stem_of(name)), label, path, 0, os.path.getsize(path))


def _pictures(folder: Path) -> list[str]:
    """Files of a flat folder, by name. Raises InputError for what is none."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if not entry.is_file():
                raise InputError(f"{printable(entry.path)} is a folder or a broken link among pictures; move it, or unpack {folder.name}/ again")
            found.append(entry.path)
    return sorted(found)


def _find(folder: Path) -> Path | None:
    return next((folder / inner for inner in CLS_LOC if is_kaggle(folder / inner)), None)


def _tree_of(path: Path) -> Path:
    """CLS-LOC, given that folder or one of the tables that lie above it."""
    found = path if path.is_dir() else _find(path.absolute().parent)
    if found is None:
        raise InputError(f"{path.absolute().parent} has no ILSVRC/Data/CLS-LOC with train/ and val/; unpack Kaggle's archive beside {path.name}")
    return found


LAYOUT = Layout(
    "Kaggle's ILSVRC/Data/CLS-LOC",
    "ILSVRC/Data/CLS-LOC of Kaggle",
    _find,
    lambda path: path.name in (VAL_LABELS, MAPPING),
    lambda path: list_kaggle(_tree_of(path)),
)
