"""What every source is listed as: pictures with their place, name and label, and the classes that the labels are of."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.manifest import ClassEntry, Source, SourceKind

PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp")
KEY_LENGTH = 80
MAX_FILE = 256 << 20  # bytes of a picture's file, also when unwrapped from gzip


class Entry(NamedTuple):
    """A picture of the source. name: as in the source, for messages; key: its name in the shards; label: class index, -1 where
    nobody has published it (test splits).

    A source that can be read anywhere has the picture as `size` bytes at `offset` of `file`. A streamed source has in `offset` the
    number of the picture in its file, 0, 1, ..., without gaps, and in `size` its bytes, or -1 where they would have to be read.
    """

    name: str
    key: str
    label: int
    file: str
    offset: int
    size: int


@dataclass(frozen=True)
class Listing:
    """All of a source, in a fixed order: its classes by index, and per split its pictures.

    checks: one line for each check that was made, or could not be; streamed: how its files have to be read, "" for anywhere.
    """

    source: Source
    classes: tuple[ClassEntry, ...]
    splits: dict[str, list[Entry]]
    checks: tuple[str, ...] = ()
    streamed: Literal["", "parquet", "tar.gz"] = ""


class Layout(NamedTuple):
    """One form in which people have pictures.

    what: its name; looked_for: what it is known by, for the message where nothing is recognised; find: that file or folder in a
    folder, or None; owns: whether a path is one of its files, so that giving it chooses this layout; list: from either of the two.
    """

    what: str
    looked_for: str
    find: Callable[[Path], Path | None]
    owns: Callable[[Path], bool]
    list: Callable[[Path], Listing]


def make_listing(
    kind: SourceKind,
    classes: tuple[ClassEntry, ...],
    splits: dict[str, list[Entry]],
    *,
    year: Literal[2010, 2011, 2012] | None = None,
    checks: Iterable[str] = (),
    streamed: Literal["", "parquet", "tar.gz"] = "",
) -> Listing:
    """The listing with its keys made unique, and its SHA-256: over names, labels and sizes, and of a stream its files' sizes as well."""
    digest = hashlib.sha256()
    for split, entries in splits.items():
        _make_keys_unique(entries)
        for entry in entries:
            digest.update(f"{split} {entry.name!r} {entry.label} {entry.size}\n".encode())
    for row in classes:
        digest.update(f"{row.index} {row.wnid!r} {row.ilsvrc_id}\n".encode())
    if streamed:
        for file in dict.fromkeys(entry.file for entries in splits.values() for entry in entries):
            digest.update(f"{os.path.basename(file)!r} {os.path.getsize(file)}\n".encode())
    return Listing(Source(kind=kind, sha256=digest.hexdigest(), year=year), classes, splits, tuple(checks), streamed)


def class_table(wnids: Iterable[str], words: Mapping[str, str] | None = None, ids: Mapping[str, int] | None = None) -> tuple[ClassEntry, ...]:
    """Classes by sorted wnid; one without words is called by its wnid."""
    return tuple(
        ClassEntry(index=index, wnid=wnid, ilsvrc_id=None if ids is None else ids[wnid], words=(words or {}).get(wnid, wnid))
        for index, wnid in enumerate(sorted(wnids))
    )


def printable(name: str) -> str:
    """A file name as text that JSON and a terminal can carry on one line, even if its bytes are not UTF-8."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def stem_of(name: str) -> str:
    """A file's name without its folders and its last ending."""
    base = name.rsplit("/", 1)[-1]
    dot = base.rfind(".")
    return base[:dot] if 0 < dot < len(base) - 1 else base


def is_hidden(name: str) -> bool:
    """Whether a base name is that of a file which systems put beside pictures: hidden ones, "._x" of macOS and Thumbs.db among them."""
    base = name.rsplit("/", 1)[-1]
    return base.startswith(".") or base in ("Thumbs.db", "desktop.ini")


def clean_key(stem: str) -> str:
    """A key that every reader of WebDataset takes: letters, digits, _ and -; a name that had to be changed gets its digest."""
    if _CLEAN(stem):
        return stem
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:60]}-{hashlib.sha256(stem.encode()).hexdigest()[:10]}"


_CLEAN = re.compile(rf"[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}").fullmatch


def _make_keys_unique(entries: list[Entry]) -> None:
    """a.jpg and a.png of one class: later ones get the digest of their whole name."""
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        name, first = entry.name, entry.key[:60]
        while entry.key in seen:
            entries[i] = entry = entry._replace(key=f"{first}-{hashlib.sha256(name.encode()).hexdigest()[:10]}")
            name += "#"  # the same name more than twice
        seen.add(entry.key)
