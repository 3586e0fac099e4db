"""Measure a training step of two columns on two ranks, with the exchanges plain and overlapped with computing.

python -m model.bench_exchange [--batch 32] [--rounds 12]

The paper's net on random pictures: forward, backward and update, without a loader. Both ways take turns, each round the other
one first, so that a noisy machine hits both alike. Medians are printed; every round is written to docs/benchmarks/exchange.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.alexnet import AlexNet
from model.columns import Columns
from model.launch import launch, under_launcher
from model.layout import Layout, choose, join
from model.memory import keep_freed_memory
from model.net import MaskDraw
from model.sgd import PaperSGD
from model.step import PlainStep
from pipeline import atomic_file, one_line_errors

WARM_UP = 2  # steps of each way


def step_seconds(net: AlexNet, optimiser: PaperSGD, images: torch.Tensor, labels: torch.Tensor, step: int) -> float:
    """One step on both ranks, from when both are ready until this one has its new weights."""
    _meet(images.device)
    began = time.perf_counter()
    PlainStep(net, optimiser)(images, labels, MaskDraw(0, step, len(images)))
    _meet(images.device)
    return time.perf_counter() - began


def _meet(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def measure(layout: Layout, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round's step, plain and overlapped."""
    assert isinstance(layout.columns, Columns), "the exchange is between columns"
    net = AlexNet(columns=layout.columns)
    net.to(layout.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = PaperSGD(net.parameters(), rate=0.0001)
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn(batch, 3, 227, 227, generator=generator) * 50).to(layout.device, memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), generator=generator).to(layout.device)
    seconds: dict[str, list[float]] = {"plain": [], "overlapped": []}
    for number in range(WARM_UP + rounds):
        for way in sorted(seconds, reverse=number % 2 == 0):
            net.columns = replace(layout.columns, overlap=way == "overlapped")
            seconds[way].append(step_seconds(net, optimiser, images, labels, number))
    return {way: taken[WARM_UP:] for way, taken in seconds.items()}


def summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median milliseconds of a step of each way, and the median over rounds of how much less overlapped takes, in percent."""
    medians: dict[str, float] = {f"{way}_ms": round(1000 * statistics.median(taken), 1) for way, taken in seconds.items()}
    gains = [100 * (1 - b / a) for a, b in zip(seconds["plain"], seconds["overlapped"], strict=True)]
    return {**medians, "gain_percent": round(statistics.median(gains), 1)}


def _machine(device: torch.device) -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": names[0] if names else platform.processor(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def _on_rank(given: argparse.Namespace) -> int:
    layout = join(2, given.device, given.batch)
    threads = max(1, len(os.sched_getaffinity(0)) // layout.world)
    torch.set_num_threads(threads)
    keep_freed_memory(layout.device)
    seconds = measure(layout, given.batch, given.rounds)
    if layout.first:
        result = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": _machine(layout.device),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "settings": {"batch": given.batch, "rounds": given.rounds, "ranks": 2, "threads_a_rank": threads, "backend": dist.get_backend()},
            "summary": summary(seconds),
            "seconds": {way: [round(value, 4) for value in taken] for way, taken in seconds.items()},
        }
        with atomic_file(given.out, "w") as file:
            json.dump(result, file, indent=1)
        for name, value in summary(seconds).items():
            print(f"{name.replace('_', ' '):<20}{value:>10}")
    dist.destroy_process_group()
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A step of two columns on two ranks, exchanges plain and overlapped.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/exchange.json"))
    given = parser.parse_args(arguments)
    with one_line_errors():
        if under_launcher():
            return _on_rank(given)
        ranks, _, device = choose(2, 2, given.device, given.batch)
        words = sys.argv[1:] if arguments is None else arguments
        return launch(ranks, "model.bench_exchange", lambda: [*words, "--device", device])
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
