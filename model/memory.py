"""The C library's memory, where PyTorch computes on the CPU."""

from __future__ import annotations

import ctypes

import torch

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


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
