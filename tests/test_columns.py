"""The two-rank net is the one-device net: forward, loss, every gradient, ten steps with dropout, in float64 on real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import on_ranks

from model.alexnet import AlexNet, MaskDraw, gather_parameter, own_part, whole_state
from model.columns import Columns
from model.design import Design, Lrn
from model.sgd import PaperSGD

DESIGN = Design(maps=(4, 8, 12, 12, 8), hidden=(16, 12), input=67, init_std=(0.02, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1), lrn=Lrn(alpha=0.01))
STEPS = 10


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 3, 67, 67, dtype=torch.float64, generator=generator) * 20, torch.randint(0, 7, (6,), generator=generator)


def train_ten(net: AlexNet) -> dict[str, Any]:
    """Loss and logits of each step, gradients of the first, parameters and velocities after the last: of the whole net."""
    optimiser = PaperSGD(net.parameters(), rate=0.01)
    losses, logits, gradients = [], [], {}
    for step in range(STEPS):
        images, labels = batch(step)
        out = net(images, MaskDraw(seed=4, step=step, batch=6))
        loss = F.cross_entropy(out, labels)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {name: gather_parameter(net, name, p.grad) for name, p in net.named_parameters() if p.grad is not None}
        optimiser.step()
        losses.append(loss.item())
        logits.append(out.detach())
    velocity = {name: gather_parameter(net, name, optimiser.velocity(p)) for name, p in net.named_parameters()}
    return {"losses": losses, "logits": torch.stack(logits), "gradients": gradients, "state": whole_state(net), "velocity": velocity}


def one_column(rank: int, classes: int) -> dict[str, Any]:
    net = AlexNet(classes, DESIGN, Columns(rank, dist.group.WORLD), seed=3).double()
    whole = AlexNet(classes, DESIGN, seed=3).double()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, own_part(net, name, whole.get_parameter(name))), name
    assert list(net.state_dict()) == list(whole.state_dict())
    return train_ten(net)


@pytest.mark.parametrize("classes", [8, 7])  # an odd number of classes divides unevenly
def test_two_ranks_equal_one_device(tmp_path: Path, classes: int) -> None:
    alone = train_ten(AlexNet(classes, DESIGN, seed=3).double())
    assert alone["losses"][-1] != pytest.approx(alone["losses"][0], rel=1e-3)
    assert len(alone["gradients"]) == 16
    for gradient in alone["gradients"].values():
        assert gradient.abs().max() > 1e-6  # a gradient of nothing would agree, too
    for pair in on_ranks(one_column, 2, tmp_path, classes):
        torch.testing.assert_close(pair["losses"], alone["losses"], rtol=1e-9, atol=0)
        torch.testing.assert_close(pair["logits"], alone["logits"], rtol=1e-8, atol=1e-9)
        for kind in ("gradients", "state", "velocity"):
            for name, value in alone[kind].items():
                torch.testing.assert_close(pair[kind][name], value, rtol=1e-6, atol=1e-12, msg=f"{kind} of {name}")


def test_rows_of_a_column() -> None:
    group: Any = object()
    assert Columns().rows(9) == slice(0, 9)
    assert [Columns(i, group).rows(8) for i in (0, 1)] == [slice(0, 4), slice(4, 8)]
    assert [Columns(i, group).rows(9) for i in (0, 1)] == [slice(0, 5), slice(5, 9)]
