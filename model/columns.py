"""The net's two columns, and what crosses between them when each sits on a device of its own (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

COLUMNS = 2


@dataclass(frozen=True)
class Columns:
    """Which columns this rank holds: both (group None), or column `index` of the two ranks of `group`, in rank order."""

    index: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def held(self) -> int:
        """Columns on this rank: also the number of groups of its two-column convolutions."""
        return COLUMNS if self.group is None else 1

    def rows(self, total: int) -> slice:
        """The part of a layer's `total` outputs that this rank computes: column 0 the first half (and the odd one)."""
        if self.group is None:
            return slice(0, total)
        half = (total + 1) // 2
        return slice(0, half) if self.index == 0 else slice(half, total)

    def exchange(self, x: torch.Tensor) -> torch.Tensor:
        """This column's maps -> those of both columns: (n, c, ...) -> (n, 2 c, ...). With both columns here, nothing to do.

        The gradient that comes back for this column's maps is the sum of what both columns ask of them.
        """
        return x if self.group is None else _Exchange.apply(x, self.group)

    def gather_logits(self, x: torch.Tensor, total: int) -> torch.Tensor:
        """Each column's part of the last layer's outputs -> all of them, (n, total).

        Both ranks then compute the same loss from the same numbers, so each takes back its own part of that one gradient.
        """
        return x if self.group is None else _GatherLogits.apply(x, self, total)

    def gather_rows(self, x: torch.Tensor, total: int) -> torch.Tensor:
        """Parts of a parameter along its first dimension -> the whole parameter, on every rank."""
        return x if self.group is None else self._gather(x, total, dim=0)

    def _gather(self, x: torch.Tensor, total: int, dim: int) -> torch.Tensor:
        """All-gather parts that may differ in length by one."""
        most = (total + 1) // 2
        x = x.contiguous()
        if x.shape[dim] < most:
            x = torch.cat((x, x.narrow(dim, 0, 1)), dim)  # one row of filling, cut off below
        parts = [torch.empty_like(x) for _ in range(COLUMNS)]
        dist.all_gather(parts, x, group=self.group)
        return torch.cat(parts, dim).narrow(dim, 0, total)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(COLUMNS)]
        dist.all_gather(parts, x, group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        parts = [part.contiguous() for part in gradients[0].chunk(COLUMNS, dim=1)]
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts, group=ctx.group)
        return mine, None


class _GatherLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, columns: Columns, total: int) -> torch.Tensor:
        ctx.rows = columns.rows(total)
        return columns._gather(x, total, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0][:, ctx.rows].contiguous(), None, None
