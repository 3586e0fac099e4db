"""The net as users of plain PyTorch write it, and their training step: what ours is measured beside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import InputError

PRECISIONS = ("float32", "tf32", "autocast")
RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 0.0005  # the paper's, section 5

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images, labels -> loss, nats, on the device and not waited for


class EagerAlexNet(nn.Module):
    """(n, 3, side, side) pictures less their mean -> (n, classes) logits: the paper's layers by PyTorch's own modules.

    maps, hidden: of the five convolutions and of fc6 and fc7, totals over both columns, which are `groups=2`. Weights are drawn from
    N(0, 0.01) and biases set as in the paper, section 5. One thing differs from our net: F.local_response_norm knows no columns, so
    the four maps beside their border are normalised over both.
    """

    def __init__(
        self,
        classes: int = 1000,
        maps: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256),
        hidden: tuple[int, int] = (4096, 4096),
        side: int = 227,
    ) -> None:
        super().__init__()
        m1, m2, m3, m4, m5 = maps
        self.conv1 = nn.Conv2d(3, m1, 11, stride=4)
        self.conv2 = nn.Conv2d(m1, m2, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(m2, m3, 3, padding=1)
        self.conv4 = nn.Conv2d(m3, m4, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(m4, m5, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(m5 * _last_side(side) ** 2, hidden[0])
        self.fc7 = nn.Linear(hidden[0], hidden[1])
        self.fc8 = nn.Linear(hidden[1], classes)
        for name, layer in self.named_children():
            assert isinstance(layer, nn.Conv2d | nn.Linear), name
            assert layer.bias is not None, name
            nn.init.normal_(layer.weight, 0.0, 0.01)
            nn.init.constant_(layer.bias, 0.0 if name in ("conv1", "conv3", "fc8") else 1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(_lrn(F.relu(self.conv1(images))), 3, 2)
        x = F.max_pool2d(_lrn(F.relu(self.conv2(x))), 3, 2)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2)
        x = F.dropout(F.relu(self.fc6(x.flatten(1))), 0.5, self.training)
        x = F.dropout(F.relu(self.fc7(x)), 0.5, self.training)
        logits: torch.Tensor = self.fc8(x)
        return logits


def _lrn(x: torch.Tensor) -> torch.Tensor:
    """Section 3.3 as printed: torch divides alpha by n."""
    return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


def _last_side(side: int) -> int:
    """Of the maps after conv1, stride 4, and three poolings: 227 -> 55, 27, 13, 6."""
    side = (side - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


def make_step(net: nn.Module, precision: str, compiled: bool, device: torch.device) -> Step:
    """Forward, mean cross-entropy, backward and torch.optim.SGD, written as in PyTorch's tutorials. net: on `device` already.

    precision: "float32" with TF32 off, "tf32", GPUs only, for convolutions and products, or "autocast" to bfloat16, with TF32 on a GPU for
    what stays in float32. compiled: torch.compile, in its default mode. Raises InputError for what cannot be had here.
    """
    check_step(precision, compiled, device)
    if compiled:
        torch.compiler.reset()  # it would remember another batch, and compile for any batch
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(net) if compiled else net
    optimiser = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with _tf32(precision != "float32", device):
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimiser.step()
        return loss.detach()

    return step


def check_step(precision: str, compiled: bool, device: torch.device) -> None:
    """Raises InputError where make_step cannot be had on this machine."""
    if precision not in PRECISIONS:
        raise InputError(f"a step is of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise InputError("TF32 is a format of NVIDIA's GPUs; on the CPU use float32 or autocast")
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"] if device.type == "cpu" else ["gcc", "cc", "clang"]
    if compiled and not any(shutil.which(name) for name in compilers):
        raise InputError(f"torch.compile needs a C++ compiler here, and none of {', '.join(compilers)} is found; install one")


def _tf32(on: bool, device: torch.device) -> AbstractContextManager[object]:
    return _set_tf32(on) if device.type == "cuda" else nullcontext()


@contextmanager
def _set_tf32(on: bool) -> Iterator[None]:
    """By the older of torch's two interfaces: torch.compile reads that one, and fails where the newer was used (pytorch #166387)."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
