"""Pictures cut from a device's cache: the plain form equals Pillow's and NumPy's, the Triton kernel the plain form, all bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_planes import KINDS, by_pillow, drawn, encoded, planes_of

from pipeline.augment import Augmentation, MeanWindow, plain_batch
from pipeline.device_window import Layout, Out, cut_windows, cut_windows_fused, cut_windows_plain
from pipeline.draws import draw

LAYOUTS: tuple[Layout, ...] = ("rgb", "yuv420")
MEANS: tuple[MeanWindow, ...] = ("same", "centre")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean_window", MEANS)
@pytest.mark.parametrize("divisor", [1.0, 1.1])
def test_pictures_from_the_cache_equal_the_plain_form_of_the_loader(layout: Layout, mean_window: MeanWindow, divisor: float) -> None:
    size, crop, count = 64, 51, 12
    jpegs = [encoded(drawn(KINDS[n % 4], size, n)) for n in range(count)]
    rng = np.random.default_rng(1)
    draws, shift = draw(5, 2, np.arange(count), size - crop + 1), rng.normal(0, 9, (count, 3)).astype(np.float32)
    mean_image = rng.uniform(0, 255, (size, size, 3)).astype(np.float32)
    augmentation = Augmentation(crop, mean_window, divisor=divisor)
    windows, finished = plain_batch(jpegs, draws, shift, mean_image, augmentation)

    slots = rng.permutation(count)
    store = np.empty((count, size * size * 3 // (1 if layout == "rgb" else 2)), np.uint8)
    store[slots] = [by_pillow(jpeg).reshape(-1) if layout == "rgb" else planes_of(jpeg, size) for jpeg in jpegs]
    given: list[Any] = [torch.from_numpy(array) for array in (store, slots, draws.y, draws.x, draws.flip, shift, mean_image)]
    options: dict[str, Any] = {"crop": crop, "layout": layout, "mean_window": mean_window, "divisor": divisor}
    assert draws.flip.any()
    assert not draws.flip.all()
    assert np.array_equal(cut_windows(*given, **options, out="uint8").numpy(), windows)
    images = cut_windows(*given, **options, out="float32")
    assert np.array_equal(images.numpy(), finished)
    assert images.is_contiguous(memory_format=torch.channels_last)


def compare(size: int, crop: int) -> None:
    """The Triton kernel against the plain form, for all windows of a picture that has few. For a process with Triton's interpreter."""
    generator, offsets = torch.Generator().manual_seed(size), range(size - crop + 1)
    y, x, flip = (torch.tensor(numbers) for numbers in zip(*product(offsets, offsets, (False, True)), strict=True))
    slots, shift = torch.arange(len(y)) * 3 % 5, 10 * torch.randn(len(y), 3, generator=generator)
    mean_image = 255 * torch.rand(size, size, 3, generator=generator)
    finishes: list[tuple[MeanWindow, float, Out]] = [
        ("same", 1.0, "uint8"),
        *((mean, divisor, "float32") for mean in MEANS for divisor in (1.0, 1.1)),
    ]
    for layout, (mean_window, divisor, out) in product(LAYOUTS, finishes):
        bytes_each = size * size * 3 // (1 if layout == "rgb" else 2)
        store = torch.randint(0, 256, (5, bytes_each), dtype=torch.uint8, generator=generator)
        fused, plain = (
            form(store, slots, y, x, flip, shift, mean_image, crop, layout=layout, mean_window=mean_window, divisor=divisor, out=out)
            for form in (cut_windows_fused, cut_windows_plain)
        )
        assert torch.equal(fused, plain), (size, crop, layout, mean_window, divisor, out)
        assert (fused.dtype, fused.shape, fused.stride()) == (plain.dtype, plain.shape, plain.stride())


def run_with_triton(code: str, tmp_path: Path, **environment: str) -> str:
    """In a process of its own: Triton reads how it is to run when it is imported."""
    pytest.importorskip("triton")
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    variables = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_triton_kernel_equals_the_plain_form(tmp_path: Path) -> None:
    code = "from test_device_window import compare\nfor size, crop in ((34, 33), (18, 18)): compare(size, crop); print(size, 'equal')"
    assert run_with_triton(code, tmp_path, TRITON_INTERPRET="1").split() == ["34", "equal", "18", "equal"]


# For an H100; no GPU is needed to compile.
COMPILED = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.window_kernel import BLOCK, _cut

constants = dict(SIZE=256, CROP=227, YUV=True, CENTRE=False, FLOAT=True, DIVIDE=True, BLOCK=BLOCK)
kinds = dict(store="*u8", slots="*i64", tops="*i64", lefts="*i64", flips="*u8", shifts="*fp32", mean_image="*fp32", out="*fp32", divisor="fp32")
signature = {**kinds, **{name: "constexpr" for name in constants}}
places = {(list(signature).index(name),): value for name, value in constants.items()}
made = triton.compile(ASTSource(fn=_cut, signature=signature, constexprs=places), target=GPUTarget("cuda", 90, 32))
print(*sorted(set(re.findall(r"\\b(?:add|sub|mul|fma|mad|div)\\.[a-z.]*f32\\b", made.asm["ptx"]))))
"""


def test_on_a_gpu_the_kernel_divides_exactly_and_fuses_nothing(tmp_path: Path) -> None:
    """Which the interpreter cannot show: it computes as NumPy does."""
    assert run_with_triton(COMPILED, tmp_path).split() == ["add.f32", "div.rn.f32", "sub.f32"]


def test_tensors_of_other_kinds_are_refused() -> None:
    number, flip = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
    store, shift, mean_image = torch.zeros((2, 32 * 32 * 3), dtype=torch.uint8), torch.zeros(1, 3), torch.zeros(32, 32, 3)
    given: dict[str, Any] = {"slots": number, "y": number, "x": number, "flip": flip, "shift": shift, "mean_image": mean_image}
    wrong = {"slots": number.int(), "flip": number, "shift": shift.double(), "mean_image": mean_image.transpose(0, 1), "y": number.repeat(2)}
    options: dict[str, Any] = {"crop": 27, "layout": "rgb", "mean_window": "same", "divisor": 1.0, "out": "uint8"}
    assert cut_windows(store, **given, **options).shape == (1, 27, 27, 3)
    for name, tensor in wrong.items():
        with pytest.raises(AssertionError, match="wanted"):
            cut_windows(store, **{**given, name: tensor}, **options)
