"""The fused parts of a step beside their plain forms, one call after the other: part of tools/bench_step.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from model.alexnet import AlexNet
from model.design import Design
from model.lrn_pool import relu_lrn_pool, relu_lrn_pool_plain
from model.sgd import PaperSGD

TRIES = 5  # of each form in a round; the quickest counts


def parts(device: torch.device, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds, medians of the rounds, in which plain and fused take turns: ReLU, LRN and pooling of both layers, both ways; the update."""
    found = []
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        found.append(_timed("ReLU, LRN, pool", name, batch, device, rounds, partial(_normalise, batch, device, kind)))
    return [*found, _timed("update", "float32", 0, device, rounds, partial(_update, device))]


def _timed(part: str, precision: str, batch: int, device: torch.device, rounds: int, make: Callable[[bool], Callable[[], None]]) -> dict[str, Any]:
    works, seconds = {fused: make(fused) for fused in (False, True)}, dict[bool, list[float]]()
    for _ in range(rounds):
        for fused, work in works.items():
            seconds.setdefault(fused, []).append(min(_seconds(work, device) for _ in range(TRIES)))
    plain, fused_ms = (1e3 * statistics.median(seconds[fused]) for fused in (False, True))
    return {"part": part, "precision": precision, "batch": batch, "plain_ms": plain, "fused_ms": fused_ms}


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":  # between events: launching is not what a graphed step pays
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _normalise(batch: int, device: torch.device, kind: torch.dtype, fused: bool) -> Callable[[], None]:
    """Both layers of the paper, forward and backward."""
    design, form = Design(), relu_lrn_pool if fused else relu_lrn_pool_plain
    side1, side2, *_ = design.sides()
    layers = []
    for maps, side in ((design.maps[0], side1), (design.maps[1], side2)):
        x = 30 * torch.randn(batch, maps, side, side, device=device)
        layers.append(x.to(kind).contiguous(memory_format=torch.channels_last).requires_grad_())

    def work() -> None:
        for x in layers:
            x.grad = None
            assert design.lrn is not None, "the paper has it"
            pooled = form(x, relu=True, columns=2, **design.lrn.printed())  # type: ignore[arg-type]
            pooled.backward(torch.ones_like(pooled))

    return work


def _update(device: torch.device, fused: bool) -> Callable[[], None]:
    """SGD of the paper's net."""
    net = AlexNet().to(device)
    optimiser = PaperSGD(net.parameters(), 1e-6, fused=fused)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)

    def work() -> None:
        optimiser.step()

    return work
