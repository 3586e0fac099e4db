"""Hugging Face's older imagenet-1k: train_images_N.tar.gz, val_images.tar.gz, test_images.tar.gz; the class is in each picture's name."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from pipeline.errors import InputError
from tools.source_entries import MAX_FILE, Entry, Layout, Listing, class_table, clean_key, make_listing, printable
from tools.source_golden import ILSVRC2012, check_golden
from tools.source_huggingface import folders_of, official_stem
from tools.source_tar import CUT, DAMAGE, StrictInfo, bytes_bar, is_picture

CLASSES = "classes.py"
BUFFER = 1 << 15  # bytes read at a time; tarfile copies what is left of a block at each read, so larger ones are slower
_PART = re.compile(r"(train|val|test)_images(?:_([0-9]+))?\.tar\.gz").fullmatch


def list_targz(folder: Path) -> Listing:
    """List the archives in `folder`, reading each through once. Raises InputError."""
    parts = _parts(folder)
    found = {split: list(_named(paths)) for split, paths in parts.items()}
    if not found.get("train"):
        raise InputError(f"{folder} has no pictures in train_images_0.tar.gz, ..._4.tar.gz; fetch the training files")
    words = _words(folder)
    classes = class_table({wnid for wnid, _ in found["train"]}, words)
    index_of = {row.wnid: row.index for row in classes}
    splits = {split: [_labelled(entry, wnid, split, index_of) for wnid, entry in entries] for split, entries in found.items()}
    checks = [] if words else [f"{CLASSES} is not there: classes are called by their wnids"]
    checks += check_golden(ILSVRC2012, folder, classes, splits, exact=True)
    return make_listing("huggingface-archives", classes, splits, year=2012, checks=checks, streamed="tar.gz")


def _parts(folder: Path) -> dict[str, list[Path]]:
    """The archives of each split, by number. Raises InputError for a gap."""
    found: dict[str, dict[int, Path]] = {}
    for path in folder.iterdir():
        part = _PART(path.name)
        if part:
            found.setdefault(part[1], {})[int(part[2] or 0)] = path
    for split, paths in found.items():
        missing = sorted(set(range(max(paths) + 1)) - set(paths))
        if missing:
            raise InputError(f"{folder} has {paths[max(paths)].name} but not {split}_images_{missing[0]}.tar.gz; fetch it")
    return {split: [found[split][n] for n in sorted(found[split])] for split in ("train", "val", "test") if split in found}


def _named(paths: list[Path]) -> Iterator[tuple[str, Entry]]:
    """wnid, "" for none, and entry of each picture, the label still open."""
    for path in paths:
        with bytes_bar(path.stat().st_size, f"listing {path.name}") as bar:
            for number, (member, _) in enumerate(_pictures(path, None, bar)):
                name = printable(member.name)
                stem, wnid = official_stem(name)
                yield wnid, Entry(f"{path.name}/{name}", clean_key(stem), -1, str(path), number, member.size)


def _labelled(entry: Entry, wnid: str, split: str, index_of: dict[str, int]) -> Entry:
    if wnid in index_of:
        return entry._replace(label=index_of[wnid])
    if split == "test" and not wnid:
        return entry
    why = f"its class {wnid} is not among the training pictures" if wnid else "its name does not end in _nXXXXXXXX, its class"
    raise InputError(f"{entry.file}: {entry.name}: {why}; fetch the archives again")


def _words(folder: Path) -> dict[str, str]:
    """Words by wnid from the list that lies beside the archives or above data/; it is read as text, not run."""
    for place in (folder, folder.parent):
        if (place / CLASSES).is_file():
            text = (place / CLASSES).read_text(encoding="utf-8", errors="replace")
            return {wnid: words for wnid, _, words in re.findall(r"""["'](n[0-9]{8})["']\s*:\s*(["'])(.*?)\2\s*,?\s*\n""", text)}
    return {}


def read_targz(file: str, first: int, count: int) -> Iterator[bytes]:
    """Pictures first ... first + count - 1 in stored order; those before are read through. Raises InputError."""
    left = count
    for number, (_, data) in enumerate(_pictures(Path(file), first)):
        if left and number >= first:
            yield data
            left -= 1
        if not left:
            return
    if left:
        raise InputError(f"{file} has fewer than the {first + count:,} pictures that were listed; was it changed?")


def _pictures(path: Path, first: int | None, bar: tqdm | None = None) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Regular members but hidden ones, one behind the other, with their data from number `first` on.

    Raises InputError for an archive that is cut short or damaged, with the last member that was reached.
    """
    number, reached = 0, "its beginning"
    try:
        with (
            open(path, "rb") as compressed,
            gzip.open(compressed) as plain,
            tarfile.open(fileobj=cast(IO[bytes], plain), mode="r|", bufsize=BUFFER, tarinfo=StrictInfo) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                reached = printable(member.name)
                if is_picture(member, str(path)):
                    if member.size > MAX_FILE:
                        raise tarfile.ReadError(f"{member.size:,} bytes are no picture")
                    data = cast(IO[bytes], tar.extractfile(member)).read() if first is not None and number >= first else b""
                    yield member, data
                    number += 1
                if bar is not None:
                    bar.update(compressed.tell() - bar.n)
            while rest := plain.read(BUFFER):  # to the end, where gzip's sum over all of it stands
                if any(rest):
                    raise tarfile.ReadError("something follows the end of the archive")
    except (*DAMAGE, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {error}, at or after {reached}: {CUT}") from None


def _find(folder: Path) -> Path | None:
    for place in folders_of(folder):
        if place.is_dir():
            found = sorted(path for path in place.iterdir() if _PART(path.name))
            if found:
                return found[0]
    return None


LAYOUT = Layout(
    "Hugging Face's train_images_N.tar.gz",
    "train_images_0.tar.gz and val_images.tar.gz, in the folder or its data/ (Hugging Face, older)",
    _find,
    lambda path: bool(_PART(path.name)),
    lambda path: list_targz(path.parent),
)
