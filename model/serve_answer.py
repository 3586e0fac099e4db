"""One picture -> what the page shows of it: labels, neighbours, the first layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from model.kernels import as_png, kernel_sheet
from model.net import Net
from model.retrieve_features import LAYERS
from model.serve_neighbours import Neighbours
from model.serve_pictures import map_sheet, picture_address
from model.serve_upload import square_of
from pipeline import Augmentation, views_of

Views = Literal["centre", "ten"]
BEST = 5
CENTRE = {"centre": 0, "ten": 4}  # place of the centre view


@dataclass(frozen=True)
class Seen:
    """What a net makes of a picture. probabilities: (classes,), the mean over its views; of the centre view: maps, the first layer's
    outputs after ReLU, (maps, h, w), and features, those of fc6 and fc7, (units,), where there are some. All float32 on the CPU."""

    probabilities: np.ndarray
    maps: np.ndarray
    features: dict[str, np.ndarray]


@torch.no_grad()
def see(net: Net, views: np.ndarray, centre: int) -> Seen:
    """views: (n, 3, s, s) float32, of one picture; centre: which of them is the centre view. Not from two threads at a time."""
    first = net.design.layers()[0]
    images = torch.from_numpy(views).to(net.first.weight.device).contiguous(memory_format=torch.channels_last)
    shown: dict[str, np.ndarray] = {}

    def look(layer: str, out: torch.Tensor) -> None:
        if layer in (first, *LAYERS):
            shown[layer] = out[centre].float().cpu().numpy()

    net.look = look
    try:
        probabilities = net(images).float().softmax(dim=1).mean(dim=0)
    finally:
        net.look = None
    return Seen(probabilities.cpu().numpy(), shown.pop(first), shown)


@dataclass(frozen=True)
class Answerer:
    """A net that is asked about one picture at a time.

    names: of the classes; mean: see pipeline's mean_image; augmentation: of the net's training.
    """

    net: Net
    names: list[str]
    mean: np.ndarray
    augmentation: Augmentation
    neighbours: Neighbours | None = None

    @property
    def kernels(self) -> str:
        """Address of a picture of the first layer's kernels."""
        return picture_address(as_png(kernel_sheet(self.net.first.weight, self.net.groups)), "png")

    def answer(self, content: bytes, views: Views) -> dict[str, Any]:
        """What the page is sent of an uploaded file. Raises Refused."""
        square = square_of(content, len(self.mean))
        seen = see(self.net, views_of(square, self.mean, self.augmentation, views), CENTRE[views])
        known = self.neighbours
        columns = np.array_split(seen.maps, self.net.groups)
        return {
            "picture": picture_address(as_png(square), "png"),
            "best": self._best(seen.probabilities),
            "neighbours": known.nearest(seen.features[known.layer]) if known is not None else [],
            "maps": [picture_address(as_png(map_sheet(maps)), "png") for maps in columns],
        }

    def _best(self, probabilities: np.ndarray) -> list[dict[str, Any]]:
        order = np.argsort(-probabilities, kind="stable")[:BEST]
        return [{"name": self.names[i], "probability": float(probabilities[i])} for i in order]
