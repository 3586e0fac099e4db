"""The same bits from the same seed, machine and layout. On CPUs they are so by themselves; on GPUs at a price."""

from __future__ import annotations

import os

import torch

NO_FORM = "does not have a deterministic implementation"  # of torch's error


def set_deterministic(wanted: bool, device: torch.device) -> None:
    """Before anything runs on `device`. On a GPU, not wanted: the quickest convolutions, found by trying, whatever their bits."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = not wanted
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)


def no_deterministic_form(error: RuntimeError) -> str | None:
    """What to say where torch refuses an operation; None for any other error."""
    text = str(error)
    if NO_FORM not in text:
        return None
    return f"train.deterministic: {text.split(NO_FORM)[0].strip()} has no deterministic form on this GPU; leave it out, or use --device cpu"
