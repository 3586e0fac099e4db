"""What the units of each layer and column do on a few pictures: histograms, and the share that never fires.

A look is a forward pass of 32 pictures and a third of that for the histograms: of the paper's net 1.5 s of one core, a tenth of
a step of 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from model.columns import Columns
from model.layout import Layout
from model.net import Net

BINS = 40
PICTURES = 32  # that are looked at


@dataclass(frozen=True)
class Histogram:
    """Of one layer's and column's outputs after ReLU, or tanh.

    counts: of values in BINS equal parts of `least` .. `most`, of ReLU from 0 on; values: how many there are; total, squares: sums over
    them and over their squares; silent: share, 0..1, of the maps, or the units of a fully connected layer, that are 0 on every picture.
    """

    most: float
    counts: list[int]
    values: int
    total: float
    squares: float
    silent: float
    least: float = 0.0


@torch.no_grad()
def measure(net: Net, images: torch.Tensor, layout: Layout) -> dict[str, Histogram]:
    """By name, such as "conv1/column0": all columns' on the first rank, this rank's on the others. All ranks that share a net call it;
    the hybrid's ranks with their whole net.

    images: (n, 3, s, s), of which the first few are looked at. The net is left as it was, training or not; no random number is drawn.
    """
    found: dict[str, Histogram] = {}
    first, held, was_training = net.columns.index if isinstance(net.columns, Columns) else 0, net.groups, net.training

    def look(layer: str, out: torch.Tensor) -> None:
        for column, part in enumerate(out.chunk(held, dim=1), start=first):
            found[f"{layer}/column{column}"] = _histogram(part.float())

    net.eval()
    net.look = look
    try:
        net(images[:PICTURES].contiguous(memory_format=torch.channels_last))
    finally:
        net.look = None
        net.train(was_training)
    return _gathered(found, layout)


def _histogram(values: torch.Tensor) -> Histogram:
    silent = (values.transpose(0, 1).flatten(1) == 0).all(dim=1).float().mean()
    values = values.nan_to_num(nan=0.0, posinf=1e30)  # of a training that has come apart
    most = float(values.max()) if values.numel() else 0.0
    least = min(0.0, float(values.min())) if values.numel() else 0.0
    most = most if most > least else least + 1.0
    places = ((values - least) / (most - least) * BINS).int().clamp_(max=BINS - 1)
    counts = torch.bincount(places.flatten(), minlength=BINS).tolist()  # on GPUs torch.histc has no deterministic form
    wide = values.double()
    return Histogram(most, counts, values.numel(), float(wide.sum()), float((wide * wide).sum()), float(silent), least)


def _gathered(found: dict[str, Histogram], layout: Layout) -> dict[str, Histogram]:
    """What the ranks of the first replica found, on the first rank."""
    if layout.world == 1 or layout.control_group is None:
        return found
    parts: list[Any] = [None] * layout.world
    dist.all_gather_object(parts, found, group=layout.control_group)
    merged: dict[str, Histogram] = {}
    for part in parts[: layout.world // layout.data_count]:
        merged.update(part)
    return merged


def write(board: Any, step: int, histograms: dict[str, Histogram]) -> None:
    """Each histogram to TensorBoard."""
    for name, one in histograms.items():
        limits = [one.least + (one.most - one.least) * (i + 1) / BINS for i in range(BINS)]
        board.add_histogram_raw(f"activations/{name}", one.least, one.most, one.values, one.total, one.squares, limits, one.counts, step)


def silent_shares(histograms: dict[str, Histogram]) -> dict[str, float]:
    """For metrics.jsonl and TensorBoard: percent of the maps of each layer and column that fired on no picture."""
    return {f"silent_percent_{name.replace('/', '_')}": 100 * one.silent for name, one in histograms.items()}
