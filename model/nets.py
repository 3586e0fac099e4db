"""The kinds of nets."""

from __future__ import annotations

from model.alexnet import AlexNet
from model.columns import Columns
from model.design import Design
from model.hybrid import Hybrid
from model.net import Net
from model.vgg import Vgg
from model.vgg_design import VggDesign


def make_net(num_classes: int, design: Design | VggDesign, columns: Columns | Hybrid | None = None, seed: int = 0) -> Net:
    """The net of a design, with its initial weights."""
    if isinstance(design, VggDesign):
        return Vgg(num_classes, design, columns, seed)
    return AlexNet(num_classes, design, columns, seed)
