"""manifest.json: what a folder of shards holds. It is written last, so a folder that has one is complete."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.atomic import atomic_file
from pipeline.bounded import read_bounded
from pipeline.errors import InputError
from pipeline.tarshard import MAX_SAMPLES

FORMAT_VERSION = 1
NAME = "manifest.json"
# What a manifest may have. ImageNet's has 0.3 MB and 10,000 commas; a rejected file adds 170 bytes and 3 commas.
MAX_BYTES = 64 << 20
MAX_COMMAS = 500_000  # at worst 2 kB of memory each: a megabyte of "{},{},..." would take a gigabyte
_MANY_FAULTS = 1000  # listing them all, to show the first, would take 1 kB each

SourceKind = Literal[
    "ilsvrc2012-archives",
    "ilsvrc2010-archives",
    "whole-imagenet",
    "kaggle",
    "huggingface-parquet",
    "huggingface-archives",
    "class-folders",
    "webdataset",
]
SplitName = Literal["train", "val", "test"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Strict):
    """How the pictures were made.

    size: pixels of the shorter side; quality: of the JPEG, 1..95; shape: the central "square", or "shorter", whole pictures;
    decode: "scaled", a JPEG of more than twice `size` is halved by libjpeg before it is resized, or "full" (shards made before
    there was a choice); shard_size: samples planned a shard.
    """

    size: int = Field(ge=16, le=1024)
    quality: int = Field(ge=1, le=95)
    subsampling: Literal["4:2:0", "4:4:4"] = "4:2:0"
    resize: Literal["bicubic"] = "bicubic"
    shape: Literal["square", "shorter"] = "square"
    decode: Literal["full", "scaled"] = "full"
    exif_orientation: Literal["ignored", "applied"] = "ignored"
    shard_size: int = Field(ge=1)
    seed: int = Field(ge=0, lt=2**64)


class Source(_Strict):
    """Where the pictures came from. sha256 is over the listing (name, class, bytes of every file), not over contents. year: of the
    class table; ilsvrc_id means another class in 2010 than in 2012."""

    kind: SourceKind
    sha256: Sha256
    year: Literal[2010, 2011, 2012] | None = None


class ClassEntry(_Strict):
    """One class. index: the label, by sorted wnid; ilsvrc_id: 1-based number in the devkit's order, None without a devkit."""

    index: int = Field(ge=0)
    wnid: str
    ilsvrc_id: int | None
    words: str


class Shard(_Strict):
    name: str = Field(pattern=r"^(train|val|test)-[0-9]{6}\.tar$")  # never a path
    samples: int = Field(ge=1, le=MAX_SAMPLES)
    bytes: int = Field(ge=1)
    sha256: Sha256


class Split(_Strict):
    samples: int = Field(ge=0)
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _counts_agree(self) -> Split:
        if self.samples != sum(shard.samples for shard in self.shards):
            raise ValueError("samples is not the sum over its shards")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")
        return self


class Rejected(_Strict):
    """A source file with a fault. name: as in the source; reason: the decoder's words."""

    split: SplitName
    name: str
    reason: str


class Manifest(_Strict):
    format_version: Literal[1]
    settings: Settings
    source: Source
    classes: tuple[ClassEntry, ...]
    classes_sha256: Sha256
    splits: dict[SplitName, Split]
    rejected: tuple[Rejected, ...]
    doubtful: tuple[Rejected, ...] = ()  # in a shard, though libjpeg found a fault in the source file

    @model_validator(mode="after")
    def _classes_agree(self) -> Manifest:
        if [entry.index for entry in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes are not numbered 0, 1, 2, ...")
        if self.classes_sha256 != classes_digest(self.classes):
            raise ValueError("the class table does not have the SHA-256 that stands beside it")
        return self

    def text(self) -> str:
        """The file."""
        return json.dumps(self.model_dump(), indent=1) + "\n"

    def digest(self) -> str:
        """SHA-256 of the file: the name of this set of shards everywhere."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def classes_digest(classes: tuple[ClassEntry, ...]) -> str:
    """SHA-256 of the class table: in index order one line a class, wnid, ilsvrc_id (empty for None) and words, by tabs."""
    lines = (f"{entry.wnid}\t{'' if entry.ilsvrc_id is None else entry.ilsvrc_id}\t{entry.words}\n" for entry in classes)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    with atomic_file(folder / NAME, "w") as file:
        file.write(manifest.text())


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of `folder` and the SHA-256 of the file, which names this set of shards everywhere.

    Raises InputError when the folder is not a finished set of shards or the manifest is damaged.
    """
    path = folder / NAME
    try:
        content = read_bounded(path, MAX_BYTES, f"a manifest may have; {_AGAIN}")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(_not_shards(folder)) from None
    if content.count(b",") > MAX_COMMAS:
        raise InputError(f"{path} has more than the {MAX_COMMAS:,} entries that a manifest may have; {_AGAIN}")
    try:
        with no_collection():
            manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        if error.error_count() > _MANY_FAULTS:
            raise InputError(f"{path}: {error.error_count():,} entries are not those of a manifest; {_AGAIN}") from None
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise InputError(f"{path}: {where}: {first['msg']}; {_AGAIN}") from None
    return manifest, hashlib.sha256(content).hexdigest()


@contextmanager
def no_collection() -> Iterator[None]:
    """Where only things that stay are made: Python would look for garbage in all that torch has made, 0.2 s at a time, once they are many."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


_AGAIN = "make the shards again with tools/make_shards.py"


def _not_shards(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; make shards with: python tools/make_shards.py --source DIR --out {folder}"
    if any(folder.glob("*.tar")):
        return f"{folder} has tars but no {NAME}: make_shards was stopped before its end; run the same make_shards command again"
    return f"{folder} holds no shards ({NAME} is missing); make them with: python tools/make_shards.py --source DIR --out {folder}"
