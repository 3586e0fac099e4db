"""The layout of 2014: convolutions data-parallel, fully connected layers split over the same ranks (arXiv 1404.5997, section 4, scheme a)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model.columns import COLUMNS
from model.exchange import Layer, gather_features, gather_outputs, gather_parts, gather_pictures

if TYPE_CHECKING:  # both are made of what is here
    from model.layout import Layout
    from model.net import Net


@dataclass(frozen=True)
class Hybrid:
    """Rank `index` of `ranks`: all of the convolutions, for its own pictures; its part of fc6, fc7 and fc8, for those of all.

    The parts are those of torch.chunk: equal, but for the last ones, which are smaller or empty.
    """

    index: int
    ranks: dist.ProcessGroup
    held = COLUMNS
    alone = False

    def rows(self, layer: str, total: int) -> slice:
        """The part of a layer's `total` outputs that this rank computes."""
        if not is_split(layer):
            return slice(0, total)
        most = -(-total // self.ranks.size())
        return slice(min(total, self.index * most), min(total, (self.index + 1) * most))

    def read(self, name: str, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the outputs of a layer that reads all of x: of the first linear one (n, features) of this rank's pictures,
        of those behind it this rank's features of all pictures. Every rank must bring the same number of pictures.
        """
        if is_split(name):
            total: int = layer.weight.shape[1]
            all_here = x.shape[1] == total
            x = gather_pictures(x, self.ranks) if all_here else gather_features(x, self.rows(name, total), total, self.ranks)
        out: torch.Tensor = layer(x)
        return out

    def gather_logits(self, x: torch.Tensor, total: int) -> torch.Tensor:
        """Each rank's part of the last layer's outputs -> all of them, (whole batch, total), on every rank."""
        return gather_outputs(x, self.rows("fc8", total), total, self.ranks)

    def gather_rows(self, layer: str, x: torch.Tensor, total: int) -> torch.Tensor:
        """Parts of a parameter along its first dimension -> the whole parameter, on every rank."""
        return gather_parts(x, total, 0, self.ranks) if is_split(layer) else x


def is_split(layer: str) -> bool:
    """Whether the hybrid's ranks share this layer's outputs: the fully connected ones."""
    return layer.startswith("fc")


def parallel(net: Net, layout: Layout) -> torch.nn.Module:
    """The net in the wrapping that sums the gradients of its replicas, or itself where there is one replica.

    The hybrid's fully connected layers see the whole batch, so theirs are complete as they are.
    """
    if layout.data_group is None:
        return net
    if isinstance(net.columns, Hybrid):
        complete = [name for name, _ in net.named_parameters() if is_split(name)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, complete)
    return DistributedDataParallel(net, process_group=layout.data_group)
