"""A training run on one rank: what it is made of, how it begins or goes on, and how it is saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model import checkpoint
from model.formats import read_weights
from model.hybrid import is_split, parallel
from model.layout import Layout
from model.metrics import Metrics
from model.net import Net, own_part, placements
from model.net_design import NetDesign
from model.nets import make_net
from model.pictures import Source, train_loader, validation_loader
from model.recipe import Recipe
from model.saving import Saver, as_part
from model.schedule import Schedule
from model.sgd import PaperSGD
from model.spikes import Usual
from model.step import PlainStep, Step, make_step, ways_for
from model.stop import StopRequest
from model.timeline import Timeline
from model.watch import Watch
from pipeline import STAGES, ImageLoader, InputError


@dataclass
class Run:
    """A training run on one rank."""

    folder: Path
    recipe: Recipe
    layout: Layout
    net: Net
    model: torch.nn.Module  # the net, or the net in its data-parallel wrapping
    optimiser: PaperSGD
    take_step: Step
    schedule: Schedule
    train: ImageLoader
    val: ImageLoader | None
    metrics: Metrics
    stop: StopRequest
    source: Source
    saver: Saver
    timeline: Timeline
    watch: Watch | None = None
    step: int = 0
    unvalidated: bool = False  # an epoch was finished and saved, but not yet validated
    window: Window = field(default_factory=lambda: Window())
    spent: Spent = field(default_factory=lambda: Spent())
    usual: Usual = field(default_factory=Usual)
    save_every: int = 500  # steps; 0: at the end of each epoch only

    def at(self, stage: str) -> None:
        """The training has come to a stage of its step: it moves."""
        if self.watch is not None:
            self.watch.at(self.step, stage)


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


def save_run(run: Run, best: bool = False, wait: bool = False) -> None:
    """Begin to save the run as it stands, on every rank; wait: until it is on disk, or raise what kept it from there.

    What kept an earlier save from ending well is said, and training goes on: the last good checkpoint is still there.
    """
    run.at("saving")
    run.take_step.settle()
    _say_failed(run, run.saver.begin(run.step, _tensors(run, packed=True), _state(run), best))
    if wait:
        failed = run.saver.settle()
        if failed is not None:
            raise failed


def settle_save(run: Run, wait: bool) -> None:
    """Say how the save under way has ended, if it has; wait: or when it has."""
    if wait or run.saver.ready:
        _say_failed(run, run.saver.settle())


def _say_failed(run: Run, failed: BaseException | None) -> None:
    if failed is None:
        return
    if not isinstance(failed, OSError):
        raise failed
    newest, why = checkpoint.latest(run.saver.folder), f"{failed.strerror} in {run.saver.folder}"
    good = f"the last good one is {newest.name}" if newest else "there is none yet"
    run.metrics.say(f"warning: the checkpoint of step {run.saver.step} could not be saved ({why}); training goes on, {good}; free space")


def _tensors(run: Run, packed: bool = False) -> dict[str, Any]:
    """Parameters and velocities by name, each as the part of the whole that it is; packed: in the order in which files have them."""
    found = {}
    for name, parameter in run.net.named_parameters():
        for key, value in ((name, parameter.detach()), (checkpoint.VELOCITY + name, run.optimiser.velocity(parameter))):
            value = value.contiguous() if packed else value  # on the device most are channels_last
            found[key] = as_part(value, whole_shape(run.net, name), run.layout.mesh, placements(run.net, name))
    return found


def _state(run: Run) -> dict[str, Any]:
    return {
        "step": run.step,
        "schedule": run.schedule.state_dict(),
        "loader": run.train.state_dict(),
        "unvalidated": run.unvalidated,
        "usual_losses": run.usual.losses(),
        "metrics_bytes": run.metrics.bytes_written(),
        "metrics_pending": run.metrics.pending(),
        "recipe": run.recipe.model_dump(mode="json"),
        "classes": run.net.num_classes,
        "wnids": [entry.wnid for entry in run.train.shards.manifest.classes],
    }


def _parameter_groups(net: Net, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups by the names that Schedule.rates gives rates to: of a parameter, or of all weights or biases that have none of their own."""
    t, groups = recipe.train, []
    names = list(Schedule(t).rates(0))
    for name in names:
        kind = name.split(".")[-1]
        chosen = [p for n, p in net.named_parameters() if n == name or (name == kind and n.endswith(kind) and n not in names)]
        groups.append({"name": name, "params": chosen, "weight_decay": t.weight_decay if kind == "weight" else t.bias_weight_decay})
    return groups


