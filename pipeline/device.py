"""Between the CPU's memory and the device's."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.errors import InputError


def chosen_device(name: str | torch.device) -> torch.device:
    """The device of a name, "cuda" being the present one. Raises InputError where torch sees no GPU."""
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise InputError(f'device "{name}", but torch sees no GPU here; use device="cpu"')
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on the device, without waiting for the step under way: from pinned memory, or the copy would wait for it."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
