"""Local response normalisation over neighbouring maps (paper, section 3.3), and the 2012 program's within-map form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def lrn(a: torch.Tensor, *, columns: int, k: float, n: int, alpha: float, beta: float) -> torch.Tensor:
    """b_i = a_i / (k + alpha * sum of a_j^2 over the n maps around i) ^ beta, as printed: the sum is not divided by n.

    a: (batch, maps, height, width). The maps are `columns` columns side by side and no window crosses the border between
    them. n is odd. Half-precision input is normalised in float32 and returned in its own type (on GPUs the window sum runs
    in TF32 where PyTorch's convolutions do, an error of the sum of at most 0.1 %).
    """
    return _Lrn.apply(a, columns, k, n, alpha, beta)


def lrn_plain(a: torch.Tensor, *, columns: int, k: float, n: int, alpha: float, beta: float) -> torch.Tensor:
    """The same, map by map as the formula reads; differentiated by autograd. For tests."""
    size, out = a.shape[1] // columns, []
    for i in range(a.shape[1]):
        first = i // size * size
        low, high = max(first, i - n // 2), min(first + size - 1, i + n // 2)
        out.append(a[:, i] / (k + alpha * (a[:, low : high + 1] ** 2).sum(dim=1)) ** beta)
    return torch.stack(out, dim=1)


def within_map_norm(a: torch.Tensor, *, size: int = 5, alpha: float = 0.001 / 25, beta: float = 0.75) -> torch.Tensor:
    """The 2012 program's second normalisation after conv2: over a size x size window of the same map, k = 1."""
    with torch.autocast(a.device.type, enabled=False):
        wide = _wide(a)
        total = F.avg_pool2d(wide * wide, size, stride=1, padding=size // 2, count_include_pad=True) * size**2
        return (wide * (1.0 + alpha * total).pow(-beta)).to(a.dtype)


class _Lrn(torch.autograd.Function):
    """Window sums as a 1x1 convolution with a matrix of ones around the diagonal: one matrix product instead of n passes.

    Keeps the input and the scale; the factor is computed again backward.
    """

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, columns: int, k: float, n: int, alpha: float, beta: float) -> torch.Tensor:
        with torch.autocast(a.device.type, enabled=False):
            wide = _wide(a)
            band = _band(a.shape[1], columns, n, wide)
            scale = F.conv2d(wide * wide, band).mul_(alpha).add_(k)
            ctx.save_for_backward(a, scale, band)
            ctx.alpha, ctx.beta = alpha, beta
            return (wide * _power(scale, beta)).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            a, scale, band = ctx.saved_tensors
            wide, g = _wide(a), _wide(gradients[0])
            direct = g * _power(scale, ctx.beta)
            through_sum = F.conv2d(direct * wide / scale, band)
            return (direct - (2 * ctx.alpha * ctx.beta) * wide * through_sum).to(a.dtype), *[None] * 5


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _band(maps: int, columns: int, n: int, like: torch.Tensor) -> torch.Tensor:
    """(maps, maps, 1, 1) of ones where two maps are at most n // 2 apart and in one column."""
    i = torch.arange(maps, device=like.device)
    near = (i[:, None] - i[None, :]).abs() <= n // 2
    together = (i[:, None] * columns // maps) == (i[None, :] * columns // maps)
    return (near & together).to(like.dtype)[:, :, None, None]


def _power(scale: torch.Tensor, beta: float) -> torch.Tensor:
    """scale ^ -beta; for the paper's 0.75 by two square roots, which cost a fraction of a power."""
    return (scale * scale.sqrt()).rsqrt_() if beta == 0.75 else scale.pow(-beta)
