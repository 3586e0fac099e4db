"""The 2012 AlexNet, also as one of its two columns, or as a rank's part in the hybrid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from model.columns import Columns
from model.convolve import blocks_weight, to_blocks, two_columns
from model.design import Design
from model.hybrid import Hybrid
from model.lrn import lrn, within_map_norm
from model.lrn_pool import relu_lrn_pool
from model.net import Masks, Net


class AlexNet(Net):
    """See Net; pictures may come as convolve.to_blocks. `AlexNet(num_classes)` is the paper's net (sections 3 and 5) on one device."""

    design: Design
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    conv4: nn.Conv2d
    conv5: nn.Conv2d
    conv6: nn.Conv2d
    fc6: nn.Linear
    fc7: nn.Linear
    fc8: nn.Linear

    def __init__(self, num_classes: int = 1000, design: Design | None = None, columns: Columns | Hybrid | None = None, seed: int = 0) -> None:
        super().__init__(num_classes, design or Design(), columns, seed)

    def _layers(self, images: torch.Tensor, masks: Masks | None) -> torch.Tensor:
        design = self.design
        x = self._normalised_pool("conv1", self._conv1(images))
        x = self._normalised_pool("conv2", self._read("conv2", x))
        for layer in ("conv3", "conv4", "conv5"):
            if layer not in design.without:
                x = self._read(layer, x)
                x = x if layer in design.relu_after_pool else self._fire(layer, x)
        x = F.max_pool2d(x, design.pool, 2)
        x = self._fire("conv5", x) if "conv5" in design.relu_after_pool else x
        x = self._fire("conv6", self._read("conv6", x)) if design.conv6 else x
        x = x.flatten(1)
        for layer in ("fc6", "fc7"):
            if layer not in design.without:
                x = self._drop(layer, self._fire(layer, self._read(layer, x)), masks)
        return self.columns.gather_logits(self._read("fc8", x), self.num_classes)

    def _read(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        """A layer's outputs on this rank from this rank's outputs of the one before, exchanged where it reads both columns."""
        module = getattr(self, layer)
        if self.design.reads_all(layer):
            return self.columns.read(layer, module, x)
        form = self.ways.forms.get(layer, "grouped")
        if self.groups == 1 or (isinstance(module, nn.Conv2d) and form == "grouped"):
            out: torch.Tensor = module(x)
            return out
        return two_columns(x, module.weight, module.bias, None if isinstance(module, nn.Linear) else module.weight.shape[-1] // 2, form)

    def _conv1(self, images: torch.Tensor) -> torch.Tensor:
        padding, conv1 = self.design.conv1_padding, self.conv1
        if images.shape[1] == 3 and self.ways.blocks:
            images = to_blocks(images, padding)
        if images.shape[1] != 3:
            return F.conv2d(images, blocks_weight(conv1.weight), conv1.bias)
        before, after = padding
        out: torch.Tensor = conv1(F.pad(images, (before, after, before, after)) if before or after else images)
        return out

    def _normalised_pool(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        """ReLU, LRN, max-pool; the 2012 program has conv1's ReLU last, and a second normalisation in conv2."""
        design, late = self.design, layer in self.design.relu_after_pool
        twice = layer == "conv2" and design.within_map_norm
        settings: dict[str, Any] = {"columns": self.groups, **(design.lrn.printed() if design.lrn else {})}
        if self.ways.fused and design.lrn and design.pool == 3 and not twice:
            relu = not late and design.activation == "relu"
            if not late and (not relu or self.look is not None):
                fired = self._fire(layer, x)
                x = x if relu else fired
            x = relu_lrn_pool(x, relu=relu, **settings)
        else:
            x = x if late else self._fire(layer, x)
            x = lrn(x, **settings) if design.lrn else x
            x = F.max_pool2d(within_map_norm(x) if twice else x, design.pool, 2)
        return self._fire(layer, x) if late else x
