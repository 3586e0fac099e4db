"""Sources read from their beginning to their end: converted in their own order into pieces, from which shards are put together.

A shard holds pictures from anywhere in the source. To find 2,000 of them in compressed files these would have to be read through
for each shard, and a hard disk would spend its time in seeking; so the source is read once, and what is kept in between is the
converted pictures, a fifth of the source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path

from pipeline.manifest import Settings
from tools.shard_worker import Done, Piece, summed_up
from tools.sources import Entry, Listing, read_stream, row_groups

PIECE = 500  # pictures at least, of a parquet file; exactly, of a tar.gz, which the parent hands over in memory: 55 MB


def cut_into_pieces(listing: Listing, out: Path, settings: Settings) -> list[Piece]:
    """All pieces of a source; for tar.gz without the bytes, see with_bytes."""
    pieces: list[Piece] = []
    for split, entries in listing.splits.items():
        for some in _runs(entries, listing.streamed):
            path = out / f".{split}-{len(pieces):06d}.piece"
            pieces.append(Piece(path, some, settings, summed_up(split), bool(listing.streamed)))
    return pieces


def _runs(entries: list[Entry], streamed: str) -> Iterator[list[Entry]]:
    """Entries in runs: of a stream's files one file each, and for parquet to the end of a row group."""
    of_files = (list(some) for _, some in groupby(entries, key=lambda entry: entry.file)) if streamed else [entries]
    for of_file in of_files:
        ends = accumulate(row_groups(of_file[0].file)) if streamed == "parquet" else range(PIECE, len(of_file), PIECE)
        start = 0
        for end in ends:
            if end - start >= PIECE:
                yield of_file[start:end]
                start = end
        if start < len(of_file):
            yield of_file[start:]


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
    """Of every picture of the source, by its file and number in it: piece, offset and bytes there."""
    places = {}
    for piece in pieces:
        offset = 0
        for entry, size in zip(piece.entries, done[piece.path.name].sizes, strict=True):
            places[entry.file, entry.offset] = (piece.path, offset, size)
            offset += size
    return places
