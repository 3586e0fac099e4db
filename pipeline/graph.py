"""The DALI graph: encoded pictures and their draws in, batches out. One definition for the CPU and the GPU backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from pipeline.augment import Augmentation, central_mean
from pipeline.draws import Draws

Out = Literal["uint8", "float32"]


@dataclass(frozen=True)
class Fed:
    """What one batch needs: encoded pictures, n arrays (bytes,) uint8; draws; colour shift (n, 3) float32 in grey levels."""

    jpegs: list[np.ndarray]
    draws: Draws
    shift: np.ndarray


def build_graph(
    feed: Callable[[], Fed],
    *,
    out: Out,
    augmentation: Augmentation,
    mean_image: np.ndarray,
    batch: int,
    threads: int,
    device: str,
    device_id: Any,
    prefetch: int,
) -> Any:
    """A built DALI pipeline that calls `feed` for each batch (StopIteration ends the pass; then reset()).

    out "uint8": windows, cropped and mirrored, (n, crop, crop, 3). out "float32": mean subtracted, colour shifted, too,
    (n, 3, crop, crop) grey levels. device: "cpu" or "cuda".
    """

    def source() -> tuple[Any, ...]:
        fed, last = feed(), len(mean_image) - augmentation.crop
        # Offset k of 0..last as k / last: DALI rounds last * position, so integers come back exactly. Handing it a
        # uniform position instead would give the two edge offsets half the probability of the others.
        position = np.stack((fed.draws.x, fed.draws.y)).astype(np.float32) / max(last, 1)
        inputs = fed.jpegs, position[0], position[1], fed.draws.flip.astype(np.int32)
        return inputs if out == "uint8" else (*inputs, -fed.shift)

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch)
    def graph() -> Any:
        dtypes, dimensions = [types.UINT8, types.FLOAT, types.FLOAT, types.INT32, types.FLOAT], [1, 0, 0, 0, 1]
        inputs = 4 if out == "uint8" else 5
        jpeg, x, y, flip, *minus_shift = fn.external_source(source, num_outputs=inputs, batch=True, dtype=dtypes[:inputs], ndim=dimensions[:inputs])
        window = {"crop": (augmentation.crop, augmentation.crop), "crop_pos_x": x, "crop_pos_y": y}
        if out == "uint8":
            return windows(jpeg, window, flip, device)
        return pictures(jpeg, window, flip, minus_shift[0], device, mean_image, augmentation)

    pipe = graph()
    pipe.build()
    return pipe


def windows(jpeg: Any, window: dict[str, Any], flip: Any, device: str) -> Any:
    if device == "cpu":
        cropped = fn.decoders.image_crop(jpeg, device="cpu", **_DECODER, **window)  # reads no columns it does not need
    else:
        cropped = fn.crop(decode(jpeg, device), **window)  # decoding a region on the GPU crashes Hopper (nvImageCodec 0.9)
    return fn.flip(cropped, horizontal=flip)


def pictures(jpeg: Any, window: dict[str, Any], flip: Any, minus_shift: Any, device: str, mean_image: np.ndarray, augmentation: Augmentation) -> Any:
    """crop_mirror_normalize subtracts one number per channel: the mean image goes before it (same window) or after it (centre)."""
    place = "cpu" if device == "cpu" else "gpu"
    same = augmentation.mean_window == "same"
    picture = decode(jpeg, device)
    if same:
        picture = picture - types.Constant(mean_image, device=place)
    out = fn.crop_mirror_normalize(
        picture,
        **window,
        mirror=flip,
        mean=minus_shift,
        std=[augmentation.divisor] * 3,
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    if same:
        return out
    centre = central_mean(mean_image, augmentation.crop).transpose(2, 0, 1) / np.float32(augmentation.divisor)
    return out - types.Constant(np.ascontiguousarray(centre), device=place)


# Said in full, since the backends' defaults differ: the CPU's chroma upsampling everywhere, and EXIF never turns a picture.
_DECODER: dict[str, Any] = {"output_type": types.RGB, "jpeg_fancy_upsampling": True, "adjust_orientation": False}


def decode(jpeg: Any, device: str) -> Any:
    if device == "cpu":
        return fn.decoders.image(jpeg, device="cpu", **_DECODER)
    return fn.decoders.image(
        jpeg,
        device="mixed",
        hw_decoder_load=1.0,  # all on the hardware engines: a split between them and CUDA is not bit-stable
        preallocate_width_hint=256,
        preallocate_height_hint=256,
        **_DECODER,
    )


def to_torch(output: Any, device: torch.device, stream: torch.cuda.Stream | None = None) -> torch.Tensor:
    """DALI's batch as a tensor that may be kept.

    On the CPU a view: DALI reuses the memory only when the tensor is gone. On a GPU a copy made on `stream`, and finished on
    return: DALI does not know torch's streams, and the training stream must not be waited for.
    """
    if device.type == "cpu":
        return torch.from_dlpack(output.as_tensor())
    stream = stream or torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        copy = torch.from_dlpack(output.as_tensor()).clone()
    stream.synchronize()
    return copy
