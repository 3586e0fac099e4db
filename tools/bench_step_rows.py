"""What the rows of tools/bench_step.py do: the paper's net on a batch that lies in the device's memory, its labels too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from model.alexnet import AlexNet
from model.layout import Layout
from model.memory import keep_freed_memory
from model.net import MaskDraw
from model.recipe import Recipe, Training
from model.sgd import PaperSGD
from model.step import HalfStep, PlainStep, Step, make_step, ways_for
from model.ways import Precision, Ways
from tools.plain_nets import EagerAlexNet
from tools.plain_nets import make_step as make_peer_step

CLASSES, RATE = 1000, 1e-4  # of random pictures nothing is to be learned: a rate with which the loss stays a number

Take = Callable[[], torch.Tensor]  # one step; its loss, not waited for


@dataclass(frozen=True)
class Row:
    """key; what: is in it; make: for a batch and device, one step. peer: of another program, without what ours does to its process."""

    key: str
    what: str
    make: Callable[[int, torch.device], Take]
    peer: bool = False
    off: str = ""  # the way that this row, otherwise the quickest, does without


def rows(device: torch.device) -> list[Row]:
    """Peers, ours plain and quick, and the quickest with one way off at a time."""
    gpu = device.type == "cuda"
    return [*_peers(gpu), *_ours(gpu), *_without(gpu)]


def _peers(gpu: bool) -> list[Row]:
    eager = "PyTorch: eager, channels first, F.local_response_norm, torch.optim.SGD"
    kinds = [("eager-float32", "float32", False, "float32"), ("eager-bfloat16", "autocast", False, "autocast to bfloat16")]
    if gpu:
        kinds[1:1] = [("eager-tf32", "tf32", False, "TF32")]
        kinds += [("compiled-tf32", "tf32", True, "TF32, torch.compile"), ("compiled-bfloat16", "autocast", True, "autocast, torch.compile")]
    return [Row(key, f"{eager}, {words}", _peer(precision, compiled), peer=True) for key, precision, compiled, words in kinds]


def _peer(precision: str, compiled: bool) -> Callable[[int, torch.device], Take]:
    def make(batch: int, device: torch.device) -> Take:
        images, labels = random_batch(batch, device)
        step = make_peer_step(EagerAlexNet(CLASSES).to(device), precision, compiled, device)
        return lambda: step(images, labels)

    return make


@dataclass(frozen=True)
class Mine:
    """How a row of ours takes its steps. ways: what it changes in those that training would use."""

    precision: Precision
    plain: bool = False  # PyTorch's own operators
    graph: bool = True
    casts: bool = False  # weights cast in each step, not kept in bfloat16 beside
    one_pass: bool = True  # of the update
    ways: Callable[[Ways], Ways] = field(default=lambda ways: ways)

    def __call__(self, batch: int, device: torch.device) -> Take:
        keep_freed_memory(device)
        torch.backends.cudnn.benchmark = True  # as training sets it
        images, labels = random_batch(batch, device)
        images, net = images.contiguous(memory_format=torch.channels_last), AlexNet(CLASSES)
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        recipe = Recipe(train=Training(batch=batch, rate=RATE, precision=self.precision, step="plain" if self.plain else "fast"))
        net.ways = self.ways(ways_for(net, recipe, Layout(device=device)))
        optimiser = PaperSGD(net.parameters(), RATE, fused=self.one_pass and not self.plain)
        step, taken = self._step(net, optimiser, recipe, device), 0

        def take() -> torch.Tensor:
            nonlocal taken
            taken += 1
            return step(images, labels, MaskDraw(0, taken, batch))

        return take

    def _step(self, net: AlexNet, optimiser: PaperSGD, recipe: Recipe, device: torch.device) -> Step:
        if self.casts:
            return PlainStep(net, optimiser)
        if not self.graph and not self.plain and net.ways.half:
            return HalfStep(net, optimiser)
        return make_step(net, net, optimiser, recipe, Layout(device=device), graph=self.graph)


def _ours(gpu: bool) -> list[Row]:
    plain = "ours, plain: channels last, LRN as a matrix product, PyTorch's operators, four passes of SGD"
    quick = "ours: ReLU, LRN and pooling in one pass, SGD in one pass"
    most = f"{quick}, bfloat16 weights beside the float32 ones{', conv1 on blocks of pixels, one CUDA graph' if gpu else ''}"
    return [
        Row("plain-float32", f"{plain}, float32", Mine("float32", plain=True)),
        Row("fast-float32", f"{quick}, float32", Mine("float32")),
        Row("plain-bfloat16", f"{plain}, autocast to bfloat16", Mine("bfloat16", plain=True)),
        Row("fast-bfloat16", most, Mine("bfloat16")),
    ]


def _without(gpu: bool) -> list[Row]:
    """The quickest, with one way off."""
    off: list[tuple[str, str, Mine]] = [
        ("unfused", "ReLU, LRN and pooling one after the other", Mine("bfloat16", ways=lambda ways: replace(ways, fused=False))),
        ("casts", "weights and gradients cast in each step, no copy", Mine("bfloat16", casts=True)),
        ("four-passes", "SGD in four passes", Mine("bfloat16", one_pass=False)),
    ]
    if gpu:
        off += [
            ("ungraphed", "no CUDA graph", Mine("bfloat16", graph=False)),
            ("conv1-direct", "conv1 on three channels", Mine("bfloat16", ways=lambda ways: replace(ways, blocks=False))),
            ("grouped", "all convolutions of two columns grouped", Mine("bfloat16", ways=lambda ways: replace(ways, forms={}))),
        ]
    return [Row(f"fast-bfloat16-{key}", f"ours, but: {words}", mine, off=key) for key, words, mine in off]


def random_batch(batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, 3, 227, 227) float32 with the spread of pictures less their mean, and (batch,) labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 227, 227, generator=generator) * 60
    return images.to(device), torch.randint(0, CLASSES, (batch,), generator=generator).to(device)
