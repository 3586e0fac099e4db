"""A WebDataset of pictures and labels, ours among them, read in place: KEY.jpg beside KEY.cls or KEY.json in uncompressed tars."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.errors import InputError
from pipeline.manifest import NAME as MANIFEST
from pipeline.manifest import Manifest, read_manifest
from tools.source_archives import CHALLENGE_2010, CHALLENGE_2012, DOGS
from tools.source_entries import PICTURE_ENDINGS, Entry, Layout, Listing, clean_key, is_hidden, make_listing, stem_of
from tools.source_golden import ILSVRC2012, check_golden
from tools.source_labels import table_of_labels
from tools.source_tar import Member, bytes_bar, first_names, members, read_member
from tools.source_whole import is_class_tar
from tools.source_words import read_lines

_UNFINISHED = ".progress.jsonl"  # of make_shards
_NAME_LISTS = ("classnames.txt", "classes.txt")
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_IN = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])")
_OFFICIAL_STEM = re.compile(r"(?:(n[0-9]{8})_[0-9]+|ILSVRC20[0-9]{2}_\w+)").fullmatch
_NOT_OURS = {*CHALLENGE_2012.files, *CHALLENGE_2010.files, DOGS}
_LABEL_BYTES = 1 << 20  # of a .cls or .json; damage has more

_Parts = dict[str, Member]  # members of one sample, by their endings


def list_webdataset(folder: Path) -> Listing:
    """List a folder of tars. Raises InputError."""
    if (folder / _UNFINISHED).exists() and not (folder / MANIFEST).exists():
        raise InputError(f"{folder} holds shards that make_shards was stopped in writing; run that command again first")
    ours = _manifest(folder)
    tars, remarks = _tars_of(folder, ours) if ours else _tars(folder)
    if "train" not in tars:
        raise InputError(f"{folder} has {next(iter(tars.values()))[0].name}, but no tar with train in its name; put the training tars there")
    found = {split: list(_entries(paths, split)) for split, paths in tars.items()}
    if ours:
        classes, named = ours.classes, [f"classes are those of {MANIFEST}"]
    else:
        pairs = ((entry.label, wnid) for wnid, entry in found["train"])
        classes, named = table_of_labels(pairs, _class_names(folder), f"{folder}: train")
    splits = {split: [_checked(entry, split, len(classes)) for _, entry in entries] for split, entries in found.items()}
    checks = [*remarks, *named, *check_golden(ILSVRC2012, folder, classes, splits, exact=False)]
    return make_listing("webdataset", classes, splits, year=ours.source.year if ours else None, checks=checks)


def _manifest(folder: Path) -> Manifest | None:
    """Of a folder that make_shards wrote; None for another's, whatever else is called manifest.json there."""
    try:
        written_by_us = "format_version" in json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return read_manifest(folder)[0] if written_by_us else None


def _tars_of(folder: Path, ours: Manifest) -> tuple[dict[str, list[Path]], list[str]]:
    tars: dict[str, list[Path]] = {split: [folder / shard.name for shard in made.shards] for split, made in ours.splits.items() if made.shards}
    for path in (path for paths in tars.values() for path in paths):
        if not path.is_file():
            raise InputError(f"{path} is missing, and {MANIFEST} has it; copy it there again")
    return tars, []


