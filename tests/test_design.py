"""Nets with a part of the paper's taken away, or read otherwise: shapes, one device, two columns on two, ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import on_ranks
from pydantic import ValidationError
from torch import nn
from training import train

from model.alexnet import AlexNet
from model.columns import Columns
from model.design import Design, Lrn
from model.formats import dense_columns
from model.net import MaskDraw, gather_parameter, whole_state
from model.onnx_graph import to_onnx
from model.step import loss_of
from model.traffic import traffic

SMALL: dict[str, Any] = {"maps": (4, 8, 12, 8, 8), "hidden": (16, 12), "input": 67, "init_std": (0.02, *(0.1,) * 7), "lrn": Lrn(alpha=0.01)}
EVERY = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
CHANGES: dict[str, dict[str, Any]] = {
    "no LRN": {"lrn": None},
    "pooling that does not overlap": {"pool": 2},
    "one column": {"columns": 1},
    "never": {"reads_both": ("fc8",)},
    "every layer": {"reads_both": EVERY},
    "tanh": {"activation": "tanh"},
    "tanh after pooling, no LRN": {"activation": "tanh", "relu_after_pool": ("conv1", "conv5"), "lrn": None},
    **{f"no {layer}": {"without": (layer,)} for layer in ("conv3", "conv4", "conv5", "fc6", "fc7")},
    "a sixth convolution": {"conv6": 6},
    "a sixth convolution, no conv5": {"conv6": 6, "without": ("conv5",)},
    "no fc6, no fc7, no conv5": {"without": ("fc6", "fc7", "conv5")},
}


def design_of(change: dict[str, Any]) -> Design:
    return Design(**{**SMALL, **change})


def images(n: int = 3) -> torch.Tensor:
    return 20 * torch.randn(n, 3, 67, 67, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def written_out(net: AlexNet, x: torch.Tensor) -> torch.Tensor:
    """The net by PyTorch's own functions, with every layer's weights as if it read both columns."""
    d, p = net.design, dict(net.named_parameters())

    def weight(layer: str) -> torch.Tensor:
        return p[f"{layer}.weight"] if d.reads_all(layer) else dense_columns(p[f"{layer}.weight"])

    def fire(x: torch.Tensor) -> torch.Tensor:
        return x.relu() if d.activation == "relu" else x.tanh()

    def normalised_pool(layer: str, x: torch.Tensor) -> torch.Tensor:
        late = layer in d.relu_after_pool
        x = x if late else fire(x)
        if d.lrn:
            parts = x.chunk(d.columns, 1)
            x = torch.cat([F.local_response_norm(part, d.lrn.n, d.lrn.alpha * d.lrn.n, d.lrn.beta, d.lrn.k) for part in parts], 1)
        x = F.max_pool2d(x, d.pool, 2)
        return fire(x) if late else x

    x = normalised_pool("conv1", F.conv2d(x, p["conv1.weight"], p["conv1.bias"], stride=4))
    x = normalised_pool("conv2", F.conv2d(x, weight("conv2"), p["conv2.bias"], padding=2))
    for layer in ("conv3", "conv4", "conv5"):
        x = x if layer in d.without else fire(F.conv2d(x, weight(layer), p[f"{layer}.bias"], padding=1))
    x = F.max_pool2d(x, d.pool, 2)
    x = fire(F.conv2d(x, p["conv6.weight"], p["conv6.bias"], padding=1)) if d.conv6 else x
    x = x.flatten(1)
    for layer in ("fc6", "fc7"):
        x = x if layer in d.without else fire(F.linear(x, weight(layer) if d.reads_all(layer) else blocks(p[f"{layer}.weight"]), p[f"{layer}.bias"]))
    return F.linear(x, p["fc8.weight"], p["fc8.bias"])


def blocks(weight: torch.Tensor) -> torch.Tensor:
    return torch.block_diag(*weight.chunk(2))


@pytest.mark.parametrize("name", CHANGES)
def test_the_net_is_the_one_written_out(name: str) -> None:
    net, x = AlexNet(5, design_of(CHANGES[name])).double().eval(), images()
    logits, plain = net(x), written_out(net, x)
    torch.testing.assert_close(logits, plain, rtol=1e-9, atol=1e-9)
    asked = torch.randn_like(plain)
    for one, other in zip(*(torch.autograd.grad(out, list(net.parameters()), asked) for out in (logits, plain)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    assert sum(p.numel() for p in net.parameters()) == sum(net.design.parameters(5).values())


@pytest.mark.parametrize("name", ["tanh", "no LRN", "pooling that does not overlap", "never", "one column"])
def test_the_fused_form_of_it_is_the_plain_one(name: str) -> None:
    single = AlexNet(5, design_of(CHANGES[name])).eval()
    torch.testing.assert_close(single(images().float()), single.double()(images()).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CHANGES)
def test_onnx(name: str) -> None:
    net = AlexNet(5, design_of(CHANGES[name])).eval()
    session = onnxruntime.InferenceSession(to_onnx(whole_state(net), net.design), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images().float().numpy()})
    np.testing.assert_allclose(logits, net(images().float()).detach().numpy(), rtol=1e-3, atol=1e-4)


def on_a_pair(rank: int) -> dict[str, Any]:
    found, group = {}, dist.group.WORLD
    assert group is not None
    for name, change in CHANGES.items():
        if change.get("columns") == 1:
            continue
        net = AlexNet(5, design_of(change), Columns(rank, group), seed=3).double()
        loss = loss_of(net, images(), torch.arange(3), MaskDraw(0, 0, 3))
        loss.backward()
        gradients = {n: gather_parameter(net, n, p.grad) for n, p in net.named_parameters() if p.grad is not None}
        found[name] = {"loss": loss.detach(), "gradients": gradients}
    return found


def test_two_columns_on_two_devices(tmp_path: Path) -> None:
    for found in on_ranks(on_a_pair, 2, tmp_path):
        assert len(found) == len(CHANGES) - 1
        for name, pair in found.items():
            net = AlexNet(5, design_of(CHANGES[name]), seed=3).double()
            loss = loss_of(net, images(), torch.arange(3), MaskDraw(0, 0, 3))
            loss.backward()
            torch.testing.assert_close(pair["loss"], loss.detach(), rtol=1e-9, atol=1e-9)
            for key, parameter in net.named_parameters():
                torch.testing.assert_close(pair["gradients"][key], parameter.grad, rtol=1e-7, atol=1e-9, msg=f"{name}: {key}")


def test_two_devices_hold_a_net_of_one_column_each(made_shards: Path, tmp_path: Path) -> None:
    """Two columns are what two devices get unasked."""
    one = ("--devices", 2, "--set", "model.columns=1", "--set", "model.hidden=[8, 8]")
    result = train(made_shards, tmp_path / "run", *one, epochs=1)
    assert result.returncode == 0, result.stderr
    assert "2 x cpu, the whole net on each device, 2 replicas" in result.stdout
    refused = train(made_shards, tmp_path / "refused", *one, "--columns", 2, epochs=1)
    assert refused.returncode == 2
    assert "this recipe's net has one column" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_columns_exchange() -> None:
    sent = {name: [row.layer for row in traffic(design_of(CHANGES[name]), 5, 4, 2, 1)] for name in ("never", "every layer", "no conv3", "no fc6")}
    assert sent == {
        "never": ["fc8", "logits"],
        "every layer": [*EVERY, "logits"],
        "no conv3": ["fc6", "fc7", "fc8", "logits"],
        "no fc6": ["conv3", "fc7", "fc8", "logits"],
    }


def test_columns_that_never_talk_know_nothing_of_each_other() -> None:
    net = AlexNet(5, design_of(CHANGES["never"])).double().eval()
    seen: dict[str, torch.Tensor] = {}
    net.look = lambda layer, out: seen.__setitem__(layer, out.detach().clone())
    net(images())
    before = seen["fc7"]
    with torch.no_grad():
        net.conv2.weight[4:].mul_(3)  # column 1's
    net(images())
    first, second = seen["fc7"].chunk(2, 1)
    assert torch.equal(first, before.chunk(2, 1)[0])
    assert not torch.equal(second, before.chunk(2, 1)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"without": ("conv1",)}, "without names layers of"),
        ({"reads_both": ("conv3",)}, "fc8 among them"),
        ({"reads_both": ("conv1", "fc8")}, "reads_both names layers of"),
        ({"lrn": None, "within_map_norm": True}, "within_map_norm comes after"),
        ({"pool": 4}, "2 or 3"),
    ],
)
def test_impossible_designs(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        design_of(change)


def test_the_papers_net_is_what_it_was() -> None:
    assert isinstance(AlexNet(10).fc6, nn.Linear)
    assert sum(Design().parameters(1000).values()) == 60_965_224
    assert Design().exchanged() == ("conv3", "fc6", "fc7", "fc8")
