"""The rows of tools/bench_endtoend.py, each with what is in it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cache import Pixels

CACHES: dict[str, Pixels | None] = {"decode": None, "cached": "rgb", "cached-yuv": "yuv420"}  # our supplies


@dataclass(frozen=True)
class Row:
    """supply: where its batches come from; precision, compiled: of a peer's step. alone: on one batch that lies on the device."""

    what: str
    supply: str
    precision: str = ""
    compiled: bool = False
    alone: bool = False


_OURS = "ImageLoader and the step of model.loop, as model.train puts them together"
_TORCH = "DataLoader, Pillow, uint8 windows, channel means taken off on the device; eager net, channels first, F.local_response_norm"
_DALI = "plain DALI: readers.webdataset, its fastest float32 form; eager net as in torch-*"
ROWS = {
    "ours-decode": Row(f"{_OURS}; every picture decoded", "decode"),
    "ours-cached": Row(f"{_OURS}; decoded pictures from the cache as RGB, epochs 2 and on", "cached"),
    "ours-cached-yuv": Row(f"{_OURS}; decoded pictures from the cache as YUV 4:2:0 planes, epochs 2 and on", "cached-yuv"),
    "ours-resident": Row(
        "the same step, again and again on one batch that lies on the device: the most that any loader could allow", "decode", alone=True
    ),
    "dali-float32": Row(f"{_DALI}, float32", "dali", "float32"),
    "dali-autocast": Row(f"{_DALI}, autocast to bfloat16", "dali", "autocast"),
    "torch-float32": Row(f"{_TORCH}, float32", "torch", "float32"),
    "torch-tf32": Row(f"{_TORCH}, TF32", "torch", "tf32"),
    "torch-autocast": Row(f"{_TORCH}, autocast to bfloat16", "torch", "autocast"),
    "torch-compiled-float32": Row(f"{_TORCH}, float32, torch.compile", "torch", "float32", compiled=True),
    "torch-compiled-autocast": Row(f"{_TORCH}, autocast to bfloat16, torch.compile", "torch", "autocast", compiled=True),
}
DEFAULT = [key for key in ROWS if key not in ("dali-float32", "torch-compiled-float32")]
