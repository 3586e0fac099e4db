"""The DALI graph: encoded pictures and their draws in, batches out. One definition for the CPU and the GPU backend."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from pipeline.augment import Augmentation, central_draws, central_mean
from pipeline.draws import Draws
from pipeline.jpeg_header import jpeg_size
from pipeline.scaled import regions

# What comes out, uint8 (n, side, side, 3): "pictures" whole, "windows" cropped; "float32": mirrored, mean subtracted and colour
# shifted as well, (n, 3, crop, crop) grey levels, all of it by DALI's own operators.
Out = Literal["pictures", "windows", "float32"]


@dataclass(frozen=True)
class Fed:
    """What one batch needs: encoded pictures, n arrays (bytes,) uint8; draws; colour shift (n, 3) float32 in grey levels."""

    jpegs: list[np.ndarray]
    draws: Draws
    shift: np.ndarray


class Decoder:
    """DALI working ahead: batches are handed in by `schedule` and come out by `take` in the same order.

    A batch with a picture that cannot be decoded makes `take` raise RuntimeError; the batches behind it are not touched.
    """

    def __init__(
        self,
        out: Out,
        *,
        augmentation: Augmentation,
        mean_image: np.ndarray,
        batch: int,
        threads: int,
        device: torch.device,
        prefetch: int = 2,
        pinned: bool = False,
    ) -> None:
        """batch: most pictures in a batch. prefetch: batches under way for which DALI keeps memory. pinned: each thread to a core."""
        self._out, self._augmentation, self._size, self._device = out, augmentation, len(mean_image), device
        self._under_way = 0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        device_id: Any = None if device.type == "cpu" else device.index or 0
        graph = pipeline_def(
            batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch, set_affinity=pinned, exec_dynamic=True
        )(_graph)
        self._pipe = graph(out, augmentation, mean_image, device.type)
        self._pipe.build()
        self._warm_up(prefetch)

    def schedule(self, fed: Fed) -> None:
        """Begin to decode a batch; at least one picture."""
        self._feed(fed)
        self._pipe.schedule_run()
        self._under_way += 1

    def _feed(self, fed: Fed) -> None:
        feed = self._pipe.feed_input
        feed("jpeg", fed.jpegs)
        if self._out == "pictures":
            return
        if self._augmentation.scale is not None:
            start, end = regions(np.array([_height_width(jpeg) for jpeg in fed.jpegs]), fed.draws, self._augmentation.crop)
            feed("start", start.astype(np.float32))
            feed("end", end.astype(np.float32))
        else:
            # Offset k of 0..last as k / last: DALI rounds last * position, so integers come back exactly. Handing it a
            # uniform position instead would give the two edge offsets half the probability of the others.
            position = np.stack((fed.draws.x, fed.draws.y)).astype(np.float32) / max(self._size - self._augmentation.crop, 1)
            feed("x", position[0])
            feed("y", position[1])
        if self._out == "float32":
            feed("flip", fed.draws.flip.astype(np.int32))
            feed("minus_shift", -fed.shift)

    def _warm_up(self, prefetch: int) -> None:
        """Decode a grey picture: DALI's first run asks for `prefetch` batches at once, more than a short pass may have."""
        buffer = io.BytesIO()
        Image.new("RGB", (self._size, self._size), (128, 128, 128)).save(buffer, "JPEG")
        draws = central_draws(self._augmentation, self._size, 1)
        grey = Fed([np.frombuffer(buffer.getvalue(), np.uint8)], draws, np.zeros((1, 3), np.float32))
        for _ in range(prefetch):
            self._feed(grey)
        self._pipe.schedule_run()
        for _ in range(prefetch):
            self._pipe.outputs()

    def take(self) -> torch.Tensor:
        """The oldest batch under way. Raises RuntimeError when one of its pictures could not be decoded."""
        self._under_way -= 1
        (output,) = self._pipe.outputs()
        return to_torch(output, self._device, self._stream)

    def drain(self) -> None:
        """Wait for all batches under way and forget them."""
        while self._under_way:
            self._under_way -= 1
            try:
                self._pipe.outputs()
            except RuntimeError:  # a picture that cannot be decoded, in a batch that nobody wants any more
                continue


