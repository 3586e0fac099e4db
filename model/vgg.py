"""The VGG nets: on one device, data-parallel, or with their fully connected layers split over the ranks of the hybrid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from model.columns import Columns
from model.hybrid import Hybrid
from model.lrn import lrn
from model.net import Masks, Net
from model.vgg_design import CONNECTED, VggDesign


class Vgg(Net):
    """See Net; every layer reads all of the one before it (arXiv 1409.1556, section 2)."""

    design: VggDesign
    fc6: nn.Linear
    fc7: nn.Linear
    fc8: nn.Linear

    def __init__(self, num_classes: int, design: VggDesign, columns: Columns | Hybrid | None = None, seed: int = 0) -> None:
        super().__init__(num_classes, design, columns, seed)

    def _layers(self, images: torch.Tensor, masks: Masks | None) -> torch.Tensor:
        x = self._maps(images).flatten(1)
        for layer in CONNECTED[:-1]:
            x = self._drop(layer, self._fire(layer, self.columns.read(layer, getattr(self, layer), x)), masks)
        return self.columns.gather_logits(self.columns.read("fc8", self.fc8, x), self.num_classes)

    def _maps(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, maps, h // 32, w // 32): what is left after the last pooling."""
        x = images
        for stage in self.design.stages():
            for layer in stage:
                x = self._fire(layer, getattr(self, layer)(x))
                if layer == "conv1_1" and self.design.vgg == "A-LRN":
                    x = self._normalised(x)
            x = F.max_pool2d(x, 2, 2)
        return x

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        settings: dict[str, Any] = self.design.lrn.printed()
        return lrn(x, columns=1, **settings)

    def score_map(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) whole pictures, sides of `input` at least -> (n, classes, h', w') scores: the fully connected layers slide over
        the last maps as convolutions (section 3.2). Of a picture of `input` x `input` they are the one position of forward's logits.
        """
        assert self.columns.alone, "a rank's part of the net gives a part of the scores"
        with self.computing(images.device):
            x, side = self._maps(images), self.design.last_side()
            for layer in CONNECTED:
                linear: nn.Linear = getattr(self, layer)
                x = F.conv2d(x, linear.weight.unflatten(1, (-1, side, side)), linear.bias)
                x, side = (x if layer == "fc8" else self._fire(layer, x)), 1
            return x
