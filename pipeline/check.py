"""Whether a folder of shards can be trained on, without reading a sample."""

from __future__ import annotations

from pathlib import Path

from pipeline.colour import read_colour_stats
from pipeline.manifest import read_manifest
from pipeline.remote import is_url
from pipeline.shards import ShardSet, remote_shards
from pipeline.verify import Progress, verify_folder


def check_folder(shards: str | Path, local: Path | None = None, local_gb: float | None = None, verify: Progress | None = None) -> None:
    """Manifest, sizes, indexes and colour statistics of all splits; with `verify`, which is told of every piece read, also
    every byte. local, local_gb: see ShardSet. Raises InputError at the first that does not fit."""
    remote = remote_shards(str(shards), local, local_gb) if is_url(shards) else None
    folder = remote.open() if remote is not None else Path(shards)
    manifest, digest = read_manifest(folder)
    read_colour_stats(folder, digest, manifest.settings.size)
    for split in manifest.splits:
        ShardSet(shards, split, local, local_gb)
    if verify is not None:
        verify_folder(folder, progress=verify, only_there=remote is not None)  # what is fetched later is verified as it comes
    if remote is not None:
        remote.close()
