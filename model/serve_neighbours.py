"""The pictures whose features are nearest to those of a picture, by Euclidean distance (paper, section 6.1), as model.retrieve wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.retrieve_features import LAYERS, Features, checkpoint_digest, open_features
from model.retrieve_index import faiss_or_refuse, nearest
from model.retrieve_table import K
from model.serve_pictures import picture_address
from pipeline import InputError, ShardSet

SPLITS = ("train", "val", "test")  # of those that a folder has features of the first is taken
AGAIN = "write them again: python -m model.retrieve"


@dataclass(frozen=True)
class Neighbours:
    """features: of the pictures of `shards`, mapped and not read; layer: whose outputs they are; names: of the classes."""

    features: Features
    layer: str
    shards: ShardSet
    names: list[str]

    @property
    def about(self) -> str:
        """What the page says of them."""
        pictures = f"{len(self.features):,} pictures of the {self.shards.split} split"
        return f"Of {pictures}, those whose {self.features.width:,} outputs of {self.layer} are nearest, by Euclidean distance (paper, Figure 4)."

    def nearest(self, query: np.ndarray) -> list[dict[str, Any]]:
        """Name, distance and picture of each of the K nearest of (width,) float32, nearest first. Raises InputError if a shard is damaged."""
        (distances,), (rows,) = nearest(self.features.values, query[None], K)
        found = []
        for distance, row in zip(distances.tolist(), rows.tolist(), strict=True):
            label = int(self.features.labels[row])
            jpeg, _ = self.shards.read(int(self.features.ids[row]))
            name = self.names[label] if label >= 0 else "no label"
            found.append({"name": name, "distance": distance, "picture": picture_address(jpeg.tobytes(), "jpeg")})
        return found


def open_neighbours(folder: Path, shards: ShardSet, pictures: str, local: Path | None, content: dict[str, Any]) -> Neighbours:
    """What model.retrieve wrote to a folder, of the net whose checkpoint has this content, and of these shards.

    pictures, local: where the shards are, see ShardSet. Raises InputError.
    """
    faiss_or_refuse()
    there = [(split, layer) for layer in LAYERS for split in SPLITS if (folder / f"{split}-{layer}.json").exists()]
    split, layer = there[0] if there else (SPLITS[0], LAYERS[0])
    features, origin = open_features(folder, split, layer)
    if origin.shards != shards.digest:
        raise InputError(f"the features in {folder} are of other shards than {shards.folder}; {AGAIN}")
    if origin.checkpoint != checkpoint_digest(content):
        raise InputError(f"the features in {folder} are of another checkpoint; {AGAIN}")
    return Neighbours(features, layer, ShardSet(pictures, split, local), [entry.words for entry in shards.manifest.classes])
