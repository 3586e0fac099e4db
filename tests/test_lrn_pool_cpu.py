"""The fused ReLU, LRN and pooling of the CPU against the plain ones, mostly in float64."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import lrn_pool_cpu
from model.lrn import lrn, lrn_plain
from model.lrn_pool import relu_lrn_pool, relu_lrn_pool_plain

PAPER: dict[str, Any] = {"relu": True, "columns": 2, "k": 2.0, "n": 5, "alpha": 1e-4, "beta": 0.75}
STRONG = {**PAPER, "alpha": 0.01}  # sums that count as much as k, on maps() of 30
HALF_ROUNDING, FLOAT_ROUNDING = 2.0**-8, 1e-6  # of bfloat16, relative; of some float32 operations one after the other
Arrays = tuple[torch.Tensor, ...]


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def maps(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 30
    return drawn.to(dtype).contiguous(memory_format=torch.channels_last)


def fused(x: torch.Tensor, gradient: torch.Tensor, settings: dict[str, Any]) -> Arrays:
    """Pooled, places, and the gradient of x."""
    pooled, places = lrn_pool_cpu.forward(x, **settings)
    return pooled, places, lrn_pool_cpu.backward(gradient, places, x, **settings)


def plain(x: torch.Tensor, gradient: torch.Tensor, settings: dict[str, Any]) -> Arrays:
    """Pooled and the gradient of x, in float64."""
    wide = x.double().requires_grad_()
    pooled = relu_lrn_pool_plain(wide, **settings)
    return pooled.detach(), torch.autograd.grad(pooled, wide, gradient.double())[0]


def normalised(x: torch.Tensor, *, relu: bool, **settings: Any) -> torch.Tensor:
    return lrn(F.relu(x) if relu else x, **settings)


def at_places(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What max_pool2d would give if the largest values were at these places; differentiable."""
    indices = torch_indices(places, values.shape[3])
    return values.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)


