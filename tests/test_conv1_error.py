"""Which is more exact in bfloat16: conv1 of pictures less mean, or conv1 of pictures, less conv1 of the mean (docs/speed.md).

Pictures are drawn with the spectrum of photographs (1/f), about as bright and as contrasty as ImageNet's; products of bfloat16 numbers are
summed in float32, as tensor cores do, and what a layer puts out is rounded to bfloat16. The reference is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

SIDE, CROP, PICTURES = 256, 227, 6
BRIGHT, CONTRAST, NOISE = 115.0, 62.0, 12.0  # grey levels: mean, standard deviation, colour shift's


@dataclass(frozen=True)
class Windows:
    """Grey levels, all (n, 3, 227, 227) float32: whole numbers 0 ... 255, and the mean image less the picture's colour shift under them."""

    pixels: torch.Tensor
    mean: torch.Tensor


@pytest.fixture(scope="module")
def windows() -> Windows:
    generator = torch.Generator().manual_seed(0)
    frequency = torch.hypot(torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE))
    frequency[0, 0] = frequency[0, 1]
    draw = lambda planes: torch.randn(32, planes, SIDE, SIDE // 2 + 1, dtype=torch.complex64, generator=generator)  # noqa: E731
    waves = torch.fft.irfft2((draw(1) + 0.35 * draw(3)) / frequency, s=(SIDE, SIDE))  # colours go together
    pictures = (waves / waves.std() * CONTRAST + BRIGHT).round().clamp(0, 255)
    mean, shift = pictures.mean(0), NOISE * torch.randn(PICTURES, 3, 1, 1, generator=generator)
    corners = torch.randint(SIDE - CROP + 1, (PICTURES, 2), generator=generator).tolist()
    cut = lambda image, y, x: image[:, y : y + CROP, x : x + CROP]  # noqa: E731
    pixels = torch.stack([cut(picture, y, x) for picture, (y, x) in zip(pictures[:PICTURES], corners, strict=True)])
    return Windows(pixels, torch.stack([cut(mean, y, x) for y, x in corners]) - shift)


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def error(x: torch.Tensor, exact: torch.Tensor) -> float:
    """Root of the mean square, in units of the exact one's."""
    return float((x.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def initial() -> torch.Tensor:
    """(32, 3, 11, 11) weights as training starts with, exact in bfloat16."""
    return rounded(0.01 * torch.randn(32, 3, 11, 11, generator=torch.Generator().manual_seed(1)))


def without_mean() -> torch.Tensor:
    """Weights that see no brightness: the least that folding takes off."""
    weight = initial()
    return rounded(weight - weight.mean((1, 2, 3), keepdim=True))


def edges() -> torch.Tensor:
    """Waves of some orientation under a bell, about what conv1 learns."""
    generator = torch.Generator().manual_seed(2)
    turn, length, phase = (torch.rand(32, 1, 1, generator=generator) for _ in range(3))
    y, x = torch.meshgrid(torch.arange(-5.0, 6.0), torch.arange(-5.0, 6.0), indexing="ij")
    along = x * (3.14159 * turn).cos() + y * (3.14159 * turn).sin()
    waves = (-(x**2 + y**2) / 18).exp() * (6.28319 * ((0.05 + 0.2 * length) * along + phase)).cos()
    waves = (waves - waves.mean((1, 2), keepdim=True))[:, None] * (1 + 0.3 * torch.randn(32, 3, 1, 1, generator=generator))
    return rounded(0.01 * waves / waves.std((1, 2, 3), keepdim=True))


def forward_errors(w: Windows, weight: torch.Tensor) -> dict[str, float]:
    """direct: mean and shift taken off, rounded, then conv1. folded: conv1, rounded, then conv1 of the mean, kept in float32, taken off.

    inside: folded by a kernel that takes it off before it rounds. uint8: pixels that are off as by rounding to whole numbers.
    """
    exact = F.conv2d(w.pixels.double() - w.mean.double(), weight.double(), stride=4)
    whole, of_mean = F.conv2d(w.pixels, weight, stride=4), F.conv2d(w.mean, weight, stride=4)
    half_a_level = torch.rand(w.pixels.shape, generator=torch.Generator().manual_seed(3)) - 0.5
    return {
        "direct": error(rounded(F.conv2d(rounded(w.pixels - w.mean), weight, stride=4)), exact),
        "folded": error(rounded(rounded(whole) - of_mean), exact),
        "inside": error(rounded(whole - of_mean), exact),
        "uint8": error(exact + F.conv2d(half_a_level, weight, stride=4), exact),
    }


def gradient_errors(w: Windows, weight: torch.Tensor) -> dict[str, float]:
    """Of the weights' gradient, for gradients of the outputs that are noise where ReLU lets through."""
    exact_in = w.pixels.double() - w.mean.double()
    on = F.conv2d(exact_in, weight.double(), stride=4) > 0
    out = rounded(1e-3 * torch.randn(on.shape, generator=torch.Generator().manual_seed(4)) * on)
    exact = conv2d_weight(exact_in, weight.shape, out.double(), stride=4)
    of = lambda x: conv2d_weight(x, weight.shape, out, stride=4)  # noqa: E731
    return {"direct": error(rounded(of(rounded(w.pixels - w.mean))), exact), "folded": error(rounded(rounded(of(w.pixels)) - of(w.mean)), exact)}


def test_the_input_loses_less_than_uint8_did(windows: Windows) -> None:
    """Whole numbers to 256 are exact; less the mean they are off by at most 1/4 below 128 and 1/2 above, less than 1/2 mostly."""
    assert torch.equal(rounded(windows.pixels), windows.pixels)
    exact = windows.pixels.double() - windows.mean.double()
    off = (rounded(windows.pixels - windows.mean).double() - exact).abs()
    assert off[exact.abs() < 127].max() <= 0.25
    assert off.max() <= 0.5
    assert off.square().mean().sqrt() < (1 / 12) ** 0.5 / 2  # rounding to whole numbers is off by the root of 1/12


@pytest.mark.parametrize("weights", [initial, edges])
def test_taking_the_mean_off_first_is_more_exact(windows: Windows, weights: Callable[[], torch.Tensor]) -> None:
    found = forward_errors(windows, weights())
    assert found["inside"] < found["direct"] < found["folded"], found


def test_weights_that_see_no_brightness_have_nothing_to_lose(windows: Windows) -> None:
    """The one case where folding is the more exact, by little."""
    found = forward_errors(windows, without_mean())
    assert found["inside"] < found["folded"] < found["direct"] < 1.5 * found["folded"], found


@pytest.mark.parametrize("weights", [initial, edges, without_mean])
def test_gradients_are_more_exact_too(windows: Windows, weights: Callable[[], torch.Tensor]) -> None:
    """Whatever the weights see, their gradient is a sum over pixels, which are bright."""
    found = gradient_errors(windows, weights())
    assert 1.4 * found["direct"] < found["folded"], found


def test_neither_is_as_coarse_as_uint8(windows: Windows) -> None:
    found = forward_errors(windows, initial())
    assert max(found["direct"], found["folded"]) < found["uint8"], found
