from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.alexnet import AlexNet
from model.design import LAYERS, Design, Lrn
from model.net import MaskDraw

TINY = Design(maps=(4, 8, 12, 12, 8), hidden=(16, 12), input=67)

# The paper's table: section 3.5 and figure 2.
PARAMETERS = {
    "conv1": 34_944,
    "conv2": 307_456,
    "conv3": 885_120,
    "conv4": 663_936,
    "conv5": 442_624,
    "fc6": 37_752_832,
    "fc7": 16_781_312,
    "fc8": 4_097_000,
}


def test_alexnet_and_nothing_else_is_the_papers_net() -> None:
    net = AlexNet()
    state = net.state_dict()
    assert list(state) == [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    assert Design().parameters(1000) == PARAMETERS
    for layer, count in PARAMETERS.items():
        assert state[f"{layer}.weight"].numel() + state[f"{layer}.bias"].numel() == count
        assert tuple(state[f"{layer}.weight"].shape) == Design().shapes(1000)[layer]
    assert sum(p.numel() for p in net.parameters()) == 60_965_224
    assert Design().sides() == (55, 27, 13, 6)
    assert sum(Design().multiply_adds(1000).values()) == 724_406_816


def test_initialised_as_the_paper_says() -> None:
    state = AlexNet(num_classes=10, seed=1).state_dict()
    for layer, bias in zip(LAYERS, (0, 1, 0, 1, 1, 1, 1, 0), strict=True):
        assert (state[f"{layer}.bias"] == bias).all()
        weight = state[f"{layer}.weight"]
        assert abs(weight.std().item() / 0.01 - 1) < 0.02
        assert abs(weight.mean().item()) < 4 * 0.01 / weight.numel() ** 0.5
    again = AlexNet(num_classes=10, seed=1).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_sizes_of_224_with_padding_are_the_same() -> None:
    for padding in ((2, 2), (0, 3)):
        assert Design(input=224, conv1_padding=padding).sides() == (55, 27, 13, 6)
    out = AlexNet(10, Design(maps=(4, 8, 12, 12, 8), hidden=(16, 12), input=224, conv1_padding=(0, 3)))(torch.zeros(1, 3, 224, 224))
    assert out.shape == (1, 10)


def plain_forward(net: AlexNet, x: torch.Tensor) -> torch.Tensor:
    """The net written out with PyTorch's own functions, for tests."""
    p = dict(net.named_parameters())
    d = net.design
    s = d.lrn
    assert s is not None

    def normalised(x: torch.Tensor) -> torch.Tensor:
        halves = x.chunk(2, dim=1)  # PyTorch divides alpha by n and knows no columns
        alpha = s.alpha * (1 if s.divide_by_n else s.n)
        return torch.cat([F.local_response_norm(half, s.n, alpha, s.beta, s.k) for half in halves], dim=1)

    x = F.conv2d(F.pad(x, (d.conv1_padding[0], d.conv1_padding[1]) * 2), p["conv1.weight"], p["conv1.bias"], stride=4)
    if "conv1" in d.relu_after_pool:
        x = F.relu(F.max_pool2d(normalised(x), 3, 2))
    else:
        x = F.max_pool2d(normalised(F.relu(x)), 3, 2)
    x = normalised(F.relu(F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=2, groups=2)))
    if d.within_map_norm:
        windows = F.unfold((x * x).reshape(-1, 1, *x.shape[2:]), 5, padding=2).sum(dim=1).reshape(x.shape)
        x = x / (1 + 0.001 / 25 * windows) ** 0.75
    x = F.max_pool2d(x, 3, 2)
    x = F.relu(F.conv2d(x, p["conv3.weight"], p["conv3.bias"], padding=1))
    x = F.relu(F.conv2d(x, p["conv4.weight"], p["conv4.bias"], padding=1, groups=2))
    x = F.max_pool2d(F.relu(F.conv2d(x, p["conv5.weight"], p["conv5.bias"], padding=1, groups=2)), 3, 2).flatten(1)
    x = F.relu(F.linear(x, p["fc6.weight"], p["fc6.bias"]))
    x = F.relu(F.linear(x, p["fc7.weight"], p["fc7.bias"]))
    return F.linear(x, p["fc8.weight"], p["fc8.bias"])


STRONG: dict[str, Any] = {"init_std": (0.05, *(0.1,) * 7), "lrn": Lrn(alpha=0.05)}  # so that every operation shows in the logits
DESIGNS = {
    "paper": TINY.model_copy(update=STRONG),
    "program": TINY.model_copy(
        update={
            **STRONG,
            "lrn": Lrn(alpha=0.05, divide_by_n=True),
            "relu_after_pool": ("conv1", "conv5"),
            "within_map_norm": True,
            "input": 64,
            "conv1_padding": (0, 3),
        }
    ),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_forward_and_gradients_equal_the_net_written_out(name: str) -> None:
    design = DESIGNS[name]
    net = AlexNet(5, design, seed=2).double().eval()
    x = torch.randn(3, 3, design.input, design.input, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    labels = torch.tensor([0, 3, 4])
    found = torch.autograd.grad(F.cross_entropy(net(x), labels), list(net.parameters()))
    wanted = torch.autograd.grad(F.cross_entropy(plain_forward(net, x), labels), list(net.parameters()))
    torch.testing.assert_close(net(x), plain_forward(net, x), rtol=1e-12, atol=1e-12)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("change", [{"relu_after_pool": ("conv1",)}, {"within_map_norm": True}, {"lrn": Lrn(alpha=0.05, divide_by_n=True)}])
def test_each_of_the_programs_differences_shows(change: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 67, 67, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    paper, other = (AlexNet(5, DESIGNS["paper"].model_copy(update=u), seed=2).double().eval()(x) for u in ({}, change))
    assert not torch.allclose(paper, other, rtol=1e-6)


def test_dropout_masks_are_a_function_of_seed_and_step() -> None:
    net = AlexNet(5, TINY).train()
    x = torch.randn(6, 3, 67, 67, generator=torch.Generator().manual_seed(0))
    whole = net(x, MaskDraw(1, 5, batch=6))
    assert torch.equal(whole, net(x, MaskDraw(1, 5, batch=6)))
    assert not torch.equal(whole, net(x, MaskDraw(1, 6, batch=6)))
    assert not torch.equal(whole, net(x, MaskDraw(2, 5, batch=6)))
    parts = [net(x[rows], MaskDraw(1, 5, batch=6, first_row=rows.start)) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_masks_keep_half_and_keep_the_mean() -> None:
    mask = MaskDraw(0, 0, batch=200).mask(0, 1000, 200, slice(0, 1000), 0.5, torch.zeros(1))
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert abs(mask.mean().item() - 1) < 0.01
    second = MaskDraw(0, 0, batch=200).mask(1, 1000, 200, slice(0, 1000), 0.5, torch.zeros(1))
    assert abs(((mask > 0) == (second > 0)).float().mean().item() - 0.5) < 0.01  # the two layers drop independently


def test_evaluation_neither_drops_nor_scales() -> None:
    net = AlexNet(5, TINY).eval()
    x = torch.randn(2, 3, 67, 67)
    assert torch.equal(net(x), net(x, MaskDraw(1, 1, batch=2)))
