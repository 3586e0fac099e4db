"""What a training would do, and take: `python -m model.train --dry-run`. Twenty real steps are measured; nothing is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import islice

import torch

from model.loop import enter_epoch, one_step
from model.run import Run
from model.traffic import table

WARM_UP, MEASURED = 3, 20  # steps
FLOAT = 4  # bytes of a parameter, a gradient, a velocity


@dataclass
class Kept:
    """Bytes that a step keeps for its backward pass, each storage once, the parameters not counted."""

    parameters: set[int]
    seen: set[int] = field(default_factory=set)
    bytes: int = 0

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters | self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


@dataclass(frozen=True)
class Measured:
    """Of one rank: steps measured, seconds a step and of them waiting for data, bytes kept for backward, most memory of a GPU."""

    steps: int
    step: float
    wait: float
    activations: int
    peak: int


def measure(run: Run) -> Measured:
    """Train for a few steps. Every rank calls it."""
    enter_epoch(run)
    there = len(run.train)
    steps = max(1, min(MEASURED, there - WARM_UP))
    kept = Kept({parameter.untyped_storage().data_ptr() for parameter in run.net.parameters()})
    began = asked = time.perf_counter()
    waited = 0.0
    for number, batch in enumerate(islice(run.train, min(there, WARM_UP + steps))):
        if number == there - steps or number == WARM_UP:  # what is before has warmed up
            _synchronise(run)
            began, waited = time.perf_counter(), 0.0
        else:
            waited += time.perf_counter() - asked
        with torch.autograd.graph.saved_tensors_hooks(kept.note if number == 0 else lambda tensor: tensor, lambda tensor: tensor):
            one_step(run, batch)
        asked = time.perf_counter()
    _synchronise(run)
    peak = torch.cuda.max_memory_allocated(run.layout.device) if run.layout.device.type == "cuda" else 0
    return Measured(steps, (time.perf_counter() - began) / steps, waited / steps, kept.bytes, peak)


def _synchronise(run: Run) -> None:
    if run.layout.device.type == "cuda":
        torch.cuda.synchronize(run.layout.device)


def lines(run: Run, measured: Measured) -> list[str]:
    """The answer, for the user."""
    layout, recipe, batch = run.layout, run.recipe, run.recipe.train.batch
    steps = len(run.train.shards) // batch
    parameters = sum(parameter.numel() for parameter in run.net.parameters()) * FLOAT
    rest = "" if not measured.peak else f" (most in use: {measured.peak / 2**20:,.0f} MiB)"
    epoch = steps * measured.step
    most, validated = recipe.train.epochs, len(run.val.shards) if run.val is not None else 0
    validation = validated * measured.step / batch / 3  # forward only
    rate, wait = batch / measured.step, 100 * measured.wait / measured.step
    return [
        _row("layout", layout.describe()),
        _row(
            "pictures",
            f"{len(run.train.shards):,} for training, {validated:,} for validation, {run.net.num_classes} classes",
        ),
        _row("batch", f"{batch}, {batch // layout.world} decoded by each rank, {batch // layout.data_count} trained on by each replica"),
        _row("steps", f"{steps:,} an epoch, at most {most} epochs ({recipe.train.schedule} schedule), {steps * most:,} in all"),
        _row("memory of a device", f"parameters {parameters / 2**20:,.1f} MiB, gradients as much, velocities as much,"),
        _row("", f"activations kept for the backward pass {measured.activations / 2**20:,.1f} MiB{rest}"),
        _row(
            f"a step, of {measured.steps} measured",
            f"{1000 * measured.step:,.1f} ms, {rate:,.1f} images/s, {wait:.1f} % of it waiting for data",
        ),
        _row("an epoch", f"about {_time(epoch)}, and {_time(validation)} for its validation, at a third of a training image"),
        _row("all", f"about {_time(most * (epoch + validation))}"),
        "",
        *table(layout, recipe.model, run.net.num_classes, batch),
    ]


def _row(name: str, text: str) -> str:
    return f"  {name:<28}{text}"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
