"""Memory for batches, used again: fresh memory is paid for page by page, a quarter of the time of a large copy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

KEPT = 8  # buffers; more than a loader has under way


class Buffers:
    """Arrays that nobody holds any more, neither as NumPy arrays nor as tensors made from them."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """An array with any content. The caller, and whoever it gives views of it, has it until the last view is gone."""
        for buffer in self._buffers:
            if sys.getrefcount(buffer) == _UNUSED and buffer.shape[1:] == shape[1:] and buffer.dtype == kind and len(buffer) >= shape[0]:
                return buffer[: shape[0]]
        self._buffers = [*self._buffers[1 - KEPT :], np.empty(shape, kind)]
        return self._buffers[-1][:]


def _references_in_a_loop() -> int:
    for array in [np.empty(0)]:
        return sys.getrefcount(array)
    raise AssertionError("unreachable: the list has one array")


_UNUSED = _references_in_a_loop()  # by the list and the loop's name, however this Python counts them
