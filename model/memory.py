"""The C library's memory, where PyTorch computes on the CPU."""

from __future__ import annotations

import ctypes

import torch

from model.layout import Layout
from model.recipe import Recipe

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


BYTES_A_PARAMETER = 16  # weight, gradient, velocity, and the bucket that gradients are summed in, float32


def out_of_memory(recipe: Recipe, layout: Layout) -> str:
    """What to say where a batch did not fit: the greatest that would, by what it had taken when it stopped."""
    batch, replicas, device = recipe.train.batch, layout.data_count, layout.device
    used, there = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    fixed = sum(recipe.model.parameters(1000).values()) * BYTES_A_PARAMETER * replicas / layout.world
    fits = batch_that_fits(fixed, used, there, batch // replicas) * replicas // layout.world * layout.world
    remedy = f"--set train.batch={fits} would fit" if fits else "use a GPU with more"
    return f"{device} has too little memory, {there / 2**30:.1f} GiB, for {batch // replicas} pictures at a time; {remedy}, or more --devices"


def batch_that_fits(fixed: float, used: float, there: float, batch: int) -> int:
    """Pictures at a time, a power of two below `batch`; 0: none. fixed: bytes whatever the batch; used: by this batch at least; there: in all.

    What is used when memory runs out is less than the batch needs, so the answer may have to be asked for twice.
    """
    a_picture = max(used - fixed, 1.0) / batch
    fits = int((0.9 * there - fixed) / a_picture)  # a tenth is lost in fragments
    return 0 if fits < 1 else min(2 ** (fits.bit_length() - 1), 2 ** ((batch - 1).bit_length() - 1) if batch > 1 else 0)


def keep_freed_memory(device: torch.device) -> None:
    """On the CPU under glibc: keep freed memory for the next step instead of handing it back to the system.

    Activations of tens of MB are otherwise mapped, zeroed page by page and unmapped in every step.
    """
    if device.type != "cpu":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, which has its own ways
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
