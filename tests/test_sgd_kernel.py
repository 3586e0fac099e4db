"""The Triton kernel of the paper's SGD: by Triton's interpreter what PaperSGD gives; compiled, no spills."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_device_window import run_with_triton
from test_lrn_pool_kernel import compiled, nearest_bfloat16

from model.sgd import PaperSGD

SHAPES = ((3, 5, 11, 11), (1, 1), (2048,), (0, 4))  # not whole programs, one element, whole ones, none


def check(shape: tuple[int, ...], gradient_type: torch.dtype, copy: bool) -> None:
    """Some steps with the rate falling, beside PaperSGD."""
    from model.sgd_kernel import update

    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    if start.dim() == 4:
        start = start.contiguous(memory_format=torch.channels_last)
    weight, velocity, rate = start.clone(), torch.zeros_like(start), torch.tensor(0.1)
    compute = torch.zeros_like(start, dtype=torch.bfloat16) if copy else None
    expected = torch.nn.Parameter(start.clone())
    plain = PaperSGD([expected], rate=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        gradient = torch.randn(shape, generator=generator).to(gradient_type)
        gradient = torch.empty_like(start, dtype=gradient_type).copy_(gradient)
        if step == 2:
            rate.fill_(0.01)
            plain.param_groups[0]["rate"] = 0.01
        expected.grad = gradient.float()
        update(weight, velocity, gradient, compute, rate, 0.9, 0.01)
        plain.step()
        torch.testing.assert_close(weight, expected.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(velocity, plain.velocity(expected), rtol=1e-6, atol=1e-6)
        assert compute is None or torch.equal(compute, weight.bfloat16())
    assert weight.numel() == 0 or not torch.equal(weight, start)


def check_all() -> None:
    """In a process with Triton's interpreter."""
    nearest_bfloat16()
    for shape in SHAPES:
        for gradient_type in (torch.float32, torch.bfloat16):
            for copy in (False, True):
                check(shape, gradient_type, copy)
    print("equal")


def test_the_kernel_equals_paper_sgd(tmp_path: Path) -> None:
    assert run_with_triton("from test_sgd_kernel import check_all; check_all()", tmp_path, TRITON_INTERPRET="1").split() == ["equal"]


def compile_kernel() -> None:
    from model.sgd_kernel import BLOCK, OPTIONS, _update

    pointers = {"weight": "*fp32", "velocity": "*fp32", "gradient": "*bf16", "compute": "*bf16", "rate": "*fp32"}
    numbers = {"momentum": "fp32", "weight_decay": "fp32", "size": "i32"}
    for processor in (80, 90):
        print(compiled(_update, pointers, numbers, {"COMPUTE": True, "BLOCK": BLOCK}, processor, OPTIONS))


def test_on_a_gpu_the_kernel_stays_in_registers(tmp_path: Path) -> None:
    lines = run_with_triton("from test_sgd_kernel import compile_kernel; compile_kernel()", tmp_path).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "STACK:0" in line, line
        assert "LOCAL:0" in line, line


def test_tensors_of_other_kinds_are_refused() -> None:
    pytest.importorskip("triton")
    from model.sgd_kernel import update

    one, rate = torch.zeros(4, 6), torch.tensor(0.1)
    with pytest.raises(AssertionError, match=r"strides \(1, 4\)"):
        update(one, one.clone(), torch.zeros(6, 4).t(), None, rate, 0.9, 0.0)
    with pytest.raises(AssertionError, match="gaps"):
        update(one[:, ::2], one[:, ::2], one[:, ::2], None, rate, 0.9, 0.0)
    with pytest.raises(AssertionError, match="float32"):
        update(one, one.clone(), one.clone(), None, rate.double(), 0.9, 0.0)
    with pytest.raises(AssertionError, match="bfloat16"):
        update(one, one.clone(), one.clone(), one.clone(), rate, 0.9, 0.0)
