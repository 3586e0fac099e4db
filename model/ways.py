"""How a net computes what its design says. The results differ by rounding only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from model.convolve import Form

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Ways:
    """half: layers compute in bfloat16, with sums in float32; else in the type of the weights. fused: ReLU, LRN and pooling in one pass.

    blocks: conv1 on 4x4 blocks of pixels. forms: of convolutions of two columns, by layer; "grouped" unless named.
    """

    half: bool = False
    fused: bool = True
    blocks: bool = False
    forms: Mapping[str, Form] = field(default_factory=dict)


def is_half(precision: Precision, device: torch.device) -> bool:
    """Whether layers compute in bfloat16: auto says yes on GPUs only."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def half_warning(half: bool, device: torch.device) -> str | None:
    """What to tell who asked for bfloat16 of a processor that has no instructions for it; None where there is nothing to tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not half or device.type != "cpu" or not cpuinfo.exists():
        return None
    flags = set(cpuinfo.read_text().split())
    if flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        return None
    return "this processor has no instructions for bfloat16, and takes longer with it than with float32: --set train.precision=float32"
