"""Whole pictures shown to a net that takes them at any size: densely, by a grid of crops, and both (arXiv 1409.1556, sections 3.2 and 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, runtime_checkable

import torch

from pipeline import InputError

Views = Literal["dense", "50", "both"]
GRID = 5  # crops along each side
MOST = 1 << 20  # pixels that a net is shown at once: two layers of 64 maps of them take 0.5 GB in float32


class Sized(Protocol):
    """input: side of the pictures that forward takes."""

    @property
    def input(self) -> int: ...


@runtime_checkable
class Dense(Protocol):
    """A net whose fully connected layers can slide over a picture."""

    @property
    def design(self) -> Sized: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, input, input) -> (n, classes) logits."""

    def score_map(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w), sides of `input` at least -> (n, classes, h', w') logits."""


@torch.no_grad()
def probabilities(net: Dense, pictures: list[list[torch.Tensor]], views: Views, most: int = MOST) -> torch.Tensor:
    """(n, classes) float32, averaged over scales, mirror images and, for "both", over the dense way and that of crops.

    pictures: for each scale n of them, one at least, (3, h, w) float32 on the net's device. most: pixels shown to the net at once, so
    that memory stays bounded; a picture of more is shown alone. Raises InputError for a picture smaller than the net's input.
    """
    ways = {"dense": (_dense,), "50": (_crops,), "both": (_dense, _crops)}[views]
    for of_scale in pictures:
        check_side(net, min(min(picture.shape[1:]) for picture in of_scale))
    return torch.stack([way(net, of_scale, most) for way in ways for of_scale in pictures]).mean(dim=0)


def check_side(net: Dense, side: int) -> None:
    """Raises InputError for pictures with a shorter side of so many pixels."""
    least = net.design.input
    if side < least:
        raise InputError(f"pictures with a shorter side of {side} pixels are smaller than the net's input of {least}; use --scales from {least} on")


def _dense(net: Dense, pictures: list[torch.Tensor], most: int) -> torch.Tensor:
    """The scores of all positions averaged, then softmax (section 3.2)."""
    found: dict[int, torch.Tensor] = {}
    for places in _alike(pictures, most):
        images = torch.stack([pictures[place] for place in places])
        shown = _softmax(lambda part: net.score_map(part).float().mean(dim=(2, 3)), torch.cat((images, images.flip(3))), most)
        found.update(zip(places, shown.unflatten(0, (2, -1)).mean(dim=0), strict=True))
    return torch.stack([found[place] for place in range(len(pictures))])


def _alike(pictures: list[torch.Tensor], most: int) -> Iterator[list[int]]:
    """Places of pictures of one shape, as many at a time as have `most` pixels with their mirror images."""
    by_shape = defaultdict[torch.Size, list[int]](list)
    for place, picture in enumerate(pictures):
        by_shape[picture.shape].append(place)
    for (_, height, width), places in by_shape.items():
        step = max(1, most // (2 * height * width))
        yield from (places[start : start + step] for start in range(0, len(places), step))


def _crops(net: Dense, pictures: list[torch.Tensor], most: int) -> torch.Tensor:
    """The softmax of 50 crops averaged (section 4.2): each picture's, or of as many pictures together as have `most` pixels."""
    side, step = net.design.input, max(1, most // (2 * GRID**2 * net.design.input**2))
    found = []
    for start in range(0, len(pictures), step):
        crops = torch.cat([crop_grid(picture, side) for picture in pictures[start : start + step]])
        found.append(_softmax(net, crops, most).unflatten(0, (-1, 2 * GRID**2)).mean(dim=1))
    return torch.cat(found)


def crop_grid(picture: torch.Tensor, side: int) -> torch.Tensor:
    """(3, h, w) -> (50, 3, side, side): windows on a regular 5 x 5 grid from corner to corner, row by row, then their mirror images."""
    rows, columns = (_offsets(length, side) for length in picture.shape[1:])
    crops = torch.stack([picture[:, y : y + side, x : x + side] for y in rows for x in columns])
    return torch.cat((crops, crops.flip(3)))


def _offsets(length: int, side: int) -> list[int]:
    """First pixels of GRID windows evenly over a length, rounded; the first begins at its beginning, the last ends at its end."""
    parts = GRID - 1
    return [(2 * k * (length - side) + parts) // (2 * parts) for k in range(GRID)]


def _softmax(run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, most: int) -> torch.Tensor:
    """(n, classes) float32 probabilities of images, (n, 3, h, w), of which as many are run at a time as have `most` pixels."""
    parts = images.split(max(1, most // (images.shape[2] * images.shape[3])))
    return torch.cat([run(part.contiguous(memory_format=torch.channels_last)).float().softmax(dim=1) for part in parts])
