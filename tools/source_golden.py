"""What is known for certain of the two challenges' data, and whether a listing agrees: counts, class list, validation labels.

Wrong labels give no error anywhere later, only a net that does not learn. The sums are of lists of wnids, one a line.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError
from pipeline.manifest import ClassEntry
from tools.source_entries import Entry


@dataclass(frozen=True)
class Golden:
    """Facts of one year's data.

    classes_sha256: of the wnids, in the order of the devkit's numbers if by_id, else sorted; counts: pictures of a split;
    a_class: pictures of each class in a split; first_ids: wnids of the devkit's numbers 1, 2, 3; first_val: wnids of the first
    validation pictures; val_sha256: of the wnids of all validation pictures in the order of their names; sizes: of files, bytes.
    """

    name: str
    classes_sha256: str
    by_id: bool
    counts: Mapping[str, int]
    a_class: Mapping[str, int]
    first_ids: tuple[str, ...] = ()
    first_val: tuple[str, ...] = ()
    val_sha256: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


ILSVRC2012 = Golden(
    name="ILSVRC2012",
    classes_sha256="70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    by_id=False,
    counts={"train": 1_281_167, "val": 50_000, "test": 100_000},
    a_class={"val": 50},
    first_ids=("n02119789", "n02100735", "n02110185"),
    first_val=("n01751748", "n09193705", "n02105855", "n04263257", "n03125729"),
    val_sha256="313fc3f23c864dde9183c9a368809065765dd1b657a6904fded44e3e46d34604",
    sizes={"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160},
)
ILSVRC2010 = Golden(
    name="ILSVRC2010",
    classes_sha256="7adbc52548651885b4ab764c8cd3366ad3cb29947fa8e0cb2cf243f565de82de",
    by_id=True,
    counts={"train": 1_261_406, "val": 50_000, "test": 150_000},
    a_class={"val": 50, "test": 150},
    first_ids=("n07711080", "n07711569", "n07767549"),
)


def wnids_digest(wnids: Iterable[str]) -> str:
    """SHA-256 of wnids, one a line."""
    return hashlib.sha256("".join(f"{wnid}\n" for wnid in wnids).encode()).hexdigest()


def is_real(golden: Golden, classes: Sequence[ClassEntry]) -> bool:
    """Whether this is the class list of that year, and not of another or of a part."""
    if not golden.by_id:
        return wnids_digest(sorted(row.wnid for row in classes)) == golden.classes_sha256
    numbered = sorted((row.ilsvrc_id, row.wnid) for row in classes if row.ilsvrc_id is not None)
    return wnids_digest(wnid for _, wnid in numbered) == golden.classes_sha256


def check_sizes(golden: Golden, files: Iterable[Path]) -> None:
    """Compare files with their published sizes. Raises InputError."""
    for file in files:
        has, published = file.stat().st_size, golden.sizes.get(file.name)
        if published is not None and has != published:
            why = f"the download stopped at byte {has:,}" if has < published else "it is not the official archive"
            raise InputError(f"{file} has {has:,} bytes, the official one {published:,}: {why}; fetch it again")


def check_golden(golden: Golden, where: Path, classes: Sequence[ClassEntry], splits: Mapping[str, Sequence[Entry]], exact: bool) -> tuple[str, ...]:
    """Compare a listing with what is known; the lines to print. exact: whether another count is an error. Raises InputError."""
    if not is_real(golden, classes):
        return (f"not the 1,000 classes of {golden.name} ({len(classes):,} classes): golden labels not checked",) if exact else ()
    counts = _check_counts(golden, where, splits, exact)
    _check_ids(golden, where, classes)
    good = ["class list", *_check_val(golden, where, classes, splits.get("val", ()))]
    for split, number in golden.a_class.items():
        if len(splits.get(split, ())) == golden.counts[split]:
            good += _check_each_class(golden, where, classes, split, splits[split], number)
    return counts, f"golden labels: right as in {golden.name}: {', '.join(good)}"


def _check_counts(golden: Golden, where: Path, splits: Mapping[str, Sequence[Entry]], exact: bool) -> str:
    shown = []
    for split, entries in splits.items():
        published = golden.counts[split]
        if len(entries) == published:
            shown.append(f"{published:,} {split}, as published")
        elif exact:
            raise InputError(f"{where} has {len(entries):,} {split} pictures, {golden.name} {published:,}; fetch or unpack the split again")
        else:
            shown.append(f"{len(entries):,} {split}, of {published:,} in {golden.name}")
    return f"counts: {'; '.join(shown)}"


def _check_ids(golden: Golden, where: Path, classes: Sequence[ClassEntry]) -> None:
    by_id = {row.ilsvrc_id: row.wnid for row in classes if row.ilsvrc_id is not None}
    for number, wnid in enumerate(golden.first_ids, 1):
        if by_id.get(number, wnid) != wnid:
            raise InputError(f"{where}: the devkit's class {number} is {by_id[number]}, in {golden.name} {wnid}; fetch the devkit again")


def _check_val(golden: Golden, where: Path, classes: Sequence[ClassEntry], entries: Sequence[Entry]) -> list[str]:
    """The first labels, those that are there, and the sum over all. Raises InputError."""
    official = re.compile(rf"(?:.*_)?({golden.name}_val_[0-9]{{8}})").fullmatch  # in class folders the class stands before it
    by_name = {found[1]: entry for entry in entries if (found := official(entry.key))}
    if entries and not by_name:
        return ["(the validation pictures do not have their official names, so their labels could not be checked)"]
    first = [(by_name.get(f"{golden.name}_val_{number:08d}"), wnid) for number, wnid in enumerate(golden.first_val, 1)]
    for entry, wnid in first:
        if entry is not None and classes[entry.label].wnid != wnid:
            raise InputError(f"{where}: {entry.name} is labelled {classes[entry.label].wnid}, in {golden.name} it is {wnid}: {_WRONG}")
    there = sum(entry is not None for entry, _ in first)
    good = [f"{there} of the first {len(first)} validation labels"] if there else []
    if golden.val_sha256 and len(by_name) == golden.counts["val"]:
        if wnids_digest(classes[by_name[name].label].wnid for name in sorted(by_name)) != golden.val_sha256:
            raise InputError(f"{where}: the first validation labels are right, but not all {len(by_name):,} of them: {_WRONG}")
        good.append(f"all {len(by_name):,} validation labels")
    return good


def _check_each_class(golden: Golden, where: Path, classes: Sequence[ClassEntry], split: str, entries: Sequence[Entry], number: int) -> list[str]:
    counts = Counter(entry.label for entry in entries)
    if set(counts) == {-1}:
        return []
    for row in classes:
        if counts[row.index] != number:
            raise InputError(f"{where}: class {row.wnid} has {counts[row.index]:,} {split} pictures, in {golden.name} each has {number}: {_WRONG}")
    return [f"{number} {split} pictures a class"]


_WRONG = "labels and pictures do not belong together; fetch the labels (devkit, list or folders) again"
