"""The Triton kernel of the paper's SGD: one pass over weight, velocity and gradient, 20 bytes a parameter in float32.

Apart from sgd, since not every machine has Triton. With a bfloat16 gradient and a bfloat16 copy of the weights it is 20 bytes too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
BLOCK = 1024  # parameters of a program; 8 of a lane, whose bfloat16 is one 16-byte word


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    weight, velocity, gradient, compute, rate, momentum, weight_decay, size, COMPUTE: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    r = tl.load(rate)
    w = tl.load(weight + at, mask, 0)
    g = tl.load(gradient + at, mask, 0).to(tl.float32)
    v = momentum * tl.load(velocity + at, mask, 0) - weight_decay * r * w - r * g
    w += v
    tl.store(velocity + at, v, mask)
    tl.store(weight + at, w, mask)
    if COMPUTE:
        tl.store(compute + at, w.to(tl.bfloat16), mask)


@torch.no_grad()
def update(
    weight: torch.Tensor,
    velocity: torch.Tensor,
    gradient: torch.Tensor,
    compute: torch.Tensor | None,
    rate: torch.Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """v <- momentum v - weight_decay rate w - rate g;  w <- w + v, as sgd.PaperSGD; in place.

    weight, velocity: float32; gradient: float32 or bfloat16; compute: bfloat16, gets the new weight rounded, or None; rate: one float32 on
    the device, read when the kernel runs, so that a CUDA graph replays with a new one. All but rate have one shape, and the same strides
    without gaps.
    """
    for tensor in (weight, velocity, gradient, *([] if compute is None else [compute])):
        same = tensor.shape == weight.shape and _strides(tensor) == _strides(weight)
        assert same, f"a tensor of {tuple(tensor.shape)} with strides {tensor.stride()} beside a weight of {tuple(weight.shape)}, {weight.stride()}"
    assert _dense(weight), f"a weight of {tuple(weight.shape)} with strides {weight.stride()} has gaps"
    assert rate.dtype == weight.dtype == velocity.dtype == torch.float32, "weight, velocity and rate are float32"
    assert compute is None or compute.dtype == torch.bfloat16, "the copy of the weights is bfloat16"
    size = weight.numel()
    if size:
        with torch.cuda.device_of(weight):
            numbers = rate, float(momentum), float(weight_decay), size
            _update[(-(-size // BLOCK),)](weight, velocity, gradient, compute, *numbers, COMPUTE=compute is not None, BLOCK=BLOCK, **OPTIONS)


def _strides(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """(stride, extent) of its dimensions; those of one element have none that matters."""
    return [(s, c) for s, c in zip(tensor.stride(), tensor.shape, strict=True) if c != 1]


def _dense(tensor: torch.Tensor) -> bool:
    """Whether its elements lie in memory without gaps, in whatever order."""
    extent = 1
    for stride, count in sorted(_strides(tensor)):
        if stride != extent:
            return False
        extent *= count
    return True
