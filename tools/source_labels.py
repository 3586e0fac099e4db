"""Class tables of sources that carry labels as numbers: which wnid and which words each number stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.errors import InputError
from pipeline.manifest import ClassEntry

MOST = 1_000_000  # classes; a label beyond is damage, and a table up to it would fill the memory
WNID = re.compile(r"n[0-9]{8}").fullmatch


def table_of_labels(train: Iterable[tuple[int, str]], names: Sequence[str] | None, where: object) -> tuple[tuple[ClassEntry, ...], list[str]]:
    """Classes of the labels 0, 1, ... and lines on how they were named.

    train: label and wnid ("" if unknown) of every training picture; names: of the labels, where the source has them. Where every
    picture has a wnid and they go with the labels one to one, they are the classes' wnids. Raises InputError for a label out of range.
    """
    pairs = set(train)
    highest = max((label for label, _ in pairs), default=-1)
    if highest >= (len(names) if names else MOST) or any(label < 0 for label, _ in pairs):
        wrong = min((label for label, _ in pairs), default=0)
        limit = f"its {len(names):,} class names" if names else f"{MOST:,} classes"
        raise InputError(f"{where}: a training picture has label {min(wrong, 0) or highest}, outside of {limit}; fetch it again")
    count = len(names) if names else highest + 1
    wnid_of, why_not = _one_to_one(pairs)
    table = []
    for label in range(count):
        wnid = wnid_of.get(label, "")
        words = names[label] if names else wnid or f"class {label}"
        table.append(ClassEntry(index=label, wnid=wnid or words, ilsvrc_id=None, words=words))
    return tuple(table), list(_remarks(table, pairs, why_not, bool(names)))


def _one_to_one(pairs: set[tuple[int, str]]) -> tuple[dict[int, str], str]:
    """wnid by label; or nothing, and why."""
    if not pairs or any(not wnid for _, wnid in pairs):
        return {}, "the pictures' names do not carry wnids"
    wnid_of, label_of = dict(sorted(pairs)), {wnid: label for label, wnid in pairs}
    if len(wnid_of) != len(pairs) or len(label_of) != len(pairs):
        return {}, "the wnids in the pictures' names do not go with the labels one to one"
    return wnid_of, ""


def _remarks(table: list[ClassEntry], pairs: set[tuple[int, str]], why_not: str, named: bool) -> Iterable[str]:
    if why_not:
        yield f"{why_not}: classes are called by {'their names in the source' if named else 'their numbers'}"
    elif [row.wnid for row in table] != sorted(row.wnid for row in table):
        yield "classes are in the order of the source's labels, not by sorted wnid"
    without = sorted(set(range(len(table))) - {label for label, _ in pairs})
    if without:
        yield f"{len(without):,} of {len(table):,} classes have no training picture, first {without[0]} ({table[without[0]].words})"
