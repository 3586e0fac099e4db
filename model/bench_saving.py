"""How long training stands still for a checkpoint of the paper's net, and what saving in the background costs the steps meanwhile.

    python -m model.bench_saving [--batch 32] [--saves 5] [--out docs/benchmarks/saving.json]

One process, random pictures, the net and SGD of recipe alexnet. Steps without a save under way and with one take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from model.alexnet import AlexNet
from model.checkpoint import VELOCITY
from model.layout import choose
from model.memory import keep_freed_memory
from model.net import MaskDraw
from model.record import machine, versions
from model.saving import Saver
from model.sgd import PaperSGD
from model.step import PlainStep
from pipeline import atomic_file, one_line_errors

EVERY = 500  # steps between checkpoints, the default of model.train


def tensors(net: AlexNet, optimiser: PaperSGD) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in net.named_parameters():
        found[name] = parameter.detach().contiguous()
        found[VELOCITY + name] = optimiser.velocity(parameter).contiguous()
    return found


def measure(device: torch.device, batch: int, saves: int) -> dict[str, Any]:
    """Seconds: of a step alone, of one beside a save, of each pause, and of each save until it is on disk."""
    keep_freed_memory(device)
    net = AlexNet().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = PaperSGD(net.parameters())
    images, labels = torch.randn(batch, 3, 227, 227, device=device) * 60, torch.randint(0, 1000, (batch,), device=device)
    take, number = PlainStep(net, optimiser), 0

    def step() -> float:
        nonlocal number
        began, number = time.perf_counter(), number + 1
        float(take(images, labels, MaskDraw(0, number, batch)))
        return time.perf_counter() - began

    [step() for _ in range(3)]
    state = {"step": 0, "schedule": {}, "loader": {}, "unvalidated": False, "metrics_bytes": 0, "recipe": {}, "classes": 1000, "wnids": []}
    found: dict[str, Any] = {"alone": [], "beside": [], "pause": [], "until_on_disk": []}
    with tempfile.TemporaryDirectory() as place:
        saver = Saver(Path(place) / "checkpoints", None, True, device)
        for save in range(saves + 1):  # the first takes the memory that the others use again
            began = time.perf_counter()
            saver.begin(number, tensors(net, optimiser), {**state, "step": number}, best=False)
            pause, beside = time.perf_counter() - began, list[float]()
            while not saver.ready:
                beside.append(step())
            failed = saver.settle()
            if failed is not None:
                raise failed
            if save:
                found["pause"].append(pause)
                found["beside"] += beside
                found["until_on_disk"].append(time.perf_counter() - began)
                found["alone"] += [step() for _ in beside]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a checkpoint costs training.")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step (default: 32)")
    parser.add_argument("--saves", type=int, default=5, help="checkpoints measured (default: 5)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/saving.json"))
    given = parser.parse_args(arguments)
    with one_line_errors():
        _, _, device = choose(1, 1, given.device, given.batch)
        found = measure(torch.device(device), given.batch, given.saves)
        alone, beside, pause = (median(found[name]) for name in ("alone", "beside", "pause"))
        lost = pause + sum(found["beside"]) / given.saves - alone * len(found["beside"]) / given.saves
        share = {"pause": 100 * pause / EVERY / alone, "pause_and_slower_steps": 100 * lost / EVERY / alone}
        about = {"date": str(date.today()), "machine": machine(), "versions": versions(), "batch": given.batch, "every_steps": EVERY}
        with atomic_file(given.out, "w") as file:
            json.dump({**about, "seconds": found, "percent_of_a_step_at_one_checkpoint_per_500_steps": share}, file, indent=1)
        print(f"a step of batch {given.batch}: {1000 * alone:.0f} ms alone, {1000 * beside:.0f} ms beside a save")
        print(f"pause for a checkpoint: {1000 * pause:.0f} ms; on disk after {median(found['until_on_disk']):.1f} s")
        print(
            f"at one per {EVERY} steps: {share['pause']:.3f} % of the time for the pause, {share['pause_and_slower_steps']:.3f} % in all; {given.out}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
