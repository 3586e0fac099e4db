"""The net's two columns, and what crosses between them when each sits on a device of its own (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from model.exchange import Layer, gather_outputs, gather_parts, overlapped, plain

COLUMNS = 2


@dataclass(frozen=True)
class Columns:
    """Which columns this rank holds: both (group None), or column `index` of the two ranks of `group`, in rank order.

    overlap: layers that read both columns compute while the other's part is on its way; the plain form is there to be compared.
    On two CPU ranks a step of 32 pictures takes about 3 % less (docs/benchmarks/exchange.json); between GPUs it is unmeasured.
    """

    index: int = 0
    group: dist.ProcessGroup | None = None
    overlap: bool = True

    @property
    def held(self) -> int:
        """Columns on this rank: also the number of groups of its two-column convolutions."""
        return COLUMNS if self.group is None else 1

    @property
    def alone(self) -> bool:
        """Whether this rank holds the whole net."""
        return self.group is None

    def rows(self, layer: str, total: int) -> slice:
        """The part of a layer's `total` outputs that this rank computes: column 0 the first half (and the odd one)."""
        if self.group is None:
            return slice(0, total)
        half = (total + 1) // 2
        return slice(0, half) if self.index == 0 else slice(half, total)

    def read(self, name: str, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        """What `layer`, which reads both columns, makes of this column's (n, c, ...) and the other's: its outputs on this rank."""
        if self.group is None:
            out: torch.Tensor = layer(x)
            return out
        way = overlapped if self.overlap else plain
        return way(layer, x, self.index, self.group)

    def gather_logits(self, x: torch.Tensor, total: int) -> torch.Tensor:
        """Each column's part of the last layer's outputs -> all of them, (n, total), on both ranks."""
        return x if self.group is None else gather_outputs(x, self.rows("fc8", total), total, self.group)

    def gather_rows(self, layer: str, x: torch.Tensor, total: int) -> torch.Tensor:
        """Parts of a parameter along its first dimension -> the whole parameter, on every rank."""
        return x if self.group is None else gather_parts(x, total, 0, self.group)
