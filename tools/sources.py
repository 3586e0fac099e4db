"""Where pictures come from: the official ILSVRC2012 archives, read in place, or a tree of class folders."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import scipy.io

from pipeline.errors import InputError
from pipeline.manifest import ClassEntry, Source

TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


class Entry(NamedTuple):
    """A picture of the source: `size` bytes at `offset` of `file`. name: as in the source; key: its name in the shards."""

    name: str
    key: str
    label: int
    file: str
    offset: int
    size: int


@dataclass(frozen=True)
class Listing:
    """All of a source, in a fixed order: its classes by index, and per split its pictures."""

    source: Source
    classes: tuple[ClassEntry, ...]
    splits: dict[str, list[Entry]]


def list_source(folder: Path) -> Listing:
    """Recognise and list a source. Raises InputError where it is not complete or not known."""
    if (folder / TRAIN_TAR).exists():
        return _list_archives(folder)
    if (folder / "train").is_dir():
        return _list_class_folders(folder)
    raise InputError(
        f"{folder} has neither {TRAIN_TAR} (with {VAL_TAR} and {DEVKIT} beside it) nor train/CLASS/ folders; "
        "give the folder that holds them with --source"
    )


def _listing(kind: Literal["ilsvrc2012-archives", "class-folders"], classes: tuple[ClassEntry, ...], splits: dict[str, list[Entry]]) -> Listing:
    digest = hashlib.sha256()
    for split, entries in splits.items():
        _make_keys_unique(entries)
        for entry in entries:
            digest.update(f"{split} {entry.name!r} {entry.label} {entry.size}\n".encode())
    for row in classes:
        digest.update(f"{row.index} {row.wnid!r} {row.ilsvrc_id}\n".encode())
    return Listing(Source(kind=kind, sha256=digest.hexdigest()), classes, splits)


# --- the official archives


def _list_archives(folder: Path) -> Listing:
    for name in (VAL_TAR, DEVKIT):
        if not (folder / name).exists():
            raise InputError(f"{folder} has {TRAIN_TAR} but not {name}; put it beside (https://image-net.org, ILSVRC2012)")
    classes, truth = _read_devkit(folder / DEVKIT)
    index_of = {entry.wnid: entry.index for entry in classes}
    by_id = {entry.ilsvrc_id: entry.index for entry in classes}
    train = list(_train_entries(folder / TRAIN_TAR, index_of))
    val = list(_val_entries(folder / VAL_TAR, [by_id.get(number) for number in truth]))
    return _listing("ilsvrc2012-archives", classes, {"train": train, "val": val})


def _read_devkit(path: Path) -> tuple[tuple[ClassEntry, ...], list[int]]:
    """Class table in sorted-wnid order, and the ILSVRC2012_ID of each validation picture in file-name order."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                base = member.name.rsplit("/", 1)[-1]
                if base in (META, GROUND_TRUTH) and member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None, f"{member.name} is a file"
                    found[base] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{path}: {error}; download it again") from None
    for base in (META, GROUND_TRUTH):
        if base not in found:
            raise InputError(f"{path} has no data/{base}; download the devkit of ILSVRC2012 again")
    try:
        truth = [int(line) for line in found[GROUND_TRUTH].split()]
        synsets = scipy.io.loadmat(io.BytesIO(found[META]), squeeze_me=True)["synsets"]
        leaves = [(str(s["WNID"]), int(s["ILSVRC2012_ID"]), str(s["words"])) for s in synsets.reshape(-1) if int(s["num_children"]) == 0]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: {META} or {GROUND_TRUTH} cannot be read ({error}); download it again") from None
    table = tuple(ClassEntry(index=i, wnid=w, ilsvrc_id=n, words=words) for i, (w, n, words) in enumerate(sorted(leaves)))
    return table, truth


