"""ReLU, local response normalisation and 3/2 max-pooling in one pass over memory (paper, sections 3.1, 3.3 and 3.4).

In the plain net these three read and write the largest maps some twenty-five times a step; fused, forward reads the maps and writes
the pooled ones, backward reads the maps again and writes their gradient. What is kept for it: the maps, and which of its nine places
each pooled value came from, one byte. Scales are computed again instead of kept.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model.lrn import lrn


def relu_lrn_pool(x: torch.Tensor, *, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float) -> torch.Tensor:
    """(batch, maps, h, w) outputs of a convolution -> (batch, maps, (h - 3) // 2 + 1, (w - 3) // 2 + 1), of the same type.

    relu: whether a ReLU comes first; the others as in lrn.lrn. float32 and bfloat16 go through the fused form, on the CPU in Numba, on
    a GPU in Triton; other types through the plain one.
    """
    form = _form(x, n)
    if form is None:
        return relu_lrn_pool_plain(x, relu=relu, columns=columns, k=k, n=n, alpha=alpha, beta=beta)
    pooled: torch.Tensor = _ReluLrnPool.apply(x, form, relu, columns, k, n, alpha, beta)
    return pooled


def relu_lrn_pool_plain(x: torch.Tensor, *, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float) -> torch.Tensor:
    """The same, one after the other."""
    return F.max_pool2d(lrn(F.relu(x) if relu else x, columns=columns, k=k, n=n, alpha=alpha, beta=beta), 3, 2)


def _form(x: torch.Tensor, n: int) -> ModuleType | None:
    """The module whose forward() and backward() do it for this tensor; None: there is none."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return None
    if x.is_cuda:
        try:
            import model.lrn_pool_kernel as on_gpu
        except ImportError:  # no Triton: the plain form gives the same
            return None
        return on_gpu if n <= on_gpu.WIDEST else None
    import model.lrn_pool_cpu as on_cpu

    return on_cpu


class _ReluLrnPool(torch.autograd.Function):
    """Where several of a window's values are the largest, the gradient goes to the first in reading order, as in PyTorch's pooling."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, form: ModuleType, relu: bool, columns: int, k: float, n: int, alpha: float, beta: float) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.form, ctx.settings = form, (relu, columns, k, n, alpha, beta)
        pooled: torch.Tensor
        pooled, places = form.forward(x, *ctx.settings)
        ctx.save_for_backward(x, places)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, places = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        return ctx.form.backward(gradient, places, x, *ctx.settings), *[None] * 7
