"""Where pictures come from: ImageNet in the forms that people have it in, recognised by looking, read in place, never written to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from tools import source_archives, source_folders, source_kaggle, source_parquet, source_targz, source_webdataset, source_whole
from tools.source_entries import Entry, Layout, Listing
from tools.source_parquet import read_parquet, row_groups
from tools.source_sums import verify_sums
from tools.source_targz import read_targz

__all__ = ["Entry", "Listing", "list_source", "read_stream", "row_groups", "verify_sums"]

LAYOUTS: tuple[Layout, ...] = (
    *source_archives.LAYOUTS,
    source_whole.LAYOUT,
    source_kaggle.LAYOUT,
    source_folders.LAYOUT,
    source_parquet.LAYOUT,
    source_targz.LAYOUT,
    source_webdataset.LAYOUT,
)


def list_source(path: Path) -> Listing:
    """Recognise and list a source, given its folder or one of its files. Raises InputError where it is not complete, not known, or two."""
    found = _recognised(path)
    if len(found) > 1:
        (one, first), (other, second) = found[:2]
        raise InputError(f"{path} holds {one.what} and {other.what}; choose with --source {first} or --source {second}")
    if not found:
        raise InputError(_not_known(path))
    layout, mark = found[0]
    listing = layout.list(mark)
    if not any(listing.splits.values()):
        raise InputError(f"{mark} holds no pictures; give the folder that holds them, or fetch it again")
    return listing


def _recognised(path: Path) -> list[tuple[Layout, Path]]:
    """Layouts that are there, each with the path by which it was known."""
    if not path.exists():
        raise InputError(f"the source {path} is not there; give the folder that holds the pictures, or one of their archives")
    found = [(layout, mark) for layout in LAYOUTS if path.is_dir() and (mark := layout.find(path)) is not None]
    return found or [(layout, path) for layout in LAYOUTS if layout.owns(path)]


def _not_known(path: Path) -> str:
    dogs = source_archives.DOGS
    if path.name == dogs or (path / dogs).exists():
        return f"{dogs} holds the dogs of task 3, not the 1,000 classes; fetch {source_archives.CHALLENGE_2012.train[0]} instead"
    looked_for = "; ".join(layout.looked_for for layout in LAYOUTS)
    return f"{path} {_seen(path)}and is no source that is known, none of: {looked_for}; give the folder that holds one of these with --source"


def _seen(path: Path) -> str:
    """The likeliest mistakes."""
    if not path.is_dir():
        return ""
    if not any(path.iterdir()):
        return "is empty "
    return "holds folders, but no train/ (class folders belong under train/), " if any(inside.is_dir() for inside in path.iterdir()) else ""


def read_stream(file: str, first: int, count: int) -> Iterator[bytes]:
    """Pictures first ... first + count - 1 of a parquet or tar.gz file, in stored order.

    In a parquet file the row groups before are not read, and of the others a few rows at a time; a tar.gz is read through from
    its beginning. Raises InputError for a file that is damaged, with the row group or the member.
    """
    return read_parquet(file, first, count) if file.endswith(".parquet") else read_targz(file, first, count)
