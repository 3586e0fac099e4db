"""Other forms of a convolution give the same outputs and gradients."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F

from model.alexnet import AlexNet
from model.convolve import Form, blocks_weight, choose, to_blocks, two_columns
from model.design import Design
from model.ways import Ways

TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("biased", [True, False])
def test_two_columns(form: Form, biased: bool) -> None:
    x, weight, bias = drawn(2, 6, 7, 5), drawn(8, 3, 3, 3, seed=1), drawn(8, seed=2) if biased else None
    found, grouped = two_columns(x, weight, bias, 1, form), F.conv2d(x, weight, bias, padding=1, groups=2)
    torch.testing.assert_close(found, grouped, **TIGHT)
    given, asked = [x, weight, *([bias] if bias is not None else [])], drawn(*grouped.shape, seed=3).detach()
    for one, other in zip(torch.autograd.grad(found, given, asked), torch.autograd.grad(grouped, given, asked), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.parametrize(("side", "padding"), [(227, (0, 0)), (224, (2, 2)), (224, (0, 3)), (63, (0, 0)), (66, (1, 0)), (65, (0, 2)), (64, (10, 10))])
def test_conv1_on_blocks_of_pixels(side: int, padding: tuple[int, int]) -> None:
    images, weight, (before, after) = drawn(2, 3, side, side), drawn(4, 3, 11, 11, seed=1), padding
    found = F.conv2d(to_blocks(images, padding), blocks_weight(weight))
    plain = F.conv2d(F.pad(images, (before, after, before, after)), weight, stride=4)
    torch.testing.assert_close(found, plain, **TIGHT)
    asked = drawn(*plain.shape, seed=2).detach()
    for one, other in zip(*(torch.autograd.grad(out, (images, weight), asked) for out in (found, plain)), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


def test_the_net_takes_pictures_and_their_blocks_in_any_form() -> None:
    design = Design(maps=(8, 12, 12, 12, 8), hidden=(16, 16), input=67, conv1_padding=(1, 2), init_std=(0.05,) * 8)
    net = AlexNet(5, design).double().eval()
    images = 50 * drawn(2, 3, 67, 67).detach()
    plain = net(images)
    for form in get_args(Form):
        net.ways = Ways(blocks=True, forms=dict.fromkeys(("conv2", "conv4", "conv5"), form))
        torch.testing.assert_close(net(images), plain, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(net(to_blocks(images, design.conv1_padding)), plain, rtol=1e-10, atol=1e-10)


def test_a_form_is_chosen_for_each_layer_of_two_columns() -> None:
    shapes = Design(maps=(4, 4, 4, 4, 4), hidden=(8, 8), input=67).two_column_shapes(2)
    assert {layer: (x[1], weight[1]) for layer, (x, weight, _) in shapes.items()} == dict.fromkeys(("conv2", "conv4", "conv5"), (4, 2))
    chosen = choose(shapes, torch.zeros(()))
    assert list(chosen) == ["conv2", "conv4", "conv5"]
    assert set(chosen.values()) <= set(get_args(Form))
