"""train.deterministic: what is set where there is a GPU, as far as it can be seen without one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.activations import measure
from model.alexnet import AlexNet
from model.deterministic import CUBLAS, no_deterministic_form, set_deterministic
from model.layout import Layout
from model.net import MaskDraw
from model.recipe import read_recipe
from model.sgd import PaperSGD
from model.step import PlainStep
from pipeline import InputError

GPU = torch.device("cuda")  # its flags can be set without it
# What torch 2.13 refuses on GPUs where algorithms are to be deterministic, by the beginning of the name (torch.use_deterministic_algorithms).
REFUSED = (
    *("avg_pool3d_backward", "_adaptive_avg_pool", "adaptive_max_pool", "fractional_max_pool", "max_unpool", "upsample_", "reflection_pad"),
    *("nll_loss2d", "_ctc_loss", "_embedding_bag", "put_", "histc", "median", "grid_sampler", "cumsum", "scatter_reduce"),
)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(CUBLAS, raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop(CUBLAS, None)


def test_a_cpu_needs_nothing() -> None:
    set_deterministic(True, torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert CUBLAS not in os.environ


def test_a_gpu_is_bound_or_let_loose() -> None:
    set_deterministic(True, GPU)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ[CUBLAS] == ":4096:8"
    set_deterministic(False, GPU)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_what_the_environment_asks_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    set_deterministic(True, GPU)
    assert os.environ[CUBLAS] == ":16:8"
    monkeypatch.setenv(CUBLAS, ":0:0")
    with pytest.raises(InputError, match=f"{CUBLAS} is :0:0.*unset it"):
        set_deterministic(True, GPU)
    set_deterministic(False, GPU)


class Called(TorchDispatchMode):
    """The names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", ["alexnet", "alexnet-2012"])
def test_training_and_looking_call_nothing_that_is_refused(recipe: str) -> None:
    small = ["model.maps=[4, 8, 8, 8, 8]", "model.hidden=[16, 16]", "model.input=99"]
    net = AlexNet(4, read_recipe(recipe, small).alexnet)
    images = torch.randn(4, 3, 99, 99)
    with Called() as called:
        PlainStep(net, PaperSGD(net.parameters()))(images, torch.arange(4), MaskDraw(0, 0, 4))
        measure(net, images, Layout())
    assert {"convolution_backward", "max_pool2d_with_indices_backward", "nll_loss_backward", "bincount"} <= called.names
    assert [name for name in called.names if name.startswith(REFUSED)] == []
    with Called() as called:
        torch.histc(images)
    assert [name for name in called.names if name.startswith(REFUSED)] == ["histc"]


def test_what_torch_refuses_is_said_in_a_line() -> None:
    set_deterministic(True, GPU)
    with pytest.raises(RuntimeError) as refused:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # one that it refuses on CPUs too
    line = no_deterministic_form(refused.value)
    assert line == "train.deterministic: put_ has no deterministic form on this GPU; leave it out, or use --device cpu"
    assert no_deterministic_form(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
