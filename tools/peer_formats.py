"""Each peer's own format, made from the very JPEG bytes of the shards, once for a set of shards.

Runs in the peers' environment. A format is written beside its place and renamed when it is whole.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.peer_samples import Samples

WRITERS = 2  # processes


def prepared(samples: Samples, work: Path, name: str, write: Callable[[Samples, Path], None]) -> Path:
    """The file or folder of this format for these shards; `write(samples, place)` makes it where it is not there yet."""
    path = work / f"{name}-{samples.digest[:12]}"
    if not path.exists():
        part = path.with_name(f"{path.name}.tmp")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        write(samples, part)
        os.rename(part, path)
    return path


def decoded(jpeg: bytes) -> np.ndarray:
    """(height, width, 3) uint8, by Pillow."""
    image = Image.open(io.BytesIO(jpeg))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert() copies even where there is nothing to do


def image_folder(samples: Samples, out: Path) -> None:
    """out/LABEL/ID.jpg."""
    for sample, label in enumerate(samples.labels):
        folder = out / f"{label:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{sample:09d}.jpg").write_bytes(samples.jpeg(sample))


def ffcv_file(samples: Samples, out: Path, raw: bool) -> None:
    """A .beton of image, label and id; raw: decoded pictures, else the shards' bytes as they are (FFCV's own field encodes anew)."""
    from ffcv.fields import IntField, RGBImageField  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from ffcv.writer import DatasetWriter  # type: ignore[import-not-found,import-untyped,unused-ignore]

    class StoredJpeg(RGBImageField):  # type: ignore[misc,unused-ignore]
        def encode(self, destination: Any, jpeg: bytes, malloc: Callable[[int], tuple[int, np.ndarray]]) -> None:
            destination["mode"], destination["height"], destination["width"] = 0, samples.size, samples.size
            destination["data_ptr"], storage = malloc(len(jpeg))
            storage[:] = np.frombuffer(jpeg, np.uint8)

    class Rows:
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, sample: int) -> tuple[Any, int, int]:
            jpeg = samples.jpeg(sample)
            return decoded(jpeg) if raw else jpeg, samples.labels[sample], int(sample)

    fields = {"image": RGBImageField(write_mode="raw") if raw else StoredJpeg(write_mode="jpg"), "label": IntField(), "id": IntField()}
    DatasetWriter(str(out), fields, num_workers=WRITERS).from_indexed_dataset(Rows())


def _litdata_row(samples: Samples, sample: int) -> dict[str, Any]:
    return {"jpeg": samples.jpeg(sample), "label": samples.labels[sample], "id": sample}


def litdata_chunks(samples: Samples, out: Path) -> None:
    """litdata's chunks of 64 MB: JPEG bytes, label and id."""
    import litdata  # type: ignore[import-not-found,import-untyped,unused-ignore]

    inputs = list(range(len(samples)))
    litdata.optimize(partial(_litdata_row, samples), inputs, str(out), chunk_bytes="64MB", num_workers=1, start_method="fork")


def mds_shards(samples: Samples, out: Path) -> None:
    """MosaicML's MDS shards of 64 MiB: JPEG bytes, label and id."""
    from streaming import MDSWriter  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with MDSWriter(out=str(out), columns={"jpeg": "bytes", "label": "int", "id": "int"}) as writer:
        for sample, label in enumerate(samples.labels):
            writer.write({"jpeg": samples.jpeg(sample), "label": label, "id": sample})
