"""Hugging Face's imagenet-1k as parquet: a listing from its columns label and image.path, pictures row group by row group."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from tools.source_entries import Entry, Layout, Listing, clean_key, make_listing, printable
from tools.source_golden import ILSVRC2012, check_golden
from tools.source_huggingface import check_parts, folders_of, official_stem
from tools.source_labels import WNID, table_of_labels

_PART = re.compile(r"(train|validation|val|test)-.*\.parquet").fullmatch
_ROWS = 64  # read at a time, of pictures: some 7 MB


def list_parquet(folder: Path) -> Listing:
    """List the parquet files in `folder`. Raises InputError."""
    parts = _parts(folder)
    if "train" not in parts:
        raise InputError(f"{folder} has {parts[next(iter(parts))][0]} but no train-*.parquet; fetch the training files")
    remarks = [line for names in parts.values() if (line := check_parts(folder, names))]
    rows = {split: [row for name in names for row in _rows(folder / name)] for split, names in parts.items()}
    names = _class_names(folder / parts["train"][0])
    classes, named = table_of_labels(((label, wnid) for label, wnid, _ in rows["train"]), names, f"{folder}: train")
    wnids = [row.wnid for row in classes]
    splits = {split: [_checked(entry, label, wnid, split, wnids) for label, wnid, entry in found] for split, found in rows.items()}
    checks = [*remarks, *named, *check_golden(ILSVRC2012, folder, classes, splits, exact=False)]
    return make_listing("huggingface-parquet", classes, splits, year=2012 if all(map(WNID, wnids)) else None, checks=checks, streamed="parquet")


def _parts(folder: Path) -> dict[str, list[str]]:
    """Names of the files, sorted, by split."""
    found: dict[str, list[str]] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        part = _PART(name)
        if part:
            found.setdefault("val" if part[1] == "validation" else part[1], []).append(name)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _rows(path: Path) -> Iterator[tuple[int, str, Entry]]:
    """Label, wnid and entry of each row; the pictures are not read."""
    number = 0
    with _opened(str(path)) as file:
        for batch in file.iter_batches(batch_size=4096, columns=["image.path", "label"]):
            names, labels = batch.column("image").field("path").to_pylist(), batch.column("label").to_pylist()
            for name, label in zip(names, labels, strict=True):
                if type(label) is not int:
                    raise InputError(f"{path}: row {number} has {label!r} for a label, which is no number; fetch the file again")
                stem, wnid = official_stem(name) if name else (f"{path.stem}-{number}", "")
                shown = f"{path.name}/{printable(name)}" if name else f"{path.name}/row {number}"
                yield label, wnid, Entry(shown, clean_key(printable(stem)), label, str(path), number, -1)
                number += 1


def _checked(entry: Entry, label: int, wnid: str, split: str, wnids: Sequence[str]) -> Entry:
    """The entry, if its label is one of the classes and the one that its name says."""
    if not (0 <= label < len(wnids) or (split == "test" and label == -1)):
        raise InputError(f"{entry.file}: {entry.name} has label {label}, and there are {len(wnids)} classes; fetch the file again")
    if label >= 0 and wnid and wnid != wnids[label] and WNID(wnids[label]):
        raise InputError(f"{entry.file}: {entry.name} is of class {wnid} by its name, of {wnids[label]} by its label; fetch the file again")
    return entry


def _class_names(path: Path) -> list[str] | None:
    """Names of the labels as Hugging Face's datasets writes them into the schema."""
    with _opened(str(path)) as file:
        stored = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(stored)["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def row_groups(file: str) -> list[int]:
    """Rows of each row group of a parquet file. Raises InputError."""
    with _opened(file) as opened:
        return [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]


def read_parquet(file: str, first: int, count: int) -> Iterator[bytes]:
    """Pictures first ... first + count - 1, a few rows at a time; row groups before are not read. Raises InputError."""
    with _opened(file) as opened:
        start = 0
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            low, high = max(first - start, 0), min(first + count - start, rows)
            if low < high:
                yield from _pictures(opened, file, group, low, high)
            start += rows
        if first + count > start:
            raise InputError(f"{file} has {start:,} rows, not the {first + count:,} that were listed; was it changed?")


def _pictures(opened: Any, file: str, group: int, low: int, high: int) -> Iterator[bytes]:
    row = 0
    try:
        for batch in opened.iter_batches(batch_size=_ROWS, row_groups=[group], columns=["image.bytes"], use_threads=False):
            column = batch.column("image").field("bytes")
            for i in range(max(low - row, 0), min(high - row, len(column))):
                yield column[i].as_py() or b""
            row += len(column)
            if row >= high:
                return
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: row group {group}, after row {row}: {_first_line(error)}; fetch the file again") from None


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile with the columns that are needed. Raises InputError."""
    try:
        import pyarrow.parquet  # here, since every worker process imports this module and few need it
    except ImportError:
        raise InputError(f"{file} needs pyarrow to be read; install it with: pip install 'pyarrow>=16'") from None
    try:
        with pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as opened:  # not a whole row group
            paths = {opened.schema.column(i).path for i in range(len(opened.schema))}
            if not {"image.bytes", "image.path", "label"} <= paths:
                raise InputError(f"{file} has the columns {', '.join(sorted(paths))}, not image.bytes, image.path and label")
            yield opened
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # the last three for columns of another type
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: {_first_line(error)}; the download is incomplete or damaged: fetch it again") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _find(folder: Path) -> Path | None:
    return next((path / names[0] for path in folders_of(folder) if path.is_dir() for names in _parts(path).values()), None)


LAYOUT = Layout(
    "Hugging Face's parquet files",
    "train-*.parquet and validation-*.parquet, in the folder or its data/ (Hugging Face)",
    _find,
    lambda path: bool(_PART(path.name)),
    lambda path: list_parquet(path.parent),
)
