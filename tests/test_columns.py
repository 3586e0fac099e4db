"""A layer that reads both columns gives the same while its input travels as after it: outputs and gradients, on two real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import on_ranks
from torch import nn

from model.columns import Columns
from model.exchange import overlapped, plain

Way = Callable[[Any, torch.Tensor, int, Any], torch.Tensor]
LAYERS = {"convolution": ((3, 4, 5, 5), (3, 6, 5, 5)), "linear": ((3, 10), (3, 7))}  # shapes of a column's input and output


def layer(kind: str, rank: int) -> nn.Conv2d | nn.Linear:
    torch.manual_seed(rank)
    return nn.Conv2d(8, 6, 3, padding=1) if kind == "convolution" else nn.Linear(20, 7)


def values(kind: str, rank: int, place: int) -> torch.Tensor:
    """A column's input (place 0) or the gradient of its output (1)."""
    return torch.randn(LAYERS[kind][place], dtype=torch.float64, generator=torch.Generator().manual_seed(10 * rank + place))


def once(way: Way, kind: str, rank: int, dtype: torch.dtype, last: bool, bf16: bool) -> list[torch.Tensor]:
    """Output, and gradients of input, weights and bias. last: maps and weights channels last."""
    form = torch.channels_last if last and kind == "convolution" else torch.contiguous_format
    module = layer(kind, rank).to(dtype, memory_format=form)  # type: ignore[call-overload]
    x = values(kind, rank, 0).to(dtype, memory_format=form).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = way(module, x, rank, dist.group.WORLD)
    out.backward(values(kind, rank, 1).to(out.dtype))
    return [out.detach(), *grads(x, module)]


def both_ways(rank: int) -> dict[str, Any]:
    return {
        f"{kind}, {dtype}, {last}, {bf16}": [once(way, kind, rank, dtype, last, bf16) for way in (plain, overlapped)]
        for kind in LAYERS
        for dtype, bf16 in ((torch.float64, False), (torch.float32, True))
        for last in (False, True)
    }


def undivided(kind: str) -> list[list[torch.Tensor]]:
    """What two ranks should have, from the concatenated input on one."""
    xs = [values(kind, rank, 0).requires_grad_() for rank in (0, 1)]
    modules = [layer(kind, rank).double() for rank in (0, 1)]
    outs = [module(torch.cat(xs, 1)) for module in modules]
    torch.autograd.backward(outs, [values(kind, rank, 1) for rank in (0, 1)])
    return [[outs[rank].detach(), *grads(xs[rank], modules[rank])] for rank in (0, 1)]


def grads(x: torch.Tensor, module: nn.Conv2d | nn.Linear) -> list[torch.Tensor]:
    found = [tensor.grad for tensor in (x, *module.parameters())]
    return [gradient for gradient in found if gradient is not None]


def test_overlapped_equals_plain_equals_undivided(tmp_path: Path) -> None:
    found = on_ranks(both_ways, 2, tmp_path)
    for rank in (0, 1):
        for name, (first, second) in found[rank].items():
            kind, exact = name.split(",")[0], "float64" in name
            for a, b, expected in zip(first, second, undivided(kind)[rank], strict=True):
                assert a.dtype == b.dtype
                assert expected.abs().max() > 0.1
                if exact:
                    torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10, msg=name)
                    torch.testing.assert_close(a, expected, rtol=1e-10, atol=1e-10, msg=name)
                else:  # bf16 has 8 bits, and overlapped rounds once more
                    for one in (a, b):
                        assert (one.double() - expected).norm() < 0.01 * expected.norm(), name
        out = found[rank]["linear, torch.float32, False, True"][1]
        assert [tensor.dtype for tensor in out] == [torch.bfloat16, torch.float32, torch.float32, torch.float32]


def test_rows_of_a_column() -> None:
    group: Any = object()
    assert Columns().rows("fc8", 9) == slice(0, 9)
    assert [Columns(i, group).rows("fc8", 8) for i in (0, 1)] == [slice(0, 4), slice(4, 8)]
    assert [Columns(i, group).rows("fc8", 9) for i in (0, 1)] == [slice(0, 5), slice(5, 9)]
