"""Ranks that decode for each other exchange windows as uint8, so no picture is decoded twice.

Label and id travel behind the pixels of each window: a picture that was replaced by another has another label, and only the
rank that decoded it knows. Draws and colour shifts are pure functions that every rank computes, so nothing has to come back
to the CPU, and the training stream is never waited for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pipeline.device import upload
from pipeline.share import Route

_NUMBERS = 16  # bytes behind the pixels: label and id, int64


class Exchange:
    """One batch on its way: begun at once, waited for later."""

    def __init__(self, windows: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, way: Route, group: dist.ProcessGroup) -> None:
        """windows: (h, bytes) uint8; labels, ids: (h,) int64; of the rows that this rank decoded, all on one device."""
        self._arrival = way.arrival
        numbers = torch.stack((labels, ids), dim=1).view(torch.uint8)
        send = upload(way.send, windows.device)
        packed = torch.empty((len(send), windows.shape[1] + _NUMBERS), dtype=torch.uint8, device=windows.device)
        if len(windows):
            torch.index_select(windows, 0, send, out=packed[:, :-_NUMBERS])
        packed[:, -_NUMBERS:] = numbers[send]
        self._received = packed.new_empty((sum(way.receive_sizes), packed.shape[1]))
        self._sent = packed  # kept until it has gone
        self._work: Any = dist.all_to_all_single(self._received, packed, way.receive_sizes, way.send_sizes, group=group, async_op=True)

    def wait(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Windows (n, bytes + 16) uint8, the 16 not of the window; labels and ids (n,) int64; of the rows that this rank needs."""
        self._work.wait()
        arrived = self._received
        if (self._arrival[1:] < self._arrival[:-1]).any():
            arrived = arrived[upload(self._arrival, arrived.device)]
        numbers = arrived[:, -_NUMBERS:].contiguous().view(torch.int64)
        return arrived, numbers[:, 0], numbers[:, 1]
