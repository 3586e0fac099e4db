from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from model.lrn import lrn, lrn_plain, within_map_norm

PAPER: dict[str, Any] = {"k": 2.0, "n": 5, "alpha": 1e-4, "beta": 0.75}


def maps(channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 30


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("change", [{}, {"alpha": 0.5}, {"n": 3}, {"beta": 0.5}, {"k": 1.0, "n": 7}])
def test_equals_the_plain_form(columns: int, change: dict) -> None:
    settings = {**PAPER, **change}
    a = maps(12).requires_grad_()
    fast, plain = lrn(a, columns=columns, **settings), lrn_plain(a, columns=columns, **settings)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    weight = maps(12, seed=1)
    (fast_gradient,) = torch.autograd.grad((fast * weight).sum(), a)
    (plain_gradient,) = torch.autograd.grad((plain * weight).sum(), a)
    torch.testing.assert_close(fast_gradient, plain_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("columns", [1, 2])
def test_gradient_in_float64(columns: int) -> None:
    a = (maps(6) / 30).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lrn(x, columns=columns, k=2.0, n=5, alpha=0.3, beta=0.75), a)
    assert torch.autograd.gradcheck(within_map_norm, (maps(2) / 3).requires_grad_())


def test_the_printed_sum_is_not_divided_by_n() -> None:
    """PyTorch divides alpha by n: for the paper's formula its alpha would have to be 5e-4."""
    a = maps(48)
    torch.testing.assert_close(lrn(a, columns=1, **PAPER), F.local_response_norm(a, 5, 5e-4, 0.75, 2.0), rtol=1e-12, atol=0)


def test_the_window_does_not_cross_the_column_border() -> None:
    a = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
    a[0, 3:5] = 100.0  # the last map of column 0 and the first of column 1
    alone = a.clone()
    alone[0, 4] = 0
    assert lrn(a, columns=2, **PAPER)[0, 3] == lrn(alone, columns=2, **PAPER)[0, 3]
    assert lrn(a, columns=1, **PAPER)[0, 3] < lrn(alone, columns=1, **PAPER)[0, 3]


def test_half_precision_is_normalised_in_float32() -> None:
    a = maps(16).to(torch.bfloat16)
    out = lrn(a, columns=2, **PAPER)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, lrn(a.float(), columns=2, **PAPER).to(torch.bfloat16), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = lrn(a.float(), columns=2, **PAPER)
    torch.testing.assert_close(inside, lrn(a.float(), columns=2, **PAPER), rtol=0, atol=0)


def test_within_map_norm_by_hand() -> None:
    a = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    a[0, 0, 1, 2], a[0, 0, 3, 3] = 30.0, 40.0
    expected = 30.0 * (1 + 0.001 / 25 * (30.0**2 + 40.0**2)) ** -0.75
    assert within_map_norm(a)[0, 0, 1, 2].item() == pytest.approx(expected, rel=1e-12)
