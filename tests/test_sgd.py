from __future__ import annotations

import pytest
import torch

from model.sgd import PaperSGD


def test_is_the_papers_rule_by_hand() -> None:
    w = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimiser = PaperSGD([w], rate=0.1, momentum=0.9, weight_decay=0.01)
    expected_w, v = 2.0, 0.0
    for rate, g in ((0.1, 3.0), (0.1, -1.0), (0.01, 2.0)):
        optimiser.param_groups[0]["rate"] = rate
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimiser.step()
        v = 0.9 * v - 0.01 * rate * expected_w - rate * g
        expected_w += v
        assert w.item() == pytest.approx(expected_w, rel=1e-14)
        assert optimiser.velocity(w).item() == pytest.approx(v, rel=1e-14)


def test_agrees_with_torch_until_the_rate_changes() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = PaperSGD(ours.parameters(), rate=0.1)
    torchs = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0005)

    def step() -> None:
        x = torch.randn(4, 5, dtype=torch.float64)
        for net, optimiser in ((ours, mine), (theirs, torchs)):
            optimiser.zero_grad()
            net(x).square().sum().backward()
            optimiser.step()

    for _ in range(5):
        step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-12)
    mine.param_groups[0]["rate"] = torchs.param_groups[0]["lr"] = 0.01
    step()
    assert not torch.allclose(ours.weight, theirs.weight, rtol=1e-3)


def test_groups_and_missing_gradients() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimiser = PaperSGD([{"params": [a], "rate": 1.0, "weight_decay": 0.0}, {"params": [b]}], rate=0.5, weight_decay=0.1)
    a.grad = torch.ones(2)
    optimiser.step()
    assert a.tolist() == [0.0, 0.0]
    assert b.tolist() == [1.0, 1.0]
    b.grad = torch.zeros(2)
    optimiser.step()
    assert b.tolist() == pytest.approx([0.95, 0.95])


def test_negative_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        PaperSGD([torch.zeros(1, requires_grad=True)], momentum=-1)
