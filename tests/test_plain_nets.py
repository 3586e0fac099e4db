"""The net and step of plain PyTorch that ours is measured beside."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from model.alexnet import AlexNet
from model.design import Design, Lrn
from pipeline.errors import InputError
from tools.plain_nets import EagerAlexNet, make_step

CPU = torch.device("cpu")


def test_the_peers_net_is_the_papers() -> None:
    with torch.device("meta"):
        net = EagerAlexNet()
    assert sum(parameter.numel() for parameter in net.parameters()) == sum(Design().parameters(1000).values())


def test_the_peers_net_computes_what_ours_does_but_for_the_border_of_the_columns() -> None:
    """With weights that make LRN matter. Ours normalises within a column, so the window of one map is that of all but four."""
    design = Design(maps=(16, 16, 8, 8, 8), hidden=(16, 16), input=99, lrn=Lrn(n=1, alpha=1e-4))
    ours, eager = AlexNet(5, design).double().eval(), EagerAlexNet(5, design.maps, design.hidden, 99).double().eval()
    eager.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 99, 99, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tools.plain_nets._lrn", lambda x: torch.nn.functional.local_response_norm(x, 1, alpha=1e-4, beta=0.75, k=2.0))
        torch.testing.assert_close(eager(images), ours(images))
    whole = AlexNet(5, design.model_copy(update={"lrn": Lrn()})).double().eval()
    torch.testing.assert_close(eager(images), whole(images), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_the_peers_step_learns_one_batch(precision: str) -> None:
    torch.manual_seed(0)
    net = EagerAlexNet(3, (4, 8, 8, 8, 8), (16, 16), 99)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    net.eval()  # without dropout
    images, labels = torch.randn(6, 3, 99, 99), torch.arange(6) % 3
    step = make_step(net, precision, False, CPU)
    losses = [float(step(images, labels)) for _ in range(12)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


def test_steps_that_cannot_be_had_here_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = EagerAlexNet(2, (4, 4, 4, 4, 4), (4, 4), 99)
    with pytest.raises(InputError, match="a step is of float32, tf32, autocast, not 'half'"):
        make_step(net, "half", False, CPU)
    with pytest.raises(InputError, match="TF32 is a format of NVIDIA's GPUs"):
        make_step(net, "tf32", False, CPU)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler here, and none of g\+\+, clang\+\+ is found"):
        make_step(net, "float32", True, CPU)
