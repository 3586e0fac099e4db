"""A training run on one rank: what it is made of, how it begins or goes on, and how it is saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from model import checkpoint
from model.alexnet import AlexNet, gather_parameter, own_part, whole_state
from model.layout import Layout
from model.metrics import Metrics
from model.pictures import Source, train_loader, validation_loader
from model.recipe import Recipe
from model.schedule import Schedule
from model.sgd import PaperSGD
from model.stop import StopRequest
from pipeline import STAGES, ImageLoader, InputError


@dataclass
class Run:
    """A training run on one rank."""

    folder: Path
    recipe: Recipe
    layout: Layout
    net: AlexNet
    model: torch.nn.Module  # the net, or the net in its data-parallel wrapping
    optimiser: PaperSGD
    schedule: Schedule
    train: ImageLoader
    val: ImageLoader | None
    metrics: Metrics
    stop: StopRequest
    source: Source
    step: int = 0
    unvalidated: bool = False  # an epoch was finished and saved, but not yet validated
    window: Window = field(default_factory=lambda: Window())
    spent: Spent = field(default_factory=lambda: Spent())


@dataclass
class Window:
    """What has gathered since the last log line, and over the epoch. Losses stay on the device until they are read."""

    losses: list[torch.Tensor] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    epoch_loss: float = 0.0
    epoch_steps: int = 0


@dataclass
class Spent:
    """Where the time of this process's training went, for the table at its end; validation is not in it.

    seconds: of training, and of them `waited` for data; loader: seconds of each stage of the loader.
    """

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    loader: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, images: int, seconds: float, waited: float, loader_percent: Mapping[Any, float]) -> None:
        self.images, self.seconds, self.waited = self.images + images, self.seconds + seconds, self.waited + waited
        for stage in STAGES:
            self.loader[stage] += seconds * loader_percent[stage] / 100

    def table(self, skipped: int) -> list[str]:
        """Lines of the end-of-run table."""
        if not self.seconds:
            return []
        share = {stage: 100 * value / self.seconds for stage, value in self.loader.items()}
        return [
            f"  {'images trained on, since the start or resume':<46} {self.images:,}",
            f"  {'images/s while training':<46} {self.images / self.seconds:,.1f}",
            f"  {'waiting for data':<46} {100 * self.waited / self.seconds:.1f} %",
            f"  {'the loader:  ' + ', '.join(STAGES):<46} {', '.join(f'{share[stage]:.1f}' for stage in STAGES)} %",
            f"  {'pictures skipped':<46} {skipped:,}",
        ]


def save_run(run: Run, best: bool) -> None:
    """Gather the whole net and its velocities, and write a checkpoint from the first rank."""
    net, manifest = run.net, run.train.shards.manifest
    velocity = {name: gather_parameter(net, name, run.optimiser.velocity(p)) for name, p in net.named_parameters()}
    model = whole_state(net)
    if not run.layout.first:
        return
    content = {
        "model": model,
        "velocity": velocity,
        "schedule": run.schedule.state_dict(),
        "loader": run.train.state_dict(),
        "unvalidated": run.unvalidated,
        "metrics_bytes": run.metrics.bytes_written(),
        "recipe": run.recipe.model_dump(mode="json"),
        "classes": net.num_classes,
        "wnids": [entry.wnid for entry in manifest.classes],
    }
    checkpoint.save(run.folder / "checkpoints", run.step, content, best)


def _parameter_groups(net: AlexNet, recipe: Recipe) -> list[dict[str, Any]]:
    """Four groups by the names that Schedule.rates gives rates to."""
    t, groups = recipe.train, []
    for name in ("conv1.weight", "conv1.bias", "weight", "bias"):
        kind = name.split(".")[-1]
        chosen = [p for n, p in net.named_parameters() if n == name or (name == kind and n.endswith(kind) and not n.startswith("conv1."))]
        groups.append({"name": name, "params": chosen, "weight_decay": t.weight_decay if kind == "weight" else t.bias_weight_decay})
    return groups


def build_run(folder: Path, recipe: Recipe, layout: Layout, source: Source, resumed: dict[str, Any] | None) -> Run:
    """A run at its beginning, or where the checkpoint `resumed` left it. Raises InputError."""
    loader = train_loader(source, recipe, layout, resumed["loader"]["epoch"] if resumed else 0)
    manifest = loader.shards.manifest
    has_val = "val" in manifest.splits and manifest.splits["val"].samples > 0
    if not has_val and recipe.train.schedule == "plateau":
        raise InputError(f"{source.shards} has no validation pictures, which schedule: plateau goes by; use --set train.schedule=fixed")
    net = AlexNet(len(manifest.classes), recipe.model, layout.columns, seed=recipe.train.seed)
    net.to(layout.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = PaperSGD(_parameter_groups(net, recipe), recipe.train.rate, recipe.train.momentum)
    schedule = Schedule(recipe.train)
    resume_at = None
    if resumed:
        loader.load_state_dict(resumed["loader"])
        schedule.load_state_dict(resumed["schedule"])
        resume_at = (resumed["metrics_bytes"], resumed["step"])
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(own_part(net, name, resumed["model"][name]))
                optimiser.velocity(parameter).copy_(own_part(net, name, resumed["velocity"][name]))
    model = DistributedDataParallel(net, process_group=layout.data_group) if layout.data_group is not None else net
    val, stop = validation_loader(source, recipe, layout, 1) if has_val else None, StopRequest(layout.control_group)
    if layout.world == 1:  # more ranks agree on the step that they stop after, and so must wait for its batch
        for one in (loader, val) if val is not None else (loader,):
            one.given_up = stop.noted
    return Run(
        folder=folder,
        recipe=recipe,
        layout=layout,
        net=net,
        model=model,
        optimiser=optimiser,
        schedule=schedule,
        train=loader,
        val=val,
        metrics=Metrics(folder if layout.first else None, resume_at),
        stop=stop,
        source=source,
        step=resumed["step"] if resumed else 0,
        unvalidated=resumed["unvalidated"] if resumed else False,
    )