def _tars(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Tars by split, which is in their names, or in that of their folder; a line if it is in none. Raises InputError."""
    found: dict[str, list[Path]] = {"train": [], "val": [], "test": [], "": []}
    for path in _candidates(folder):
        splits = {_SPLITS[word] for word in _SPLIT_IN.findall(path.name.lower())} or {_SPLITS.get(path.parent.name, "")}
        if len(splits) > 1:
            raise InputError(f"{path.name} has the names of two splits, {' and '.join(sorted(splits))}; rename it")
        found[splits.pop()].append(path)
    without = found.pop("")
    tars = {split: paths for split, paths in found.items() if paths}
    if without and tars:
        raise InputError(f"{without[0]} does not have train, val or test in its name, and others there do; move it or rename it")
    return (tars, []) if tars else ({"train": without}, ["no tar has train, val or test in its name: all are taken for training"])


def _candidates(folder: Path) -> list[Path]:
    """Tars of the folder, and of folders in it that are called like splits, in the order of their names."""
    places = [folder, *(folder / split for split in _SPLITS if (folder / split).is_dir())]
    return [path for place in places for path in sorted(place.glob("*.tar")) if _may_be(path)]


def _may_be(path: Path) -> bool:
    return path.is_file() and not is_hidden(path.name) and path.name not in _NOT_OURS and not is_class_tar(path.name)


def _entries(paths: list[Path], split: str) -> Iterator[tuple[str, Entry]]:
    """wnid, "" if unknown, and entry of each sample."""
    with bytes_bar(sum(path.stat().st_size for path in paths), f"listing {split}") as bar:
        for path in paths:
            with open(path, "rb") as file:
                for key, parts in _samples(path).items():
                    yield _entry(path, file, key, parts, split)
            bar.update(path.stat().st_size)


def _samples(path: Path) -> dict[str, _Parts]:
    """Members by key, all before the first dot of the base name, as in the webdataset package."""
    samples: dict[str, _Parts] = {}
    for member in members(path):
        ending = member.base.partition(".")[2]
        if not ending:
            continue
        parts = samples.setdefault(member.name[: len(member.name) - len(ending) - 1], {})
        if parts.setdefault(ending.lower(), member) is not member:
            raise InputError(f"{path}: {member.name} is there twice, again at byte {member.header:,}; make this WebDataset again")
    return samples


def _entry(path: Path, file: IO[bytes], key: str, parts: _Parts, split: str) -> tuple[str, Entry]:
    where = f"{path}: sample {printable_place(key, parts)}"
    pictures = [parts[ending] for ending in PICTURE_ENDINGS if ending in parts]
    if len(pictures) != 1:
        raise InputError(f"{where} has {len(pictures) or 'no'} pictures ({', '.join(PICTURE_ENDINGS)}) among {', '.join(sorted(parts))}")
    stem = key.rsplit("/", 1)[-1]
    described = _described(file, parts, where) if "json" in parts and not ("cls" in parts and _OFFICIAL_STEM(stem)) else {}
    label = _label(file, parts, described, split, where)
    if not _OFFICIAL_STEM(stem) and _OFFICIAL_STEM(stem_of(str(described.get("filename", "")))):
        stem = stem_of(described["filename"])  # timm's has numbers for keys, and the official names here
    official = _OFFICIAL_STEM(stem)
    wnid = (official[1] or "") if official else ""
    picture = pictures[0]
    return wnid, Entry(f"{path.name}/{picture.name}", clean_key(stem), label, str(path), picture.data, picture.size)


def printable_place(key: str, parts: _Parts) -> str:
    return f"{key} at byte {min(member.header for member in parts.values()):,}"


def _described(file: IO[bytes], parts: _Parts, where: str) -> dict[str, Any]:
    try:
        described = json.loads(_small(file, parts["json"], where))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its .json cannot be read ({error}); make this WebDataset again") from None
    return described if isinstance(described, dict) else {}


def _label(file: IO[bytes], parts: _Parts, described: dict[str, Any], split: str, where: str) -> int:
    if "cls" in parts:
        text = _small(file, parts["cls"], where).strip()
        if not re.fullmatch(rb"-?[0-9]{1,9}", text):
            raise InputError(f"{where}: its .cls has {text[:20]!r} where a number should be; labels must be class indexes")
        return int(text)
    label = described.get("label", described.get("cls"))
    if type(label) is int:
        return label
    if split == "test" and label is None:
        return -1
    raise InputError(f"{where} has no label: no .cls, and no .json with a whole number as label or cls")


def _small(file: IO[bytes], member: Member, where: str) -> bytes:
    if member.size > _LABEL_BYTES:
        raise InputError(f"{where}: {member.base} has {member.size:,} bytes, too many for a label; make this WebDataset again")
    return read_member(file, member)


def _checked(entry: Entry, split: str, classes: int) -> Entry:
    if 0 <= entry.label < classes or (split == "test" and entry.label == -1):
        return entry
    raise InputError(f"{entry.file}: {entry.name} has label {entry.label}, and there are {classes:,} classes; make this WebDataset again")


def _class_names(folder: Path) -> list[str] | None:
    """One name a line in the order of the labels, from a list beside the tars."""
    return next((read_lines(folder / name) for name in _NAME_LISTS if (folder / name).is_file()), None)


def _looks_like_one(path: Path) -> bool:
    """Whether a picture and a label of one key are among the first members; a tar that cannot be read goes by its name."""
    names = first_names(path, 8)
    if not names:
        return bool(_SPLIT_IN.search(path.name.lower()))
    endings: dict[str, set[str]] = {}
    for name in names:
        key, _, ending = name.rsplit("/", 1)[-1].partition(".")
        endings.setdefault(key, set()).add(ending.lower())
    return any(found & set(PICTURE_ENDINGS) and found & {"cls", "json"} for found in endings.values())


def _find(folder: Path) -> Path | None:
    """The first tar, if it looks like one of a WebDataset; a training tar if there is one, since those have labels."""
    found = sorted(_candidates(folder), key=lambda path: "train" not in f"{path.parent.name}/{path.name}".lower())
    return found[0] if found and _looks_like_one(found[0]) else None


def _folder_of(path: Path) -> Path:
    return path.parent.parent if path.parent.name in _SPLITS and not (path.parent / MANIFEST).exists() else path.parent


LAYOUT = Layout(
    "a WebDataset",
    "tars with KEY.jpg and KEY.cls or KEY.json (a WebDataset)",
    _find,
    lambda path: path.suffix == ".tar" and _may_be(path) and _looks_like_one(path),
    lambda path: list_webdataset(_folder_of(path)),
)
