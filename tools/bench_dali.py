"""Plain DALI over the shards, as its users write it: rows of tools/bench_loader.py beside our own.

Its own reader, shuffle buffer and random numbers; nothing checked. The decoder's settings are those of our own graph, so that all give the
same pixels. Each form takes what is random as DALI's nodes: random ones here, given ones in the test that holds it against plain_batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from pipeline.colour import ColourStats
from pipeline.graph import decode, windows
from pipeline.shards import ShardSet

PREFETCH = 2  # batches that DALI keeps memory for, its default and our loader's
SHUFFLE = 1000  # samples of the reader's shuffle buffer
HARDWARE_SHARE = 0.65  # on a GPU: DALI's own default; 1 is ours


@dataclass(frozen=True)
class Drawn:
    """What is random in a picture, as DALI's nodes. x, y: first column and row of the window, whole float32 numbers; flip: 0 or 1;
    shift: (3,) float32 grey levels."""

    x: Any
    y: Any
    flip: Any
    shift: Any


@dataclass(frozen=True)
class Form:
    """What is done to a picture and where. colours: (3, 3) float32, what a draw of N(0, 1) for each principal component adds to R, G, B."""

    crop: int
    mean_image: np.ndarray
    colours: np.ndarray
    device: str

    @property
    def last(self) -> int:
        """Largest offset of the window."""
        return len(self.mean_image) - self.crop

    @property
    def place(self) -> str:
        return "cpu" if self.device == "cpu" else "gpu"

    def drawn(self) -> Drawn:
        """Random ones. Offsets are drawn from a list: a uniform position gives the two edges half the probability of the others."""
        x, y = (fn.random.uniform(values=[float(offset) for offset in range(self.last + 1)]) for _ in range(2))
        return Drawn(x, y, fn.random.coin_flip(), self.shift(fn.random.normal(shape=[3])))

    def shift(self, normals: Any) -> Any:
        return fn.reductions.sum(normals * types.Constant(self.colours), axes=[1])

    def picture(self, jpeg: Any) -> Any:
        """Whole, uint8: the bare decoding."""
        return decode(jpeg, self.device, HARDWARE_SHARE)

    def _at(self, drawn: Drawn) -> dict[str, Any]:
        last = float(max(self.last, 1))  # DALI takes a position 0..1 and rounds it to a pixel
        return {"crop": [self.crop] * 2, "crop_pos_x": drawn.x / last, "crop_pos_y": drawn.y / last}

    def window(self, jpeg: Any, drawn: Drawn) -> Any:
        if self.device == "cpu":
            return windows(jpeg, self._at(drawn), "cpu")
        return fn.crop(self.picture(jpeg), **self._at(drawn))  # decoding a region on the GPU crashes Hopper

    def uint8(self, jpeg: Any, drawn: Drawn) -> Any:
        return fn.flip(self.window(jpeg, drawn), horizontal=drawn.flip)

    def float32_a(self, jpeg: Any, drawn: Drawn) -> Any:
        """The direct form: window less the mean's window, flip, shift; HWC."""
        start = fn.cast(fn.stack(drawn.y, drawn.x), dtype=types.INT32)
        mean = fn.slice(types.Constant(self.mean_image, device=self.place), start=start, shape=[self.crop] * 2, axes=[0, 1])
        shift = drawn.shift if self.device == "cpu" else drawn.shift.gpu()
        return fn.flip(self.window(jpeg, drawn) - mean, horizontal=drawn.flip) + shift

    def float32_b(self, jpeg: Any, drawn: Drawn) -> Any:
        """The fastest of the forms known: the whole picture less the mean, then crop, flip and shift by one operator; CHW."""
        picture = self.picture(jpeg) - types.Constant(self.mean_image, device=self.place)
        return fn.crop_mirror_normalize(picture, **self._at(drawn), mirror=drawn.flip, mean=-drawn.shift, std=[1.0] * 3, output_layout="CHW")


def form(stats: ColourStats, crop: int, sigma: float, device: str) -> Form:
    """Colours by the paper's rule."""
    return Form(crop, stats.mean_image, stats.shift(np.eye(3), "eigenvalue", sigma).T.copy(), device)


def bare_picture(form: Form, jpeg: Any, drawn: Drawn) -> Any:
    """No crop and no flip; what is drawn and not used, DALI leaves out."""
    return form.picture(jpeg)


def reading(shards: ShardSet, shuffled: bool) -> list[Any]:
    """The reader's nodes: encoded pictures, and, where it shuffles, labels as ASCII digits."""
    tars = [shards.folder / shard.name for shard in shards.shards]
    files: dict[str, Any] = {"paths": [str(tar) for tar in tars], "index_paths": [str(tar.with_suffix(".idx")) for tar in tars]}
    if not shuffled:
        return [fn.readers.webdataset(**files, ext=["jpg"])]
    pictures_and_labels: Any = fn.readers.webdataset(**files, ext=["jpg", "cls"], random_shuffle=True, initial_fill=SHUFFLE)
    return list(pictures_and_labels)


def encoded() -> Any:
    """The input of a pipeline that we feed ourselves, with arrays (bytes,) uint8."""
    return fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1, batch=True)


def built(graph: Callable[[], Any], batch: int, threads: int, device_id: int | None, feed: Callable[[Any], None] = lambda pipe: None) -> Any:
    """A pipeline with nothing under way; graph: its outputs' nodes. feed: gives it one batch, for those that read nothing themselves."""
    made: Any = pipeline_def(graph)(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=PREFETCH, seed=0)
    made.build()
    for _ in range(PREFETCH):
        feed(made)
    made.schedule_run()  # the first run asks for so many batches at once
    for _ in range(PREFETCH):
        made.outputs()
    return made
