"""Whether a folder of shards can be trained on, without reading a sample."""

from __future__ import annotations

from pathlib import Path

from pipeline.colour import read_colour_stats
from pipeline.manifest import read_manifest
from pipeline.shards import ShardSet


def check_folder(folder: str | Path) -> None:
    """Manifest, sizes, indexes and colour statistics of all splits. Raises InputError at the first that does not fit."""
    manifest, digest = read_manifest(Path(folder))
    for split in manifest.splits:
        ShardSet(folder, split)
    read_colour_stats(Path(folder), digest, manifest.settings.size)
