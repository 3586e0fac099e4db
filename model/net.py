"""What the nets have in common: one class for a device that holds all of a net and for a rank that holds a part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.nn.utils import skip_init

from model.columns import Columns
from model.hybrid import Hybrid, is_split
from model.net_design import NetDesign
from model.ways import Ways

DROPPED = ("fc6", "fc7")  # layers with dropout


class Masks(Protocol):
    """Dropout masks of a step; see MaskDraw.mask."""

    def mask(self, layer: int, features: int, rows: int, own: slice, keep: float, like: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class MaskDraw:
    """Which dropout masks a step uses: a function of seed and step, drawn for the step's whole batch.

    Each rank cuts out its pictures (rows first_row .. of `batch`) and its part of the layer, so any layout drops the same outputs.
    """

    seed: int
    step: int
    batch: int
    first_row: int = 0

    def mask(self, layer: int, features: int, rows: int, own: slice, keep: float, like: torch.Tensor) -> torch.Tensor:
        """(rows, own features) of 0 and 1 / keep; layer: place in DROPPED; rows: this rank's, or all of the batch."""
        generator = torch.Generator(like.device).manual_seed((self.seed * 1_000_003 + self.step) * 2 + layer)
        drawn = torch.rand(self.batch, features, generator=generator, device=like.device)
        first = 0 if rows == self.batch else self.first_row  # the hybrid's ranks have the whole batch here
        return (drawn[first : first + rows, own] < keep).to(like.dtype) / keep


class Net(nn.Module, ABC):
    """(n, 3, input, input) pictures, grey levels with the mean subtracted -> (n, classes) logits.

    With one of two columns, every layer has that column's half of the outputs (first dimension); as a rank of the hybrid, the
    fully connected layers have this rank's part, and its n pictures give the logits of all ranks' pictures. `state_dict` names
    are the same: each layer's .weight then .bias. The initial weights of a part are cut from those of the whole net with the
    same seed. `ways` says how it computes all this, and may be changed at any time.
    """

    def __init__(self, num_classes: int, design: NetDesign, columns: Columns | Hybrid | None = None, seed: int = 0) -> None:
        super().__init__()
        self.ways = Ways()
        self.design, self.columns, self.num_classes = design, columns or Columns(), num_classes
        self.groups = 1 if self.design.columns == 1 else self.columns.held  # columns side by side here
        for layer, shape in self.design.shapes(num_classes).items():
            setattr(self, layer, self._layer(layer, shape))
        self.look: Callable[[str, torch.Tensor], None] | None = None  # shown each layer's outputs after ReLU
        self.initialise(seed)

    def _layer(self, layer: str, shape: tuple[int, ...]) -> nn.Module:
        """This rank's part of a layer; shape: of the whole layer's weights. One that reads its own column alone is grouped."""
        rows = self.columns.rows(layer, shape[0])
        outputs, groups = rows.stop - rows.start, 1 if self.design.reads_all(layer) else self.groups
        if len(shape) == 2:
            return skip_init(nn.Linear, shape[1], outputs)
        stride = self.design.stride(layer)
        padding = shape[2] // 2 if stride == 1 else 0
        return nn.Conv2d(shape[1] * groups, outputs, shape[2], stride=stride, padding=padding, groups=groups)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Normal weights and constant biases by the design, drawn for the whole net and cut to this rank's part."""
        generator = torch.Generator().manual_seed(seed)
        for layer, shape in self.design.shapes(self.num_classes).items():
            (spread, bias), module = self.design.initial(layer, self.num_classes), getattr(self, layer)
            whole = torch.empty(shape).normal_(0.0, spread, generator=generator)
            module.weight.copy_(whole[self.columns.rows(layer, shape[0])])
            module.bias.fill_(bias)

    @property
    def first(self) -> nn.Conv2d:
        """The layer that reads the pictures."""
        layer: nn.Conv2d = getattr(self, self.design.layers()[0])
        return layer

    def forward(self, images: torch.Tensor, masks: Masks | None = None) -> torch.Tensor:
        """masks: this step's dropout in training; without it torch's own random state is used, which one device may."""
        with self.computing(images.device):
            return self._layers(images, masks)

    def computing(self, device: torch.device) -> torch.autocast | nullcontext[None]:
        """Under it layers compute in the type that `ways` says."""
        return torch.autocast(device.type, torch.bfloat16) if self.ways.half else nullcontext()

    @abstractmethod
    def _layers(self, images: torch.Tensor, masks: Masks | None) -> torch.Tensor:
        """What forward gives."""

    def _fire(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        """ReLU; whoever looks at the net is shown what comes out."""
        x = F.relu(x) if self.design.activation == "relu" else torch.tanh(x)
        if self.look is not None:
            self.look(layer, x)
        return x

    def _drop(self, layer: str, x: torch.Tensor, masks: Masks | None) -> torch.Tensor:
        """Dropout on the outputs of fc6 and fc7; kept outputs are scaled up now instead of all scaled down in testing."""
        if not self.training or self.design.dropout == 0:
            return x
        if masks is None:
            assert self.columns.alone, "ranks that share a net need masks, or they would drop different outputs"
            return F.dropout(x, self.design.dropout)
        place = DROPPED.index(layer)
        total = self.design.hidden[place]
        return x * masks.mask(place, total, len(x), self.columns.rows(layer, total), 1 - self.design.dropout, x)


AnyNet = TypeVar("AnyNet", bound=Net)


def whole_state(net: Net) -> dict[str, torch.Tensor]:
    """The whole net's parameters by canonical name, gathered from the ranks that share it, on the CPU. All of them must call it."""
    return {name: gather_parameter(net, name, value.detach()) for name, value in net.named_parameters()}


def whole_net(net: AnyNet) -> AnyNet:
    """The net that these ranks share, whole and on this rank's device. All of them must call it."""
    like = next(net.parameters())
    whole = type(net)(net.num_classes, net.design).to(like.device, like.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    whole.load_state_dict(whole_state(net))
    whole.ways = net.ways
    return whole


def gather_parameter(net: Net, name: str, mine: torch.Tensor) -> torch.Tensor:
    """A parameter, or anything of its shape, of the whole net from the parts of the ranks that share it, on the CPU."""
    layer = name.split(".")[0]
    return net.columns.gather_rows(layer, mine, net.design.shapes(net.num_classes)[layer][0]).cpu()


def own_part(net: Net, name: str, whole: torch.Tensor) -> torch.Tensor:
    """The part of a whole parameter, or of anything of its shape, that this rank holds."""
    return whole[net.columns.rows(name.split(".")[0], len(whole))]


def placements(net: Net, name: str) -> list[Placement]:
    """How a parameter lies on Layout.mesh: (data, column) where columns are split, (data,) in the hybrid, none where nothing is split."""
    if isinstance(net.columns, Hybrid):
        return [Shard(0) if is_split(name) else Replicate()]
    return [] if net.columns.alone else [Replicate(), Shard(0)]
