"""The peers of the loader benchmark: each library's own way to give random crops, flipped at random, in batches.

Runs in the peers' environment and imports nothing of pipeline. Each function prepares its format and gives a Loader; LOADERS names them all.
A library that is not installed is the ImportError of its import.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from tools.peer_formats import decoded, ffcv_file, image_folder, litdata_chunks, mds_shards, prepared
from tools.peer_samples import Samples

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # images, labels (batch,), ids (batch,)
Decode = Callable[[bytes], np.ndarray]  # encoded picture -> (height, width, 3) uint8
WINDOW = 1000  # samples of webdataset's shuffle buffer, a worker


@dataclass(frozen=True)
class Setup:
    """What all peers are given. threads: workers or threads, whichever is the peer's way; mean: RGB, 0..255; work: folder for formats."""

    samples: Samples
    work: Path
    batch: int
    threads: int
    crop: int
    mean: tuple[float, float, float]


@dataclass(frozen=True)
class Loader:
    """epoch: the batches of a new epoch; length: how many there are, None without end; note: where the work is not the same as ours."""

    epoch: Callable[[], Iterator[Batch]]
    length: int | None
    note: str


# --- what the peers have in common that leave decoding to others


def check_torchvision() -> None:
    """Its compiled part loads beside the torch that it was built for only. Raises ModuleNotFoundError beside another."""
    try:
        import torchvision  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except RuntimeError:
        raise ModuleNotFoundError("No module named 'torchvision' that fits this torch", name="torchvision") from None


def by_torchvision() -> Decode:
    """torchvision's decoder (libjpeg-turbo), the fastest there is for a DataLoader."""
    check_torchvision()
    from torchvision.io import decode_jpeg  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return lambda jpeg: decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)).permute(1, 2, 0).numpy()  # it lies in memory like this


def window(picture: np.ndarray, crop: int) -> np.ndarray:
    """A random (crop, crop, 3) part of a picture, flipped or not; by torch, which takes 57 us to flip one where NumPy takes 310."""
    y, x = random.randint(0, picture.shape[0] - crop), random.randint(0, picture.shape[1] - crop)
    view = picture[y : y + crop, x : x + crop]
    return torch.from_numpy(view).flip(1).numpy() if random.random() < 0.5 else view


def collate(rows: list[tuple[np.ndarray, int, int]]) -> Batch:
    """Windows, labels and ids as a Batch of (n, crop, crop, 3) uint8."""
    pictures, labels, ids = zip(*rows, strict=True)
    return torch.from_numpy(np.stack(pictures)), torch.tensor(labels), torch.tensor(ids)


class Endless(Sampler[int]):
    """Every sample in a new random order, again and again, so that no epoch's end stops the workers."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self.samples).tolist()


# --- the peers


def webdataset(s: Setup, decode: Callable[[], Decode]) -> Loader:
    """The shards themselves, batched in DataLoader's workers, as webdataset's documentation advises."""
    import webdataset as wds

    read = decode()
    ids = {place.key: sample for sample, place in enumerate(s.samples.places)}

    def row(sample: dict[str, Any]) -> tuple[np.ndarray, int, int]:
        return window(read(sample["jpg"]), s.crop), int(sample["cls"]), ids[sample["__key__"]]

    stream = wds.WebDataset([str(tar) for tar in s.samples.tars], resampled=True, shardshuffle=False, nodesplitter=None)
    batches = stream.shuffle(WINDOW).map(row).batched(s.batch, collation_fn=collate, partial=False)
    loader = iter(wds.WebLoader(batches, batch_size=None, num_workers=s.threads, persistent_workers=True))
    return Loader(lambda: loader, None, f"shards drawn with replacement, order mixed in a window of {WINDOW:,} samples a worker")


def imagefolder(s: Setup, decode: Callable[[], Decode]) -> Loader:
    """torchvision.datasets.ImageFolder over the JPEGs as files, and DataLoader."""
    check_torchvision()
    from torchvision.datasets import ImageFolder  # type: ignore[import-not-found,import-untyped,unused-ignore]

    read = decode()

    class Numbered(ImageFolder):  # type: ignore[misc,unused-ignore]
        def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
            path, target = self.samples[index]
            return self.loader(path), int(self.classes[target]), int(Path(path).stem)

    root = prepared(s.samples, s.work, "imagefolder", image_folder)
    dataset = Numbered(str(root), loader=lambda path: window(read(Path(path).read_bytes()), s.crop))
    loader: Any = DataLoader(dataset, s.batch, sampler=Endless(len(dataset)), num_workers=s.threads, collate_fn=collate, persistent_workers=True)
    batches = iter(loader)
    return Loader(lambda: batches, None, "a file for each picture")


def ffcv(s: Setup, raw: bool, normalise: bool) -> Loader:
    """FFCV over its own file, RANDOM order, OS cache. Its RandomResizedCrop of the area crop x crop, square, is a plain random crop."""
    from ffcv.fields.basics import IntDecoder  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder, RGBImageField  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from ffcv.loader import Loader as FFCV  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from ffcv.loader import OrderOption
    from ffcv.transforms import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        NormalizeImage,
        RandomHorizontalFlip,
        Squeeze,
        ToTensor,
    )

    path = prepared(s.samples, s.work, "ffcv-raw" if raw else "ffcv-jpeg", partial(ffcv_file, raw=raw))
    area = (s.crop / s.samples.size) ** 2
    image = [RandomResizedCropRGBImageDecoder((s.crop, s.crop), scale=(area, area), ratio=(1, 1)), RandomHorizontalFlip()]
    image += [NormalizeImage(np.array(s.mean), np.ones(3), np.float32)] if normalise else []
    number = [IntDecoder(), ToTensor(), Squeeze()]
    loader = FFCV(
        str(path),
        batch_size=s.batch,
        num_workers=s.threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": [*image, ToTensor()], "label": number, "id": [IntDecoder(), ToTensor(), Squeeze()]},
        custom_fields={} if raw else {"image": RGBImageField},
    )
    note = "decoded RGB stored, no JPEG decoding" if raw else "JPEG bytes as in the shards; decoded with libjpeg's fast, less exact DCT"
    return Loader(lambda: iter(loader), len(loader), note + ("; channel mean subtracted, not the mean image; no colour shift" if normalise else ""))


def spdl(s: Setup, decode: Callable[[], Decode]) -> Loader:
    """SPDL's pipeline of threads, a batch a task, pictures read from the shards at random."""
    from spdl.pipeline import PipelineBuilder  # type: ignore[import-not-found,import-untyped,unused-ignore]

    read = decode()

    def load(ids: list[int]) -> Batch:
        return collate([(window(read(s.samples.jpeg(sample)), s.crop), s.samples.labels[sample], sample) for sample in ids])

    builder = PipelineBuilder().add_source(Endless(len(s.samples))).aggregate(s.batch).pipe(load, concurrency=s.threads).add_sink(2)
    pipeline = builder.build(num_threads=s.threads, use_thread_output_queue=True)
    pipeline.start(daemon=True)
    batches = pipeline.get_iterator()
    return Loader(lambda: batches, None, "order, reading, crop and flip are the benchmark's own functions in its threads")


