"""Sources that can only be read one behind the other: converted in their own order into pieces, from which shards are put together.

A shard holds pictures from anywhere in the source. To find 2,000 of them in a compressed file it would have to be read through
for each shard; so it is read once, and what is kept between is the converted pictures, a fifth of the source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from pipeline.manifest import Settings
from tools.shard_worker import Done, Piece, summed_up
from tools.sources import Entry, Listing, read_stream, row_groups

PIECE = 500  # pictures at least, of a parquet file; exactly, of a tar.gz, which the parent hands over in memory: 55 MB


def cut_into_pieces(listing: Listing, out: Path, settings: Settings) -> list[Piece]:
    """All pieces of a streamed source; for tar.gz without the bytes, see with_bytes."""
    pieces: list[Piece] = []
    for split, entries in listing.splits.items():
        for file, of_file in groupby(entries, key=lambda entry: entry.file):
            for some in _runs(list(of_file), file, listing.streamed == "parquet"):
                path = out / f".{split}-{len(pieces):06d}.piece"
                pieces.append(Piece(path, some, settings, summed_up(split, settings)))
    return pieces


def _runs(entries: list[Entry], file: str, parquet: bool) -> Iterator[list[Entry]]:
    """Entries of one file in runs, which for parquet end where a row group does."""
    if not parquet:
        yield from (entries[start : start + PIECE] for start in range(0, len(entries), PIECE))
        return
    start = end = 0
    for rows in row_groups(file):
        end += rows
        if end - start >= PIECE:
            yield entries[start:end]
            start = end
    if start < len(entries):
        yield entries[start:]


def with_bytes(pieces: list[Piece], done: Collection[str]) -> Iterator[Piece]:
    """The pieces of tar.gz files that are not done, with their pictures; each file is read through once, here."""
    for file, some in groupby(pieces, key=lambda piece: piece.entries[0].file):
        of_file = list(some)
        if all(piece.path.name in done for piece in of_file):
            continue
        pictures = read_stream(file, 0, sum(len(piece.entries) for piece in of_file))
        for piece in of_file:
            read = [next(pictures) for _ in piece.entries]
            if piece.path.name not in done:
                yield replace(piece, read=read)


def places_of(pieces: list[Piece], done: dict[str, Done]) -> dict[tuple[str, int], tuple[Path, int, int]]:
    """Of every picture of a streamed source, by its file and number in it: piece, offset and bytes there."""
    places = {}
    for piece in pieces:
        offset = 0
        for entry, size in zip(piece.entries, done[piece.path.name].sizes, strict=True):
            places[entry.file, entry.offset] = (piece.path, offset, size)
            offset += size
    return places