def _members(file: IO[bytes], where: str, size: int) -> Iterator[tarfile.TarInfo]:
    """Regular members of an uncompressed tar; one that is cut short anywhere is an InputError that says at which byte."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    raise InputError(f"{where}: member {member.name} at byte {member.offset} runs past the end at {size:,}: {_CUT}")
                if member.isfile():
                    yield member
                elif not member.isdir():
                    raise InputError(f"{where}: member {member.name} is a link or device, not a file: is this the official archive?")
            if tar.offset >= size:  # a whole tar ends with blocks of zeros; without them it was cut between two members
                raise InputError(f"{where}: no end-of-archive mark at its end, byte {size:,}: {_CUT}")
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{where}: {error}, {size:,} bytes in all: {_CUT}") from None


_CUT = "the download is incomplete; fetch it again"


def _train_entries(path: Path, index_of: dict[str, int]) -> Iterator[Entry]:
    size, seen = path.stat().st_size, set()
    with open(path, "rb") as outer:
        for archive in _members(outer, str(path), size):
            wnid = archive.name.rsplit("/", 1)[-1].removesuffix(".tar")
            if wnid not in index_of:
                raise InputError(f"{path}: member {archive.name} is no class of the devkit; do the two belong to the same year and task?")
            if wnid in seen:
                raise InputError(f"{path}: class {wnid} is there twice, again at byte {archive.offset}: {_CUT}")
            seen.add(wnid)
            inner = _Window(path, archive.offset_data, archive.size)
            for member in _members(cast(IO[bytes], inner), f"{path}: {archive.name}", archive.size):
                key = clean_key(Path(member.name).stem)
                yield Entry(f"{archive.name}/{member.name}", key, index_of[wnid], str(path), archive.offset_data + member.offset_data, member.size)
            inner.close()
    missing = sorted(set(index_of) - seen)
    if missing:
        raise InputError(f"{path} lacks {len(missing)} of the devkit's {len(index_of)} classes, first {missing[0]}; fetch it again")


def _val_entries(path: Path, labels: list[int | None]) -> Iterator[Entry]:
    with open(path, "rb") as file:
        members = sorted(_members(file, str(path), path.stat().st_size), key=lambda member: member.name.rsplit("/", 1)[-1])
    if len(members) != len(labels):
        raise InputError(f"{path} has {len(members):,} pictures, {GROUND_TRUTH} in the devkit {len(labels):,} lines; fetch both again")
    for number, (member, label) in enumerate(zip(members, labels, strict=True), 1):
        if label is None:
            raise InputError(f"{DEVKIT}: line {number} of {GROUND_TRUTH} is no ILSVRC2012_ID of {META}; fetch it again")
        if re.findall(r"\d+", Path(member.name).stem)[-1:] != [f"{number:08d}"]:  # the label goes by the number in the name
            raise InputError(f"{path}: {member.name} stands where picture {number:08d} should be, so one is missing or there twice; fetch it again")
        yield Entry(member.name, clean_key(Path(member.name).stem), label, str(path), member.offset_data, member.size)


class _Window(io.RawIOBase):
    """A range of a file as a file of its own: the tar inside a tar, without unpacking it."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size, self._at = open(path, "rb", buffering=0), start, size, 0

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._at)
        data = self._file.read(min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def close(self) -> None:
        self._file.close()
        super().close()


# --- a tree of class folders


def _list_class_folders(folder: Path) -> Listing:
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder / 'train'} has no class folders; expected train/CLASS/PICTURE")
    index_of = {name: index for index, name in enumerate(names)}
    shown = {name: printable(name) for name in names}
    classes = tuple(ClassEntry(index=index, wnid=shown[name], ilsvrc_id=None, words=shown[name]) for name, index in index_of.items())
    splits = {"train": list(_folder_entries(folder, "train", index_of))}
    if (folder / "val").is_dir():
        splits["val"] = list(_folder_entries(folder, "val", index_of))
    empty = sorted(set(range(len(names))) - {entry.label for entry in splits["train"]})
    if empty:
        raise InputError(f"the class folder {folder / 'train' / names[empty[0]]} is empty; put pictures there or remove it")
    return _listing("class-folders", classes, splits)


def _folder_entries(folder: Path, split: str, index_of: dict[str, int]) -> Iterator[Entry]:
    for place in sorted((folder / split).iterdir()):
        if place.name.startswith("."):
            continue
        if not place.is_dir():
            raise InputError(f"{place} is a file where class folders are expected; sort the pictures into {split}/CLASS/")
        if place.name not in index_of:
            raise InputError(f"{place} is no class of {folder / 'train'}; the splits must have the same class folders")
        for path in _files_below(place):
            name = printable(path.relative_to(folder / split).as_posix())
            inside = str(Path(name).with_suffix("")).replace("/", "_")
            stem = Path(name).stem if path.stem.startswith(f"{place.name}_") else inside
            yield Entry(name, clean_key(stem), index_of[place.name], str(path), 0, path.stat().st_size)


def _files_below(folder: Path) -> list[Path]:
    """Files of a class, links followed, hidden ones left out. What is neither file nor folder is an InputError."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place) / name
            if name.startswith("."):
                continue
            if not path.is_file():
                raise InputError(f"{printable(str(path))} is a broken link or no ordinary file; remove it or put the picture there")
            found.append(path)
    return sorted(found)


# --- names


def printable(name: str) -> str:
    """A file name as text that JSON and a terminal can carry on one line, even if its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n")


def clean_key(stem: str) -> str:
    """A key that every reader of WebDataset takes: letters, digits, _ and -; a name that had to be changed gets its digest."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", stem):
        return stem
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:60]}-{hashlib.sha256(stem.encode()).hexdigest()[:10]}"


def _make_keys_unique(entries: list[Entry]) -> None:
    """a.jpg and a.png of one class: later ones get the digest of their whole name."""
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        if entry.key in seen:
            entries[i] = entry = entry._replace(key=f"{entry.key[:60]}-{hashlib.sha256(entry.name.encode()).hexdigest()[:10]}")
        assert entry.key not in seen, f"two files of the source are called {entry.name}"
        seen.add(entry.key)