def by_spdl() -> Decode:
    """SPDL's own decoder (FFmpeg). Raises ImportError where FFmpeg's libraries are not there."""
    from spdl import io  # type: ignore[import-not-found,import-untyped,unused-ignore]

    try:
        io.decode_config()
    except RuntimeError as error:
        raise ImportError(str(error)) from None
    rgb = io.get_video_filter_desc(pix_fmt="rgb24")
    return lambda jpeg: io.to_numpy(io.load_image(jpeg, filter_desc=rgb))


def litdata(s: Setup) -> Loader:
    """litdata's StreamingDataset over local chunks, decoded by torchvision as its own JPEG type is."""
    import litdata as lit  # type: ignore[import-not-found,import-untyped,unused-ignore]

    read = by_torchvision()

    def row(sample: dict[str, Any]) -> tuple[np.ndarray, int, int]:
        return window(read(sample["jpeg"]), s.crop), sample["label"], sample["id"]

    path = prepared(s.samples, s.work, "litdata", litdata_chunks)
    dataset = lit.StreamingDataset(str(path), shuffle=True, drop_last=True, transform=row)
    loader = lit.StreamingDataLoader(dataset, batch_size=s.batch, num_workers=s.threads, collate_fn=collate, persistent_workers=True)
    return Loader(lambda: iter(loader), len(loader), "order mixed by chunks of 64 MB and in windows of 256 samples inside them")


def mds(s: Setup) -> Loader:
    """MosaicML's StreamingDataset over local MDS shards, decoded by torchvision."""
    from streaming import StreamingDataset  # type: ignore[import-not-found,import-untyped,unused-ignore]

    read = by_torchvision()

    class Windows(StreamingDataset):  # type: ignore[misc,unused-ignore]
        def __getitem__(self, at: Any) -> tuple[np.ndarray, int, int]:
            sample = super().__getitem__(at)
            return window(read(sample["jpeg"]), s.crop), sample["label"], sample["id"]

    path = prepared(s.samples, s.work, "mds", mds_shards)
    dataset = Windows(local=str(path), shuffle=True, batch_size=s.batch, num_canonical_nodes=1)
    loader: Any = DataLoader(dataset, s.batch, num_workers=s.threads, collate_fn=collate, drop_last=True, persistent_workers=True)
    return Loader(lambda: iter(loader), len(s.samples) // s.batch, "its py1e order: mixed within a range of shards")


LOADERS: dict[str, Callable[[Setup], Loader]] = {
    "webdataset": partial(webdataset, decode=lambda: decoded),
    "webdataset-torchvision": partial(webdataset, decode=by_torchvision),
    "imagefolder": partial(imagefolder, decode=lambda: decoded),
    "imagefolder-torchvision": partial(imagefolder, decode=by_torchvision),
    "ffcv-jpeg": partial(ffcv, raw=False, normalise=False),
    "ffcv-jpeg-normalised": partial(ffcv, raw=False, normalise=True),
    "ffcv-raw": partial(ffcv, raw=True, normalise=False),
    "ffcv-raw-normalised": partial(ffcv, raw=True, normalise=True),
    "spdl": partial(spdl, decode=by_spdl),
    "spdl-torchvision": partial(spdl, decode=by_torchvision),
    "litdata": litdata,
    "mds": mds,
}