def torch_indices(places: torch.Tensor, w: int) -> torch.Tensor:
    """Places as max_pool2d gives them: y * w + x in the map."""
    y, x = (torch.arange(extent) * 2 for extent in places.shape[2:])
    place = places.long()
    return (y[:, None] + place // 3) * w + x + place % 3


def error(actual: torch.Tensor, exact: torch.Tensor, relative: float) -> float:
    """The largest error in units of what `relative` and a millionth of the largest value allow."""
    allowed = relative * exact.abs() + FLOAT_ROUNDING * exact.abs().max()
    return float(((actual.double() - exact).abs() / allowed).max())


@pytest.mark.parametrize("shape", [(3, 96, 7, 9), (2, 96, 4, 15), (5, 6, 3, 3), (1, 32, 6, 8), (2, 34, 5, 4)])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("relu", [True, False])
def test_float32_is_the_plain_form(shape: tuple[int, ...], columns: int, relu: bool) -> None:
    settings = {**STRONG, "columns": columns, "relu": relu}
    x = maps(*shape)
    gradient = torch.randn_like(relu_lrn_pool_plain(x, **settings))
    (pooled, _, dx), (exact, exact_dx) = fused(x, gradient, settings), plain(x, gradient, settings)
    assert pooled.shape == exact.shape
    assert error(pooled, exact, FLOAT_ROUNDING) <= 1
    assert error(dx, exact_dx, FLOAT_ROUNDING) <= 1


OTHERS = [{"n": 1}, {"n": 3}, {"n": 7}, {"n": 13}, {"beta": 0.5}, {"beta": 1.3, "n": 3}, {"k": 0.5, "alpha": 1e-4}, {"alpha": 0.0}]


@pytest.mark.parametrize("change", OTHERS)
def test_other_settings(change: dict[str, Any]) -> None:
    """Among them windows wider than a column of maps."""
    settings, x = {**STRONG, **change}, maps(2, 20, 5, 7)
    gradient = maps(2, 20, 2, 3, seed=1)
    (pooled, _, dx), (exact, exact_dx) = fused(x, gradient, settings), plain(x, gradient, settings)
    assert error(pooled, exact, 2 * FLOAT_ROUNDING) <= 1
    assert error(dx, exact_dx, 2 * FLOAT_ROUNDING) <= 1


@pytest.mark.parametrize("shape", [(3, 96, 7, 9), (2, 96, 4, 15), (2, 34, 5, 4)])
@pytest.mark.parametrize("change", [{}, {"columns": 1}, {"relu": False}, {"n": 3, "beta": 0.5}])
def test_bfloat16_is_off_by_one_rounding(shape: tuple[int, ...], change: dict[str, Any]) -> None:
    """Against float64, pooled values and, for the places chosen, gradients; the places hold what is largest once rounded."""
    settings, x = {**STRONG, **change}, maps(*shape, dtype=torch.bfloat16)
    gradient = torch.randn_like(relu_lrn_pool_plain(x, **settings))
    pooled, places, dx = fused(x, gradient, settings)
    assert pooled.dtype == dx.dtype == torch.bfloat16
    wide = x.double().requires_grad_()
    chosen = at_places(normalised(wide, **settings), places)
    (exact_dx,) = torch.autograd.grad(chosen, wide, gradient.double())
    exact = relu_lrn_pool_plain(x.double(), **settings)
    assert error(pooled, exact, HALF_ROUNDING) <= 1
    assert error(chosen.detach(), exact, 2 * HALF_ROUNDING) <= 1
    assert error(dx, exact_dx, HALF_ROUNDING) <= 1


def test_rounds_to_bfloat16_as_pytorch_does() -> None:
    """Halves both ways, what becomes infinite, the smallest numbers, and NaN of which only the lower bits say that they are."""
    drawn = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    halves = drawn & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    special = np.array([0x7F800001, 0xFFBFFFFF, 0x7F800000, 0x7F7FFFFF, 0xFF7F8000, 1, 0x8000, 0x18000, 0x80000000], np.uint32)
    values, bits = np.concatenate([drawn, halves, special]).view(np.float32), np.empty(20_009, np.uint16)
    lrn_pool_cpu._narrow(bits, values)
    ours = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(ours, torch.from_numpy(values).to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [True, False])
def test_the_first_of_equal_values_counts(dtype: torch.dtype, relu: bool) -> None:
    whole = torch.randint(-3, 4, (3, 36, 8, 9), generator=torch.Generator().manual_seed(0))
    x = whole.to(dtype).contiguous(memory_format=torch.channels_last)
    _, places = lrn_pool_cpu.forward(x, **{**PAPER, "alpha": 0.0, "relu": relu})
    _, indices = F.max_pool2d(F.relu(x) if relu else x, 3, 2, return_indices=True)
    assert torch.equal(torch_indices(places, 9), indices)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_passes_as_in_pytorch_and_no_further(relu: bool, dtype: torch.dtype) -> None:
    """lrn itself, being a matrix product, would spread it over all maps of a pixel."""
    settings, x, gradient = {**STRONG, "relu": relu}, maps(2, 20, 7, 7, dtype=dtype), maps(2, 20, 3, 3, dtype=dtype, seed=1)
    x[0, 9, 2, 2] = x[0, 9, 2, 3] = x[1, 0, 0, 0] = x[1, 15, 6, 6] = torch.nan
    pooled, places, dx = fused(x, gradient, settings)
    wide = x.double().requires_grad_()
    within = {name: value for name, value in settings.items() if name != "relu"}
    exact, indices = F.max_pool2d(lrn_plain(F.relu(wide) if relu else wide, **within), 3, 2, return_indices=True)
    (exact_dx,) = torch.autograd.grad(exact, wide, gradient.double())
    assert exact.isnan().any()
    assert torch.equal(pooled.isnan(), exact.isnan())
    assert torch.equal(torch_indices(places, 7)[exact.isnan()], indices[exact.isnan()])
    assert torch.equal(dx.isnan(), exact_dx.isnan())
    there = ~exact.isnan()
    assert error(pooled[there], exact[there].detach(), HALF_ROUNDING) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    x, gradient = maps(7, 34, 9, 8, dtype=dtype), maps(7, 34, 4, 3, dtype=dtype, seed=1)
    both = fused(x, gradient, STRONG)
    torch.set_num_threads(1)
    for two, one in zip(both, fused(x, gradient, STRONG), strict=True):
        assert torch.equal(two, one)


def test_any_layout_of_maps_and_gradient() -> None:
    """Through autograd: maps that lie channels first, and gradients that lie anyhow, or are one number."""
    x = maps(2, 6, 7, 9).contiguous().requires_grad_()
    for gradient in (maps(2, 3, 4, 6).permute(0, 3, 1, 2), torch.tensor(2.0).expand(2, 6, 3, 4)):
        dx, exact = (torch.autograd.grad(pool(x, **STRONG), x, gradient)[0] for pool in (relu_lrn_pool, relu_lrn_pool_plain))
        assert error(dx, exact.double(), FLOAT_ROUNDING) <= 1


def test_inside_autocast() -> None:
    """Between convolutions in bfloat16: as far from float32 as the plain form is, give or take a tenth."""
    images, draw = maps(4, 3, 19, 19), torch.Generator().manual_seed(3)
    first, second = (torch.randn(shape, generator=draw) * 0.05 for shape in ((32, 3, 3, 3), (8, 32, 3, 3)))

    def gradients(pool: Any, half: bool) -> torch.Tensor:
        weights = first.clone().requires_grad_(), second.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            pooled = pool(F.conv2d(images, weights[0]), **STRONG)
            assert pooled.dtype == (torch.bfloat16 if half else torch.float32)
            loss = F.conv2d(pooled, weights[1]).float().square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    exact = gradients(relu_lrn_pool_plain, half=False)
    ours, plains = ((gradients(pool, half=True) - exact).norm() / exact.norm() for pool in (relu_lrn_pool, relu_lrn_pool_plain))
    assert ours < min(0.02, 1.1 * plains)


def test_no_pictures_and_too_small_ones() -> None:
    pooled, places, dx = fused(maps(0, 4, 5, 5), maps(0, 4, 2, 2), PAPER)
    assert pooled.shape == places.shape == (0, 4, 2, 2)
    assert dx.shape == (0, 4, 5, 5)
    with pytest.raises(ValueError, match="2 x 5"):
        lrn_pool_cpu.forward(maps(1, 4, 2, 5), **PAPER)


def test_every_piece_is_taken_once_and_a_failure_is_told() -> None:
    taken: list[int] = []
    lrn_pool_cpu.on_threads(taken.append, range(100))
    assert sorted(taken) == list(range(100))
    with pytest.raises(ZeroDivisionError):
        lrn_pool_cpu.on_threads(lambda piece: 1 // (piece - 50), range(100))


def _in_a_child(x: torch.Tensor, expected: torch.Tensor) -> None:
    torch.set_num_threads(2)
    assert torch.equal(lrn_pool_cpu.forward(x, **PAPER)[0], expected)


def test_a_forked_process_has_threads_of_its_own() -> None:
    x = maps(6, 8, 5, 5)
    pooled, _ = lrn_pool_cpu.forward(x, **PAPER)
    child = multiprocessing.get_context("fork").Process(target=_in_a_child, args=(x, pooled))
    child.start()
    child.join(60)
    code = child.exitcode  # None: it hangs
    child.kill()
    assert code == 0
