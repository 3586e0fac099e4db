"""The same bits from the same seed, machine and layout. On CPUs they are so by themselves; on GPUs at a price, which is not measured yet."""

from __future__ import annotations

import os

import torch

from pipeline import InputError

NO_FORM = "does not have a deterministic implementation"  # of torch's error
CUBLAS, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # sizes with which cuBLAS is deterministic


def set_deterministic(wanted: bool, device: torch.device) -> None:
    """Before anything is multiplied on `device`. On a GPU, not wanted: the quickest convolutions, found by trying, whatever their bits.

    Raises InputError where the environment asks cuBLAS for something else.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = not wanted
    torch.use_deterministic_algorithms(wanted)
    if wanted and os.environ.setdefault(CUBLAS, WORKSPACES[0]) not in WORKSPACES:  # read by cuBLAS when it starts, with the first product
        raise InputError(f"{CUBLAS} is {os.environ[CUBLAS]}, with which train.deterministic cannot be; unset it, or leave train.deterministic out")


def no_deterministic_form(error: RuntimeError) -> str | None:
    """What to say where torch refuses an operation; None for any other error."""
    text = str(error)
    if NO_FORM not in text:
        return None
    return f"train.deterministic: {text.split(NO_FORM)[0].strip()} has no deterministic form on this GPU; leave it out, or use --device cpu"
