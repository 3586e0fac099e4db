"""Whole pictures through nets that take any size: against windows cut one by one, whatever is shown at once."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model.dense import GRID, Dense, Views, crop_grid, probabilities
from model.vgg import Vgg
from model.vgg_design import VggDesign
from pipeline import InputError

SIDE = 12  # of the small net's input


class Unpadded(nn.Module):
    """Without padding, and with one pooling of stride 2, its score map of a picture is that of windows 2 pixels apart."""

    def __init__(self) -> None:
        super().__init__()
        self.design = SimpleNamespace(input=SIDE)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.fc, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6 * 5 * 5, 8), nn.Linear(8, 5)
        self.most = 0  # pixels shown at once

    def _maps(self, images: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, images[:, 0].numel())
        return torch.max_pool2d(self.conv(images).relu(), 2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.fc(self._maps(images).flatten(1)).relu())
        return found

    def score_map(self, images: torch.Tensor) -> torch.Tensor:
        fc = torch.conv2d(self._maps(images), self.fc.weight.unflatten(1, (6, 5, 5)), self.fc.bias).relu()
        return torch.conv2d(fc, self.last.weight[:, :, None, None], self.last.bias)


def drawn(*sizes: tuple[int, int], seed: int = 1) -> list[torch.Tensor]:
    """(3, h, w) grey levels less a mean."""
    generator = torch.Generator().manual_seed(seed)
    return [100 * torch.rand(3, *size, generator=generator) - 50 for size in sizes]


def vgg() -> Vgg:
    design = VggDesign(vgg="A", maps=(4, 6, 8, 8, 8), hidden=(12, 10), input=64, init="glorot")
    return Vgg(7, design, seed=3).eval()


MIXED = drawn((12, 12), (12, 31), (16, 16), (12, 31), (45, 13), (12, 12), (12, 31))


def sliding(net: nn.Module, picture: torch.Tensor) -> torch.Tensor:
    """Dense evaluation by hand: logits of every window 2 pixels apart, averaged."""
    _, height, width = picture.shape
    places = [(y, x) for y in range(0, height - SIDE + 1, 2) for x in range(0, width - SIDE + 1, 2)]
    logits = torch.cat([net(picture[None, :, y : y + SIDE, x : x + SIDE]) for y, x in places])
    return logits.mean(dim=0).softmax(dim=0)


@torch.no_grad()
def test_dense_is_the_average_over_all_windows() -> None:
    net, pictures = Unpadded(), MIXED
    assert isinstance(net, Dense)
    by_hand = [(sliding(net, picture) + sliding(net, picture.flip(2))) / 2 for picture in pictures]
    found = probabilities(net, [pictures], "dense")
    torch.testing.assert_close(found, torch.stack(by_hand), atol=1e-6, rtol=1e-4)
    assert found.std(dim=0).max() > 0.1  # the pictures differ in what is made of them


@torch.no_grad()
@pytest.mark.parametrize("views", ["dense", "50", "both"])
def test_a_picture_of_the_input_is_the_net_and_its_mirror_image(views: Views) -> None:
    """Dense evaluation equals cropped evaluation there, with padding too, and all 25 crops are the same."""
    for net, side in ((Unpadded(), SIDE), (vgg(), 64)):
        pictures = drawn((side, side), (side, side))
        both = torch.stack([net(torch.stack((picture, picture.flip(2)))).softmax(dim=1).mean(dim=0) for picture in pictures])
        torch.testing.assert_close(probabilities(net, [pictures], views), both, atol=1e-6, rtol=1e-4)


def test_the_grid_of_crops() -> None:
    """From corner to corner, evenly to half a pixel, rows first, then mirrored."""
    height, width, side = 31, 12, 12
    where = torch.arange(3 * height * width).view(3, height, width)
    crops = crop_grid(where, side)
    assert crops.shape == (50, 3, side, side)
    first = crops[:25, 0, 0, 0].view(GRID, GRID)  # y * width + x
    assert first[:, 0].div(width, rounding_mode="floor").tolist() == [0, 5, 10, 14, 19]
    assert (first == first[:, :1]).all()  # no room sideways
    assert torch.equal(crops[24], where[:, -side:, -side:])
    assert torch.equal(crops[25:], crops[:25].flip(3))
    across = crop_grid(torch.arange(32)[None, None].expand(3, 12, 32), side)[:GRID, 0, 0, 0].tolist()
    assert across == [0, 5, 10, 15, 20]
    assert {b - a for a, b in pairwise(across)} == {5}


@torch.no_grad()
def test_fifty_crops_are_averaged() -> None:
    net, pictures = Unpadded(), MIXED
    by_hand = [torch.cat([net(crop[None]) for crop in crop_grid(picture, SIDE)]).softmax(dim=1).mean(dim=0) for picture in pictures]
    torch.testing.assert_close(probabilities(net, [pictures], "50"), torch.stack(by_hand), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("views", ["dense", "50", "both"])
@pytest.mark.parametrize("most", [1, 500, 1500, 8000])
def test_never_more_pixels_at_once_than_allowed(views: Views, most: int) -> None:
    """But for a picture, or a crop, that has more by itself."""
    net, apart = Unpadded(), Unpadded()
    wanted = torch.cat([probabilities(apart, [[picture]], views) for picture in MIXED])
    torch.testing.assert_close(probabilities(net, [MIXED], views, most), wanted, atol=1e-6, rtol=1e-4)
    largest = SIDE * SIDE if views == "50" else max(picture[0].numel() for picture in MIXED)
    assert net.most <= max(most, largest)
    if most == 8000:
        assert net.most > largest  # several together


def test_scales_and_ways_are_averaged() -> None:
    net, scales = Unpadded(), [MIXED, drawn(*[(20, 14)] * len(MIXED), seed=2), drawn(*[(25, 25)] * len(MIXED), seed=3)]
    each = {views: [probabilities(net, [scale], views) for scale in scales] for views in ("dense", "50")}
    for views, found in each.items():
        torch.testing.assert_close(probabilities(net, scales, views), torch.stack(found).mean(dim=0))  # type: ignore[arg-type]
    together = torch.stack([*each["dense"], *each["50"]]).mean(dim=0)
    torch.testing.assert_close(probabilities(net, scales, "both"), together)
    torch.testing.assert_close(together.sum(dim=1), torch.ones(len(MIXED)))


@torch.no_grad()
def test_vgg_on_pictures_of_any_shape() -> None:
    """Its padding makes the edge of a window another than the middle of a picture, so by hand it is its own score map that is averaged."""
    net, pictures = vgg(), drawn((64, 64), (64, 131), (97, 64), (64, 131))
    found = probabilities(net, [pictures], "dense")
    for picture, row in zip(pictures, found, strict=True):
        scores = [net.score_map(image[None])[0] for image in (picture, picture.flip(2))]
        assert scores[0].shape[1:] == tuple(side // 32 - 1 for side in picture.shape[1:])
        by_hand = torch.stack([score.mean(dim=(1, 2)).softmax(dim=0) for score in scores]).mean(dim=0)
        torch.testing.assert_close(row, by_hand, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("views", ["dense", "50", "both"])
def test_a_picture_smaller_than_the_input_is_refused(views: Views) -> None:
    with pytest.raises(InputError, match="shorter side of 11 pixels are smaller than the net's input of 12; use --scales from 12 on"):
        probabilities(Unpadded(), [MIXED, drawn((12, 12), (50, 11))], views)