def _height_width(jpeg: np.ndarray) -> tuple[int, int]:
    """As the header has it, which ShardSet.read has checked: the size of what is not decoded yet."""
    size = jpeg_size(jpeg)
    assert size is not None, "a picture without a header that can be read"
    return size[1], size[0]


def _graph(out: Out, augmentation: Augmentation, mean_image: np.ndarray, device: str) -> Any:
    def given(name: str, kind: Any, dimensions: int) -> Any:
        return fn.external_source(name=name, dtype=kind, ndim=dimensions, batch=True)

    jpeg = given("jpeg", types.UINT8, 1)
    if out == "pictures":
        return decode(jpeg, device)
    if augmentation.scale is not None:
        cut: dict[str, Any] = {}
        picture = resized_windows(jpeg, given("start", types.FLOAT, 1), given("end", types.FLOAT, 1), augmentation.crop, device)
    else:
        cut = {"crop": [augmentation.crop] * 2, "crop_pos_x": given("x", types.FLOAT, 0), "crop_pos_y": given("y", types.FLOAT, 0)}
        picture = windows(jpeg, cut, device) if out == "windows" else decode(jpeg, device)
    if out == "windows":
        return picture
    return finished(picture, cut, given("flip", types.INT32, 0), given("minus_shift", types.FLOAT, 1), device, mean_image, augmentation)


def windows(jpeg: Any, window: dict[str, Any], device: str) -> Any:
    if device == "cpu":
        return fn.decoders.image_crop(jpeg, device="cpu", **_DECODER, **window)  # converts no pixel that is not in the window
    return fn.crop(decode(jpeg, device), **window)  # decoding a region on the GPU crashes Hopper (nvImageCodec 0.9)


def resized_windows(jpeg: Any, start: Any, end: Any, crop: int, device: str) -> Any:
    """Windows of pictures that are resized, see scaled.py. Pixels beyond a window enter it by the filter, as if all had been resized."""
    how: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "antialias": True, "dtype": types.UINT8}
    return fn.resize(decode(jpeg, device), size=[crop, crop], roi_start=start, roi_end=end, roi_relative=False, **how)


def finished(picture: Any, window: dict[str, Any], flip: Any, minus_shift: Any, device: str, mean_image: np.ndarray, a: Augmentation) -> Any:
    """crop_mirror_normalize subtracts one number per channel: the mean image goes before it (same window) or after it (centre, channel).

    window: where it is cut, nothing for a picture that is cut already.
    """
    place = "cpu" if device == "cpu" else "gpu"
    same = a.mean_window == "same"
    if same:
        picture = picture - types.Constant(mean_image, device=place)
    out = fn.crop_mirror_normalize(
        picture,
        **window,
        mirror=flip,
        mean=minus_shift,
        std=[a.divisor] * 3,
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    if same:
        return out
    centre = central_mean(mean_image, a.crop).transpose(2, 0, 1) / np.float32(a.divisor)
    return out - types.Constant(np.ascontiguousarray(centre), device=place)


# Said in full, since the backends' defaults differ: the CPU's chroma upsampling everywhere, and EXIF never turns a picture.
_DECODER: dict[str, Any] = {"output_type": types.RGB, "jpeg_fancy_upsampling": True, "adjust_orientation": False}


def decode(jpeg: Any, device: str, hw_decoder_load: float = 1.0) -> Any:
    """hw_decoder_load: share of the GPU's JPEG engines. All of it by default: a split between them and CUDA is not bit-stable."""
    if device == "cpu":
        return fn.decoders.image(jpeg, device="cpu", **_DECODER)
    return fn.decoders.image(
        jpeg, device="mixed", hw_decoder_load=hw_decoder_load, preallocate_width_hint=256, preallocate_height_hint=256, **_DECODER
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
