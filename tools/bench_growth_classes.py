"""What more classes cost: manifest, net, step and evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from model.alexnet import AlexNet
from model.design import Design
from model.evaluate import evaluate
from model.layout import Layout
from model.net import MaskDraw
from model.recipe import read_recipe
from model.sgd import PaperSGD
from model.step import PlainStep
from pipeline.loader import ImageLoader
from pipeline.manifest import NAME, read_manifest
from tools.bench_growth_data import Written, lay_folder
from tools.bench_growth_rows import How

BATCH = 32
BYTES_A_PARAMETER = 12  # float32: the parameter, its gradient and its velocity

COSTS: dict[str, tuple[str, str, How]] = {
    "manifest_bytes": ("manifest, one shard of each split", "kB", "measured"),
    "manifest": ("manifest read and checked", "ms", "measured"),
    "net": ("AlexNet built", "s", "measured"),
    "parameters": ("AlexNet's parameters", "10^6", "arithmetic"),
    "memory": ("parameters, gradients, velocities of a rank", "MB", "arithmetic"),
    "fc8": (f"fc8 and loss: forward, backward, update, {BATCH}", "ms", "in process"),
    "small_step": (f"recipe small: a step of {BATCH}", "ms", "in process"),
    "top5": (f"softmax and top-5 of {BATCH}", "ms", "in process"),
    "evaluation": ("recipe small: evaluation of the split", "ms", "in process"),
}


def best_of(repeats: int, work: Callable[[], Any]) -> float:
    """Least milliseconds of one of several, after one more that warms up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def cost_of_classes(folder: Path, written: list[Written], classes: int, repeats: int) -> dict[str, float]:
    """COSTS at a number of classes; written: a shard of each split."""
    folder = lay_folder(folder, {"train": written, "val": written}, classes)
    total = sum(Design().parameters(classes).values())
    began = time.perf_counter()
    AlexNet(classes)
    return {
        "net": time.perf_counter() - began,
        "manifest_bytes": (folder / NAME).stat().st_size / 1000,
        "manifest": best_of(repeats, lambda: read_manifest(folder)),
        "parameters": total / 1e6,
        "memory": total * BYTES_A_PARAMETER / 1e6,
        "fc8": _fc8(classes, repeats),
        "top5": _top5(classes, repeats),
        **_small(folder, classes, repeats),
    }


def _fc8(classes: int, repeats: int) -> float:
    """The one layer that grows with the classes, as wide as the paper's."""
    layer, features = torch.nn.Linear(Design().hidden[-1], classes), torch.randn(BATCH, Design().hidden[-1])
    optimiser, labels = PaperSGD(layer.parameters()), torch.arange(BATCH) % classes

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(layer(features), labels).backward()
        optimiser.step()

    return best_of(repeats, step)


def _top5(classes: int, repeats: int) -> float:
    logits = torch.randn(BATCH, classes)
    return best_of(repeats, lambda: logits.softmax(dim=1).topk(min(5, classes), dim=1))


def _small(folder: Path, classes: int, repeats: int) -> dict[str, float]:
    """A step, and the evaluation of the split, loading included, of the net of recipe small."""
    design = read_recipe("small", []).alexnet
    net = AlexNet(classes, design)
    step, masks = PlainStep(net, PaperSGD(net.parameters())), MaskDraw(0, 0, BATCH)
    images, labels = torch.randn(BATCH, 3, design.input, design.input), torch.arange(BATCH) % classes
    loader = ImageLoader(folder, "val", batch=BATCH, crop=design.input)
    return {
        "small_step": best_of(repeats, lambda: step(images, labels, masks)),
        "evaluation": best_of(repeats, lambda: evaluate(net, loader, Layout())),
    }