def whole_shape(net: Net, name: str) -> torch.Size:
    """Shape of the whole net's parameter of this name."""
    layer, kind = name.split(".")
    shape = net.design.shapes(net.num_classes)[layer]
    return torch.Size(shape if kind == "weight" else shape[:1])


@dataclass(frozen=True)
class Start:
    """How a run begins: at `checkpoint`, whose state.json is `state`; or with the weights of a file; or with neither, as the recipe says.

    new_last_layer: fc8 as the recipe says, whatever the file has.
    """

    checkpoint: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    init_from: Path | None = None
    new_last_layer: bool = False


def build_run(folder: Path, recipe: Recipe, layout: Layout, source: Source, start: Start | None = None, profile: int = 0, graph: bool = True) -> Run:
    """A run at its beginning, or where a checkpoint left it. Raises InputError.

    profile: steps whose time line is written; graph: whether a step may be a CUDA graph, of whose parts nothing is seen.
    """
    start = start or Start()
    state = start.state
    loader = train_loader(source, recipe, layout, state["loader"]["epoch"] if state else 0)
    manifest = loader.shards.manifest
    has_val = "val" in manifest.splits and manifest.splits["val"].samples > 0
    if not has_val and recipe.train.schedule == "plateau":
        raise InputError(f"{source.shards} has no validation pictures, which schedule: plateau goes by; use --set train.schedule=fixed")
    refuse_layout(recipe.model, layout)
    net = make_net(len(manifest.classes), recipe.model, layout.columns, seed=recipe.train.seed)
    net.to(layout.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.ways = ways_for(net, recipe, layout)
    optimiser = PaperSGD(_parameter_groups(net, recipe), recipe.train.rate, recipe.train.momentum, fused=recipe.train.step == "fast")
    model = parallel(net, layout)
    val, stop = validation_loader(source, recipe, layout, 1) if has_val else None, StopRequest(layout.control_group)
    if layout.world == 1:  # more ranks agree on the step that they stop after, and so must wait for its batch
        for one in (loader, val) if val is not None else (loader,):
            one.given_up = stop.noted
    run = Run(
        folder=folder,
        recipe=recipe,
        layout=layout,
        net=net,
        model=model,
        optimiser=optimiser,
        take_step=PlainStep(model, optimiser),
        schedule=Schedule(recipe.train),
        train=loader,
        val=val,
        metrics=Metrics(
            folder if layout.first else None, (state["metrics_bytes"], state["step"]) if state else None, state.get("metrics_pending", "")
        ),
        stop=stop,
        source=source,
        timeline=Timeline(folder, layout.rank, profile, layout.device),
        saver=Saver(folder / "checkpoints", layout.saving_group, layout.first, layout.device),
    )
    _set(run, start)
    run.take_step = make_step(net, model, optimiser, recipe, layout, graph=graph and not profile)  # may copy the weights, so not before they are set
    if layout.first:
        (folder / "kernels").mkdir(parents=True, exist_ok=True)
    return run


def refuse_layout(design: NetDesign, layout: Layout) -> None:
    """Raises InputError where a layout cannot share a net of this design."""
    if layout.hybrid:
        apart = [layer for layer in design.layers() if is_split(layer) and not design.reads_all(layer)]
        if apart:
            raise InputError(
                f"--hybrid shares layers that read both columns, which {apart[0]} of this recipe does not (model.reads_both); leave it out"
            )
    elif not layout.columns.alone and design.columns == 1:
        raise InputError("this recipe's net has one column, which two devices cannot share; use --columns 1")


def _set(run: Run, start: Start) -> None:
    """The weights, and everything else, that a run begins with."""
    if start.checkpoint is not None:
        run.train.load_state_dict(start.state["loader"])
        run.schedule.load_state_dict(start.state["schedule"])
        run.step, run.unvalidated = start.state["step"], start.state["unvalidated"]
        checkpoint.fill(start.checkpoint, _tensors(run))
        run.usual = Usual(start.state.get("usual_losses", ()))
        run.saver.saved = run.step
    elif start.init_from is not None:
        weights = read_weights(start.init_from, run.recipe.model, run.net.num_classes, new_last_layer=start.new_last_layer)
        new = [layer for layer in run.net.design.layers() if f"{layer}.weight" not in weights]
        run.metrics.say(f"weights of {start.init_from}; by the recipe: {', '.join(new) or 'none'}")
        with torch.no_grad():
            for name, parameter in run.net.named_parameters():
                if name in weights:
                    parameter.copy_(own_part(run.net, name, weights[name]))
        save_run(run)  # so that its first steps can be repeated without the file
