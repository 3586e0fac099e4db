"""Ranks that need the same batch decode a part each and exchange the parts as uint8, so no picture is decoded twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline.draws import Draws


@dataclass(frozen=True)
class Part:
    """What this rank decoded of a batch; images is None where its share of a last batch is empty."""

    images: torch.Tensor | None
    labels: np.ndarray
    ids: np.ndarray
    draws: Draws
    shift: np.ndarray


class Crossing:
    """All-gather of the parts of a group, in rank order, begun and waited for apart.

    Shares of a last batch differ in length, so they cross padded to `most` rows.
    """

    def __init__(
        self,
        part: Part,
        group: dist.ProcessGroup | None = None,
        device: torch.device | None = None,
        most: int = 0,
        shape: tuple[int, int, int] = (0, 0, 3),
    ) -> None:
        self._part, self._works = part, list[Any]()
        if group is None:
            return
        images = torch.empty((most, *shape), dtype=torch.uint8, device=device)
        if part.images is not None:
            images[: len(part.images)] = part.images
        numbers = _pack(part, most).to(images.device)
        self._images = [torch.empty_like(images) for _ in range(group.size())]
        self._numbers = [torch.empty_like(numbers) for _ in range(group.size())]
        for all_parts, mine in ((self._images, images), (self._numbers, numbers)):
            self._works.append(dist.all_gather(all_parts, mine, group=group, async_op=True))

    def wait(self) -> Part:
        if not self._works:
            return self._part
        for work in self._works:
            work.wait()
        self._works = []
        self._part = _unpack(torch.cat(self._images), torch.cat(self._numbers).cpu().numpy())
        return self._part


def _pack(part: Part, most: int) -> torch.Tensor:
    """(most, 9) float64: id, label, x, y, flip, 3 shifts, and 1 where the row is a sample. Integers below 2^53 are exact."""
    d = part.draws
    rows = np.column_stack((part.ids, part.labels, d.x, d.y, d.flip, part.shift, np.ones(len(part.ids))))
    numbers = torch.zeros((most, 9), dtype=torch.float64)
    numbers[: len(rows)] = torch.from_numpy(rows.astype(np.float64))
    return numbers


def _unpack(images: torch.Tensor, numbers: np.ndarray) -> Part:
    real = numbers[:, 8] == 1.0
    if not real.all():
        images = images[torch.from_numpy(real).to(images.device)]
    n = numbers[real]
    draws = Draws(n[:, 2].astype(np.int64), n[:, 3].astype(np.int64), n[:, 4].astype(bool), np.zeros((len(n), 3)))
    return Part(images, n[:, 1].astype(np.int64), n[:, 0].astype(np.int64), draws, n[:, 5:8].astype(np.float32))
