"""The samples of a folder of shards as a peer of the loader benchmark is given them: plain tars and their indexes.

Runs in the peers' environment, so nothing of pipeline is imported; the format is that of shards/README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """Where the encoded picture of a sample lies: bytes `offset` to `offset + size` of the tar with this number."""

    shard: int
    offset: int
    size: int
    key: str


class Samples:
    """The training samples, numbered 0 .. len - 1 through the shards in the manifest's order. digest: of the manifest."""

    def __init__(self, folder: Path) -> None:
        content = (folder / "manifest.json").read_bytes()
        manifest = json.loads(content)
        self.digest = hashlib.sha256(content).hexdigest()
        self.size: int = manifest["settings"]["size"]
        self.tars = [folder / shard["name"] for shard in manifest["splits"]["train"]["shards"]]
        self._files = [os.open(tar, os.O_RDONLY) for tar in self.tars]
        self.places: list[Place] = []
        self.labels: list[int] = []
        for number, tar in enumerate(self.tars):
            for line in tar.with_suffix(".idx").read_text().splitlines()[1:]:
                _, offset, size, name, _, label_offset, label_size, _ = line.split(" ")
                self.places.append(Place(number, int(offset), int(size), name.removesuffix(".jpg")))
                self.labels.append(int(os.pread(self._files[number], int(label_size), int(label_offset))))

    def __len__(self) -> int:
        return len(self.places)

    def jpeg(self, sample: int) -> bytes:
        """The encoded picture; one positioned read, so that threads and forked processes may share the files."""
        place = self.places[sample]
        return os.pread(self._files[place.shard], place.size, place.offset)
