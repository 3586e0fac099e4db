"""The Triton kernels of ReLU, LRN and pooling: by Triton's interpreter the plain form's values, places and gradients; compiled, no spills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_device_window import run_with_triton

from model.lrn import lrn, lrn_plain

# maps, columns, relu, n, k, alpha, beta; pictures of one of two shapes. alpha is large, so that what goes through the sums weighs much.
CASES: list[Any] = [
    (16, 1, True, 5, 2.0, 0.1, 0.75),
    (32, 2, False, 5, 2.0, 0.1, 0.75),
    (20, 2, True, 3, 1.0, 0.2, 0.6),
    (12, 1, False, 9, 1.5, 0.05, 1.0),
    (14, 2, True, 17, 2.0, 0.1, 0.75),
]
SIDES = ((7, 7), (6, 9))


def drawn(maps: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(maps * height)
    return (3 * torch.randn(2, maps, height, width, generator=generator)).to(dtype).contiguous(memory_format=torch.channels_last)


def normalised(x: torch.Tensor, relu: bool, settings: dict[str, Any]) -> torch.Tensor:
    return lrn(F.relu(x) if relu else x, **settings)


def indices(places: torch.Tensor, width: int) -> torch.Tensor:
    """Places in the windows as max_pool2d returns them: of a picture's pixel."""
    tall, wide = places.shape[2:]
    row, column = 2 * torch.arange(tall)[:, None] + places.long() // 3, 2 * torch.arange(wide) + places.long() % 3
    return row * width + column


def picked(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return values.flatten(2).gather(2, at.flatten(2)).view(at.shape)


def check(x: torch.Tensor, rounding: float, columns: int, relu: bool, n: int, k: float, alpha: float, beta: float) -> None:
    """The kernels against the plain form in float64; rounding: relative error of x's type."""
    from model.lrn_pool_kernel import backward, forward

    settings: dict[str, Any] = {"columns": columns, "k": k, "n": n, "alpha": alpha, "beta": beta}
    pooled, places = forward(x, relu, columns, k, n, alpha, beta)
    expected_places = F.max_pool2d(normalised(x, relu, settings), 3, 2, return_indices=True)[1]
    assert torch.equal(indices(places, x.shape[3]), expected_places)
    wide = x.double().requires_grad_()
    expected = picked(normalised(wide, relu, settings), expected_places)
    assert torch.all((pooled - expected).abs() <= rounding * expected.abs() + 1e-6)
    gradient = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1)).to(x).contiguous(memory_format=torch.channels_last)
    dx = backward(gradient, places, x, relu, columns, k, n, alpha, beta)
    expected.backward(gradient.double())
    assert wide.grad is not None
    assert torch.all((dx - wide.grad).abs() <= rounding * wide.grad.abs() + 2e-6), (dx - wide.grad).abs().max()
    for out, like in ((pooled, x), (places, places), (dx, x)):
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert out.dtype == like.dtype


def check_all() -> None:
    """In a process with Triton's interpreter."""
    from model import lrn_pool_kernel

    nearest_bfloat16()
    for i, (maps, *settings) in enumerate(CASES):
        lrn_pool_kernel.PROGRAMS = 1 + 3 * (i % 2)  # one program goes along whole rows, or several share them
        check(drawn(maps, *SIDES[i % 2]), 2e-6, *settings)
        if i < 2:  # half a unit of the 8 bits: nothing but the result is rounded
            check(drawn(maps, *SIDES[i % 2], torch.bfloat16), 2**-8, *settings)
    few = drawn(16, 7, 7).round().clamp(-1, 1)  # values that are often equal, and zeros after ReLU
    check(few.bfloat16(), 2**-8, 1, True, 5, 2.0, 0.1, 0.75)
    check(few.clamp(max=0), 2e-6, 1, False, 5, 2.0, 0.1, 0.75)  # 0 and -0 are equal
    check(torch.full_like(few[:1], -1.0), 0.0, 2, True, 5, 2.0, 0.1, 0.75)
    check_nan(torch.float32, relu=False)
    check_nan(torch.bfloat16, relu=True)
    print("equal")


def check_nan(dtype: torch.dtype, relu: bool) -> None:
    """A NaN is its window's maximum, makes those that have it in their sums NaN, and no others (lrn() all maps of a pixel); likewise backward."""
    from model.lrn_pool_kernel import backward, forward

    settings: dict[str, Any] = {"columns": 2, "k": 2.0, "n": 5, "alpha": 0.1, "beta": 0.75}
    x = drawn(32, 7, 7, dtype)
    x[0, 14, 4, 4] = torch.nan
    pooled, places = forward(x, relu, **settings)
    values = x.float().requires_grad_()
    expected, at = F.max_pool2d(lrn_plain(F.relu(values) if relu else values, **settings).to(dtype), 3, 2, return_indices=True)
    assert torch.equal(pooled.isnan(), expected.isnan())
    assert pooled.isnan().any()
    assert torch.equal(indices(places, 7), at)
    expected.backward(torch.ones_like(expected))
    dx = backward(torch.ones_like(pooled), places, x, relu, **settings)
    assert values.grad is not None
    assert torch.equal(dx.isnan(), values.grad.isnan())


