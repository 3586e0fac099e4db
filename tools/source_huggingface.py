"""What both forms of Hugging Face's imagenet-1k have in common: the names of their pictures and of their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError
from tools.source_entries import stem_of

_CLASS_BEHIND = re.compile(r"(.+)_(n[0-9]{8})").fullmatch
_CLASS_BEFORE = re.compile(r"(n[0-9]{8})_[0-9]+").fullmatch


def official_stem(name: str) -> tuple[str, str]:
    """A picture's official name without ending, and its wnid: "n01440764_10026_n01440764.JPEG" has the class behind the name.

    So has no official name itself, of which those of training pictures begin with it. The wnid is "" where there is none.
    """
    stem = stem_of(name)
    if found := _CLASS_BEHIND(stem):
        return found[1], found[2]
    return stem, found[1] if (found := _CLASS_BEFORE(stem)) else ""


def folders_of(folder: Path) -> tuple[Path, Path]:
    """Where the files of a data set may lie."""
    return folder, folder / "data"


def check_parts(folder: Path, names: Sequence[str]) -> str | None:
    """That none of the parts -NNNNN-of-MMMMM of one split is missing; a line for parts that are not numbered so. Raises InputError."""
    parts = [re.search(r"-([0-9]+)-of-([0-9]+)", name) for name in names]
    if not all(parts):
        return f"{names[0]}: parts are not numbered NNNNN-of-MMMMM, so whether all are there was not checked"
    totals = {int(part[2]) for part in parts if part}
    if len(totals) != 1:
        one, other = sorted(totals)[:2]
        raise InputError(f"{folder} has parts of {one} and parts of {other} of the same split; keep those of one download")
    total, there = totals.pop(), {int(part[1]) for part in parts if part}
    if len(there) != len(names):
        raise InputError(f"{folder} has {len(names)} files for {len(there)} parts of the same split; keep those of one download")
    missing = sorted(set(range(total)) - there)
    if missing:
        example = re.sub(r"-([0-9]+)-of-", lambda found: f"-{missing[0]:0{len(found[1])}d}-of-", names[0])
        raise InputError(f"{folder} lacks {len(missing)} of {total} parts, first {example}; fetch them")
    return None
