"""Which picture of a batch could not be decoded: DALI ends the batch and often does not say."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.errors import InputError
from pipeline.shards import ShardSet


def bad_picture(shards: ShardSet, ids: np.ndarray, error: RuntimeError) -> Exception:
    """An InputError that names the first picture among `ids` that Pillow cannot decode either, else `error` itself."""
    for sample in ids:
        jpeg, _ = shards.read(int(sample))
        try:
            Image.open(io.BytesIO(jpeg.tobytes())).load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as why:
            path, key, offset = shards.place(int(sample))
            return InputError(f"{path}: sample {key} at offset {offset} is not a picture that can be decoded ({why}); make this shard again")
    return error