def nearest_bfloat16() -> None:
    """Triton's interpreter cuts float32 off to bfloat16; a GPU rounds to the nearest, ties to even, and knows one NaN. Let it do so too."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    cut = builder.cast_impl

    def cast(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            bits = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
            return interpreter.TensorHandle(np.where(np.isnan(source.data), np.uint16(0x7FFF), bits), tl.bfloat16)
        return cut(self, source, to)

    builder.cast_impl = cast


def test_the_kernels_equal_the_plain_form(tmp_path: Path) -> None:
    assert run_with_triton("from test_lrn_pool_kernel import check_all; check_all()", tmp_path, TRITON_INTERPRET="1").split() == ["equal"]


def compiled(kernel: Any, pointers: dict[str, str], numbers: dict[str, str], fixed: dict[str, Any], processor: int, options: dict[str, Any]) -> str:
    """REG, STACK and LOCAL (bytes spilled) of a kernel compiled for a GPU of this compute capability; none is needed for it."""
    import re
    import subprocess
    import tempfile

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {**pointers, **numbers, **dict.fromkeys(fixed, "constexpr")}
    place = {name: (kernel.arg_names.index(name),) for name in kinds}
    source = ASTSource(
        fn=kernel,
        signature={name: kinds[name] for name in kernel.arg_names},
        constexprs={place[name]: value for name, value in fixed.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in pointers},
    )
    made = triton.compile(source, target=GPUTarget("cuda", processor, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"), "-res-usage", file.name]
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join([*re.findall(r"\b(?:REG|STACK|LOCAL):\d+", used), f"BARRIERS:{made.asm['ptx'].count('bar.sync')}"])


def compile_layers(processor: int, layers: list[tuple[int, int]]) -> None:
    """Prints what forward and backward use for the paper's two layers (maps, side), two columns, in bfloat16."""
    from model.lrn_pool_kernel import OPTIONS, WARPS, _backward, _forward, fixed

    scalars = {"k": "fp32", "alpha": "fp32"}
    for maps, side in layers:
        x = torch.empty((128, maps, side, side), dtype=torch.bfloat16, device="meta", memory_format=torch.channels_last)
        pointers, constants = {"x": "*bf16", "pooled": "*bf16", "places": "*u8"}, fixed(x, True, 2, 5, 0.75, 32 * WARPS)
        print(compiled(_forward, pointers, {"strips": "i32", "tile": "i32", **scalars}, constants, processor, OPTIONS))
        pointers, constants = {"gradient": "*bf16", "places": "*u8", "x": "*bf16", "dx": "*bf16"}, fixed(x, True, 2, 5, 0.75, 32)
        print(compiled(_backward, pointers, {"quads": "i32", **scalars}, {**constants, "ROWS": WARPS}, processor, OPTIONS))


@pytest.mark.parametrize(("processor", "layers"), [(90, [(96, 55), (256, 27)]), (80, [(256, 27)])])
def test_on_a_gpu_the_kernels_stay_in_registers(tmp_path: Path, processor: int, layers: list[tuple[int, int]]) -> None:
    """And lanes wait for each other at no barrier: what makes the design fast, which a change of Triton could undo unseen."""
    printed = run_with_triton(f"from test_lrn_pool_kernel import compile_layers; compile_layers({processor}, {layers})", tmp_path)
    lines = [dict(pair.split(":") for pair in line.split()) for line in printed.splitlines()]
    assert len(lines) == 2 * len(layers)
    for used in lines:
        assert (used["STACK"], used["LOCAL"], used["BARRIERS"]) == ("0", "0", "0"), printed
        assert int(used["REG"]) <= 128, printed


def test_what_the_kernels_cannot_do_is_refused() -> None:
    pytest.importorskip("triton")
    from model.lrn_pool_kernel import backward, forward

    x, layer = drawn(16, 7, 7), (True, 1, 2.0, 5, 1e-4, 0.75)
    with pytest.raises(AssertionError, match="channels_last"):
        forward(x.contiguous(), *layer)
    with pytest.raises(AssertionError, match="2 x 7"):
        forward(x[:, :, :2].contiguous(memory_format=torch.channels_last), *layer)
    with pytest.raises(AssertionError, match="19 maps"):
        forward(x, True, 1, 2.0, 19, 1e-4, 0.75)
    pooled, places = forward(x[:0], *layer)
    assert pooled.shape == places.shape == (0, 16, 3, 3)
    with pytest.raises(AssertionError, match="gradient of"):
        backward(torch.zeros(2, 16, 4, 4), torch.zeros(2, 16, 3, 3, dtype=torch.uint8), x, *layer)
