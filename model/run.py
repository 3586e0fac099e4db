"""A training run on one rank: what it is made of, how it begins or goes on, and how it is saved."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from model import checkpoint
from model.alexnet import AlexNet, gather_parameter, own_part, whole_state
from model.evaluate import augmentation, validation_loader
from model.layout import Layout
from model.metrics import Metrics
from model.recipe import Recipe
from model.schedule import Schedule
from model.sgd import PaperSGD
from model.stop import StopRequest
from pipeline import ImageLoader, InputError


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
    shards: str
    threads: int
    step: int = 0
    unvalidated: bool = False  # an epoch was finished and saved, but not yet validated
    window: Window = field(default_factory=lambda: Window())


@dataclass
class Window:
    """What has gathered since the last log line, and over the epoch. Losses stay on the device until they are read."""

    losses: list[torch.Tensor] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    epoch_loss: float = 0.0
    epoch_steps: int = 0


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


def train_loader(shards: str, recipe: Recipe, layout: Layout, threads: int, epoch: int) -> ImageLoader:
    last = recipe.data.colour_stop_epoch
    return ImageLoader(
        shards,
        "train",
        batch=recipe.train.batch,
        augmentation=augmentation(recipe, colour=last is None or epoch < last),
        seed=recipe.train.seed,
        rank=layout.rank,
        world=layout.world,
        group=layout.columns.group,
        device=layout.device,
        threads=threads,
    )


def _parameter_groups(net: AlexNet, recipe: Recipe) -> list[dict[str, Any]]:
    """Four groups by the names that Schedule.rates gives rates to."""
    t, groups = recipe.train, []
    for name in ("conv1.weight", "conv1.bias", "weight", "bias"):
        kind = name.split(".")[-1]
        chosen = [p for n, p in net.named_parameters() if n == name or (name == kind and n.endswith(kind) and not n.startswith("conv1."))]
        groups.append({"name": name, "params": chosen, "weight_decay": t.weight_decay if kind == "weight" else t.bias_weight_decay})
    return groups


def build_run(folder: Path, recipe: Recipe, layout: Layout, shards: str, threads: int, resumed: dict[str, Any] | None) -> Run:
    """A run at its beginning, or where the checkpoint `resumed` left it. Raises InputError."""
    loader = train_loader(shards, recipe, layout, threads, resumed["loader"]["epoch"] if resumed else 0)
    manifest = loader.shards.manifest
    has_val = "val" in manifest.splits and manifest.splits["val"].samples > 0
    if not has_val and recipe.train.schedule == "plateau":
        raise InputError(f"{shards} has no validation pictures, which schedule: plateau goes by; use --set train.schedule=fixed")
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
    return Run(
        folder=folder,
        recipe=recipe,
        layout=layout,
        net=net,
        model=model,
        optimiser=optimiser,
        schedule=schedule,
        train=loader,
        val=validation_loader(shards, recipe, layout, 1, threads) if has_val else None,
        metrics=Metrics(folder if layout.first else None, resume_at),
        stop=StopRequest(layout.control_group),
        shards=shards,
        threads=threads,
        step=resumed["step"] if resumed else 0,
        unvalidated=resumed["unvalidated"] if resumed else False,
    )
