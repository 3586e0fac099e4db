"""Ranks that need the same batch decode a part each and exchange the parts as uint8, so no picture is decoded twice.

Only pixels cross: ids, draws and colour shifts are pure functions that every rank computes for the whole batch, and labels
are a few bytes of the tar. So nothing has to come back to the CPU, and the training stream is never waited for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class Crossing:
    """All-gather of the windows of a group's ranks, in rank order, begun and waited for apart."""

    def __init__(
        self, mine: torch.Tensor | None, group: dist.ProcessGroup | None, sizes: list[int], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        """mine: (rows, *shape) uint8, or None for no rows; sizes: rows of each rank of the group, which may differ in a last batch."""
        self._works, self._sizes = list[Any](), sizes
        if mine is None:
            mine = torch.empty((0, *shape), dtype=torch.uint8, device=device)
        if group is None:
            self._parts = [mine]
            return
        padded = torch.empty((max(sizes), *shape), dtype=torch.uint8, device=device)
        padded[: len(mine)] = mine
        self._parts = [torch.empty_like(padded) for _ in sizes]
        self._works.append(dist.all_gather(self._parts, padded, group=group, async_op=True))

    def wait(self) -> torch.Tensor:
        """(rows of all ranks, *shape)."""
        for work in self._works:
            work.wait()
        self._works = []
        if len(self._parts) == 1:
            return self._parts[0]
        return torch.cat([part[:size] for part, size in zip(self._parts, self._sizes, strict=True)])
